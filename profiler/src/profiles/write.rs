//! What changes the directory: each call under its lock, so that two writers never lose each other's run.

use std::path::PathBuf;

use super::{MAX_WORKLOADS, ProfileDir, ProfileError, disk, select};
use crate::model::{Identity, ModelError, Profile, Run};

impl ProfileDir {
    /// Merges a run into the profile of `identity` and keeps the newest `keep` runs, fewer where a file could not hold
    /// them; answers the file's path. A file of that name that is no profile of this identity is moved aside first. Of an image's workloads the
    /// [`MAX_WORKLOADS`] with the newest starts stay.
    ///
    /// # Errors
    /// If the run is too large for any profile or the profile cannot be written; the old one is then as it was.
    pub fn add(
        &mut self,
        identity: &Identity,
        run: Run,
        keep: usize,
    ) -> Result<PathBuf, ProfileError> {
        disk::make_dir(&self.dir)?;
        let _lock = disk::lock(&self.dir)?;
        let file = identity.file_name();
        let path = self.dir.join(&file);
        let mut profile = Profile::new(identity.clone());
        let mut unusable = None;
        if path.exists() {
            let kept = self.load(&file).and_then(|old| {
                profile
                    .merge(old, keep)
                    .map_err(|mismatch| ProfileError::Malformed {
                        path: path.clone(),
                        source: ModelError::Value {
                            place: "identity".to_owned(),
                            what: mismatch.to_string(),
                        },
                    })
            });
            match kept {
                Ok(()) => {}
                Err(error @ ProfileError::Malformed { .. }) => unusable = Some(error),
                Err(error) => return Err(error),
            }
        }
        profile.add(run, keep);
        let text = self.fitted(profile)?;
        if let Some(error) = unusable {
            let aside = disk::move_aside(&path)?;
            tracing::warn!(
                "{error}; it is kept as {} and learning starts anew",
                aside.display()
            );
        }
        disk::write(&self.dir, &file, text.as_bytes())?;
        self.refresh()?;
        for old in select::surplus(
            &self.summaries().collect::<Vec<_>>(),
            &identity.image,
            MAX_WORKLOADS,
        ) {
            disk::remove(&self.dir.join(&old))?;
            self.known.remove(&old);
        }
        Ok(path)
    }

    /// The text of a profile with as many of its newest runs as a reader takes; those that are pinned stay.
    fn fitted(&self, mut profile: Profile) -> Result<String, ProfileError> {
        loop {
            let text = profile.to_json();
            let bytes = text.len() as u64;
            if bytes <= self.max_bytes {
                return Ok(text);
            }
            let mut others = (profile.runs.iter().enumerate()).filter(|(_, run)| !run.pinned);
            let (newest, oldest) = (others.next(), others.next_back());
            let Some((oldest, _)) = newest.and(oldest) else {
                return Err(ProfileError::TooLarge {
                    image: profile.identity.image,
                    bytes,
                    limit: self.max_bytes,
                });
            };
            profile.runs.remove(oldest);
        }
    }

    /// Pins all runs that a file holds, or none: pinned ones stay whatever comes, and count fully. Answers how many
    /// runs the file holds.
    ///
    /// # Errors
    /// If it is not there, cannot be read or cannot be written.
    pub fn pin(&mut self, file: &str, pinned: bool) -> Result<usize, ProfileError> {
        let _lock = disk::lock(&self.dir)?;
        if !self.known.contains_key(file) {
            return Err(ProfileError::NotFound {
                name: file.to_owned(),
                dir: self.dir.clone(),
            });
        }
        let mut profile = self.load(file)?;
        profile.set_pinned(pinned);
        let runs = profile.runs.len();
        disk::write(&self.dir, file, profile.to_json().as_bytes())?;
        self.refresh()?;
        Ok(runs)
    }

    /// Removes one file.
    ///
    /// # Errors
    /// If it is not there or cannot be removed.
    pub fn delete(&mut self, file: &str) -> Result<(), ProfileError> {
        let _lock = disk::lock(&self.dir)?;
        if !self.known.contains_key(file) {
            return Err(ProfileError::NotFound {
                name: file.to_owned(),
                dir: self.dir.clone(),
            });
        }
        disk::remove(&self.dir.join(file))?;
        self.known.remove(file);
        Ok(())
    }
}
