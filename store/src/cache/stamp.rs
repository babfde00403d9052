//! `cache.stamp`: whether what the cache's files say can be trusted (docs/formats.md, "Cache").
//!
//! Within one boot a written byte is in the page cache, whatever became of the process. After a clean stop everything
//! was synced. In every other case the *epoch* changes, and presence maps of an older epoch are only hints.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{CacheError, disk::Disk};

const VERSION: u32 = 1;

/// What tells one boot, and one epoch, from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Machine {
    /// The kernel's id of this boot.
    pub(crate) boot_id: String,
    /// A number never used before, in case a new epoch begins.
    pub(crate) new_epoch: u128,
}

impl Machine {
    /// The one we run on.
    pub(crate) fn this() -> Result<Self, CacheError> {
        let read = |path: &str| {
            std::fs::read_to_string(path)
                .map(|text| text.trim().to_owned())
                .map_err(CacheError::io("read", Path::new(path)))
        };
        let uuid = read("/proc/sys/kernel/random/uuid")?;
        let new_epoch =
            u128::from_str_radix(&uuid.replace('-', ""), 16).map_err(|error| CacheError::Io {
                what: "understand",
                path: "/proc/sys/kernel/random/uuid".into(),
                source: std::io::Error::other(error),
            })?;
        Ok(Self {
            boot_id: read("/proc/sys/kernel/random/boot_id")?,
            new_epoch,
        })
    }
}

/// The stamp while the cache is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamp {
    boot_id: String,
    /// Maps written in this epoch say the truth.
    pub(super) epoch: u128,
}

/// Why what is on disk can be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    /// It cannot, unless it is hashed.
    None,
    /// The last process did not stop cleanly, but what it wrote is still in the page cache, if not on disk.
    SameBoot,
    /// Everything was synced.
    Clean,
}

#[derive(Serialize, Deserialize)]
struct OnDisk {
    version: u32,
    boot_id: String,
    epoch: String,
    clean: bool,
}

impl Stamp {
    /// Reads the stamp, decides about trust and marks the cache as in use, durably.
    pub(super) fn take(
        disk: &dyn Disk,
        state: &Path,
        machine: &Machine,
    ) -> Result<(Self, Trust), CacheError> {
        let path = path(state);
        let found = match disk.read(&path) {
            Ok(bytes) => match parse(&bytes) {
                Some(found) => Some(found),
                None => {
                    tracing::warn!(path = %path.display(), "damaged; the cache is checked again");
                    None
                }
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(CacheError::io("read", &path)(error)),
        };
        let (epoch, trust) = match found {
            Some((stamp, true)) => (stamp.epoch, Trust::Clean),
            Some((stamp, false)) if stamp.boot_id == machine.boot_id => {
                (stamp.epoch, Trust::SameBoot)
            }
            _ => (machine.new_epoch, Trust::None),
        };
        let stamp = Self {
            boot_id: machine.boot_id.clone(),
            epoch,
        };
        stamp.write(disk, state, false)?;
        Ok((stamp, trust))
    }

    /// Marks a clean stop, durably.
    pub(super) fn leave(&self, disk: &dyn Disk, state: &Path) -> Result<(), CacheError> {
        self.write(disk, state, true)
    }

    fn write(&self, disk: &dyn Disk, state: &Path, clean: bool) -> Result<(), CacheError> {
        let path = path(state);
        let stamp = OnDisk {
            version: VERSION,
            boot_id: self.boot_id.clone(),
            epoch: format!("{:032x}", self.epoch),
            clean,
        };
        let text = serde_json::to_vec(&stamp)
            .map_err(std::io::Error::other)
            .map_err(CacheError::io("write", &path))?;
        disk.replace(&path, &text, true)
            .map_err(CacheError::io("write", &path))
    }
}

fn path(state: &Path) -> PathBuf {
    state.join("cache.stamp")
}

fn parse(bytes: &[u8]) -> Option<(Stamp, bool)> {
    let found: OnDisk = serde_json::from_slice(bytes).ok()?;
    let epoch = u128::from_str_radix(&found.epoch, 16).ok()?;
    (found.version == VERSION).then_some((
        Stamp {
            boot_id: found.boot_id,
            epoch,
        },
        found.clean,
    ))
}
