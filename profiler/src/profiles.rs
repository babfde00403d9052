//! The directory of profiles: one file a (image, workload), found by image and by layers, merged under one lock.
//!
//! Invariants: a profile file is replaced as a whole (temporary file, fsync, rename, fsync of the directory) and only
//! under the directory's lock, so that two writers never lose each other's run; a file that cannot be read is reported
//! with its name and reason, harms no other, and is never overwritten: it is kept aside as `<name>.bad` (the last one
//! of a name); a file that is written can be read.
//!
//! Only summaries stay in memory; they are refreshed when a file's size or time changes, so files may be copied in
//! and removed by hand.

pub mod bundle;
mod disk;
mod error;
mod select;
mod summary;
#[cfg(test)]
mod tests;
mod write;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

pub use error::ProfileError;
use error::reason;
pub use select::{Chosen, Kin};
pub use summary::Summary;
pub use write::Taken;

use crate::{
    Digest,
    model::{MAX_BYTES, Profile},
};

/// Workloads kept for one image: a command line that is new each time must not fill the disk.
pub const MAX_WORKLOADS: usize = 32;

/// The profiles below one directory.
#[derive(Debug)]
pub struct ProfileDir {
    dir: PathBuf,
    known: BTreeMap<String, Known>,
    /// See [`ProfileDir::generation`].
    generation: u64,
    /// Bytes a file may have: what is written can be read.
    max_bytes: u64,
}

/// What is kept in memory of a file.
#[derive(Debug)]
struct Known {
    stamp: disk::Stamp,
    summary: Result<Summary, String>,
}

/// One file of the directory, readable or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Name of the file.
    pub file: String,
    /// What it says, or why it cannot be read.
    pub summary: Result<Summary, String>,
}

impl ProfileDir {
    /// Opens the directory, made (0700) if it is not there, and reads what is in it. Files that cannot be read are
    /// warned about once and left alone.
    ///
    /// # Errors
    /// If the directory cannot be made or read.
    pub fn open(dir: &Path) -> Result<Self, ProfileError> {
        disk::make_dir(dir)?;
        let mut this = Self {
            max_bytes: MAX_BYTES,
            dir: dir.to_owned(),
            known: BTreeMap::new(),
            generation: 0,
        };
        {
            let _lock = disk::lock(dir)?;
            disk::remove_leftovers(dir)?;
        }
        this.refresh()?;
        Ok(this)
    }

    /// Like [`ProfileDir::open`] for looking only: a directory that is not there is empty, nothing is made.
    ///
    /// # Errors
    /// If the directory is there and cannot be read, or this user may not know whether it is.
    pub fn open_read_only(dir: &Path) -> Result<Self, ProfileError> {
        let mut this = Self {
            max_bytes: MAX_BYTES,
            dir: dir.to_owned(),
            known: BTreeMap::new(),
            generation: 0,
        };
        let looked = match dir.try_exists() {
            Ok(true) => this.refresh(),
            Ok(false) => Ok(()),
            Err(source) => Err(ProfileError::Io {
                what: "look at",
                path: dir.to_owned(),
                source,
            }),
        };
        match looked {
            Err(ProfileError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::PermissionDenied =>
            {
                Err(ProfileError::NotAllowed {
                    dir: dir.to_owned(),
                })
            }
            looked => looked.map(|()| this),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Takes note of files that appeared, changed or vanished.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn refresh(&mut self) -> Result<(), ProfileError> {
        let stamps = disk::scan(&self.dir)?;
        let before = self.known.len();
        self.known.retain(|file, _| stamps.contains_key(file));
        self.generation += u64::from(self.known.len() < before);
        for (file, stamp) in stamps {
            if self
                .known
                .get(&file)
                .is_some_and(|known| known.stamp == stamp)
            {
                continue;
            }
            let summary = match self.load(&file) {
                Ok(profile) => Ok(Summary::of(file.clone(), &profile)),
                Err(error) => {
                    tracing::warn!("{error}; it is left alone and nothing is predicted from it");
                    Err(reason(&error))
                }
            };
            self.known.insert(file, Known { stamp, summary });
            self.generation += 1;
        }
        Ok(())
    }

    /// A number that changes with every change of a file that [`ProfileDir::refresh`] takes note of: what was chosen
    /// for an image is chosen again as long as it is the same.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// All files in order of name, as of the last refresh.
    #[must_use]
    pub fn list(&self) -> Vec<Listed> {
        self.known
            .iter()
            .map(|(file, known)| Listed {
                file: file.clone(),
                summary: known.summary.clone(),
            })
            .collect()
    }

    /// The files that `name` means: a file's name (with or without `.json`) or the beginning of it, if it is the only
    /// one; or an image's name with all its workloads. Readable or not.
    ///
    /// # Errors
    /// [`ProfileError::NotFound`], [`ProfileError::Ambiguous`].
    pub fn named(&self, name: &str) -> Result<Vec<String>, ProfileError> {
        let exact = format!("{}.json", name.trim_end_matches(".json"));
        if self.known.contains_key(&exact) {
            return Ok(vec![exact]);
        }
        let image: Vec<String> = self
            .summaries()
            .filter(|summary| summary.identity.image == name)
            .map(|summary| summary.file.clone())
            .collect();
        if !image.is_empty() {
            return Ok(image);
        }
        let begins = self
            .known
            .keys()
            .filter(|file| !name.is_empty() && file.starts_with(name));
        let files: Vec<String> = begins.cloned().collect();
        let name = name.to_owned();
        match files.len() {
            0 => Err(ProfileError::NotFound {
                name,
                dir: self.dir.clone(),
            }),
            1 => Ok(files),
            _ => Err(ProfileError::Ambiguous { name, files }),
        }
    }

    /// Reads one file.
    ///
    /// # Errors
    /// If it cannot be read or is no profile.
    pub fn load(&self, file: &str) -> Result<Profile, ProfileError> {
        let path = self.dir.join(file);
        let text = disk::read(&path)?;
        Profile::from_json(&text).map_err(|source| ProfileError::Malformed { path, source })
    }

    /// The profiles that predict a start of an image with these layers (any order), best known as `reference`: those
    /// recorded with exactly these layers; else those of the image's name; else those of the nearest other image,
    /// which has touched layers or contents in common with it. Empty if nothing fits. `holds` says whether the image
    /// has a file with this content; it is asked only where the image has no profile of its own.
    ///
    /// # Errors
    /// If the directory cannot be read; unreadable files are skipped.
    pub fn choose(
        &mut self,
        reference: Option<&str>,
        layers: &[Digest],
        holds: &dyn Fn(&Digest) -> bool,
    ) -> Result<Chosen, ProfileError> {
        self.refresh()?;
        let known: Vec<&Summary> = self.summaries().collect();
        Ok(select::choose(&known, reference, layers, holds))
    }

    /// Reads these files; those that cannot be read any more are warned about and left out.
    #[must_use]
    pub fn load_all<'a>(&self, files: impl IntoIterator<Item = &'a str>) -> Vec<Profile> {
        let load = |file| match self.load(file) {
            Ok(profile) => Some(profile),
            Err(error) => {
                tracing::warn!("{error}; nothing is predicted from it");
                None
            }
        };
        files.into_iter().filter_map(load).collect()
    }

    fn summaries(&self) -> impl Iterator<Item = &Summary> {
        self.known
            .values()
            .filter_map(|known| known.summary.as_ref().ok())
    }
}
