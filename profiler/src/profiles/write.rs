//! What changes the directory: each call under its lock, so that two writers never lose each other's run.

use std::{collections::HashSet, path::PathBuf};

use serde::Serialize;

use super::{MAX_WORKLOADS, ProfileDir, ProfileError, disk, select};
use crate::model::{Identity, ModelError, Profile, Run};

/// What became of a profile that was merged into the directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Taken {
    /// The file that it went into.
    pub file: String,
    /// Whose it is.
    #[serde(flatten)]
    pub identity: Identity,
    /// Runs that were not there.
    pub taken: usize,
    /// Runs that were there.
    pub known: usize,
    /// Runs that are older than those that are kept.
    pub left_out: usize,
}

fn ids(profile: &Profile) -> HashSet<String> {
    profile.runs.iter().map(|run| run.id.clone()).collect()
}

impl ProfileDir {
    /// Merges a run into the profile of `identity` and keeps the newest `keep` runs, fewer where a file could not hold
    /// them; answers the file's path. A file of that name that is no profile of this identity is moved aside first. Of
    /// an image's workloads the [`MAX_WORKLOADS`] with the newest starts stay.
    ///
    /// # Errors
    /// If the run is too large for any profile or the profile cannot be written; the old one is then as it was.
    pub fn add(
        &mut self,
        identity: &Identity,
        run: Run,
        keep: usize,
    ) -> Result<PathBuf, ProfileError> {
        let mut profile = Profile::new(identity.clone());
        profile.add(run, keep);
        let taken = self.import(profile, keep)?;
        Ok(self.dir.join(taken.file))
    }

    /// Merges a profile, such as another machine's, into that of the same identity, as [`ProfileDir::add`] does a run.
    ///
    /// # Errors
    /// As for [`ProfileDir::add`].
    pub fn import(&mut self, theirs: Profile, keep: usize) -> Result<Taken, ProfileError> {
        disk::make_dir(&self.dir)?;
        let _lock = disk::lock(&self.dir)?;
        let identity = theirs.identity.clone();
        let file = identity.file_name();
        let (mut profile, unusable) = self.mine(&identity)?;
        let known = ids(&profile);
        let given = ids(&theirs);
        let before = profile.clone();
        // The identities are equal by construction.
        let _ = profile.merge(theirs, keep);
        let (text, now) = self.fitted(profile)?;
        let kept = ids(&now);
        let taken = Taken {
            file,
            identity,
            taken: given
                .difference(&known)
                .filter(|id| kept.contains(*id))
                .count(),
            known: given.intersection(&known).count(),
            left_out: given
                .iter()
                .filter(|id| !known.contains(*id) && !kept.contains(*id))
                .count(),
        };
        if now == before {
            return Ok(taken);
        }
        if let Some(error) = unusable {
            let aside = disk::move_aside(&self.dir.join(&taken.file))?;
            tracing::warn!(
                "{error}; it is kept as {} and learning starts anew",
                aside.display()
            );
        }
        disk::write(&self.dir, &taken.file, text.as_bytes())?;
        self.refresh()?;
        for old in select::surplus(
            &self.summaries().collect::<Vec<_>>(),
            &taken.identity.image,
            MAX_WORKLOADS,
        ) {
            disk::remove(&self.dir.join(&old))?;
            self.known.remove(&old);
        }
        Ok(taken)
    }

    /// The profile of this identity, empty where there is none; and why the file in its place is none.
    fn mine(&self, identity: &Identity) -> Result<(Profile, Option<ProfileError>), ProfileError> {
        let empty = Profile::new(identity.clone());
        let file = identity.file_name();
        let path = self.dir.join(&file);
        if !path.exists() {
            return Ok((empty, None));
        }
        match self.load(&file) {
            Ok(old) if old.identity == *identity => Ok((old, None)),
            Ok(old) => {
                let source = ModelError::Value {
                    place: "identity".to_owned(),
                    what: format!("it is the profile of {}", old.identity),
                };
                Ok((empty, Some(ProfileError::Malformed { path, source })))
            }
            Err(error @ ProfileError::Malformed { .. }) => Ok((empty, Some(error))),
            Err(error) => Err(error),
        }
    }

    /// The text of a profile with as many of its newest runs as a reader takes; those that are pinned stay.
    fn fitted(&self, mut profile: Profile) -> Result<(String, Profile), ProfileError> {
        loop {
            let text = profile.to_json();
            let bytes = text.len() as u64;
            if bytes <= self.max_bytes {
                return Ok((text, profile));
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
