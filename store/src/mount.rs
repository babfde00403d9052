//! Owning the device: mounting, holding, handing over, adopting, giving up.
//!
//! Invariants: a mount is taken away only when somebody really stops it, so that containers outlive the store's
//! process; a connection whose INIT did not complete is never adopted; nobody here touches a path inside a mount
//! (a request nobody answers hangs for ever): what is mounted is read from mountinfo.

pub mod client;
pub mod holder;
pub mod mountinfo;
pub mod protocol;
pub mod session;

use std::{
    io,
    path::{Path, PathBuf},
};

pub use client::Mounts;

/// One of the three connections.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum MountName {
    /// What engines look layers up in.
    Control,
    /// Layers without extended attributes.
    Plain,
    /// Layers with them.
    Xattr,
}

impl MountName {
    /// All of them, in the order in which they are mounted and handed over.
    pub const ALL: [Self; 3] = [Self::Control, Self::Plain, Self::Xattr];

    /// Its name in protocols, logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Plain => "plain",
            Self::Xattr => "xattr",
        }
    }

    /// The name of this text.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|name| name.as_str() == text)
    }

    /// Whether it is mounted read-only: the data mounts are.
    #[must_use]
    pub const fn read_only(self) -> bool {
        !matches!(self, Self::Control)
    }
}

impl std::fmt::Display for MountName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where the mounts and the holder's socket lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// The directory of the mount points.
    pub mounts: PathBuf,
    /// The holder's socket.
    pub socket: PathBuf,
}

impl Paths {
    /// The paths of a configuration.
    #[must_use]
    pub fn new(config: &crate::config::Config) -> Self {
        Self {
            mounts: config.mount_dir().to_path_buf(),
            socket: config.mount_socket(),
        }
    }

    /// The same with the directory's real path, as mountinfo shows it. Makes the directory if it is not there.
    ///
    /// # Errors
    /// The directory cannot be made or its path not be resolved.
    pub fn resolved(&self) -> Result<Self, MountError> {
        make_dir(&self.mounts)?;
        let mounts = self
            .mounts
            .canonicalize()
            .map_err(|error| MountError::io("resolve", &self.mounts, error))?;
        let socket = std::path::absolute(&self.socket)
            .map_err(|error| MountError::io("resolve", &self.socket, error))?;
        Ok(Self { mounts, socket })
    }

    /// Where a connection is mounted.
    #[must_use]
    pub fn target(&self, name: MountName) -> PathBuf {
        match name {
            MountName::Control => self.mounts.join("store"),
            MountName::Plain | MountName::Xattr => self.mounts.join("layers").join(name.as_str()),
        }
    }
}

/// Makes a directory that only its owner can enter, with its parents.
fn make_dir(path: &Path) -> Result<(), MountError> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| MountError::io("make the directory", path, error))
}

/// Why something could not be mounted, held, handed over or served.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// A file, directory or socket cannot be used.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// The operation.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no FUSE here.
    #[error(
        "cannot open /dev/fuse: {0}; the store needs root and the fuse module (in a container: --device /dev/fuse and \
         CAP_SYS_ADMIN)"
    )]
    Device(#[source] io::Error),
    /// Something else is mounted where a connection belongs.
    #[error("{path} is already a mount of type {fs_type}; unmount it or set another mount_dir")]
    Foreign {
        /// The mount point.
        path: PathBuf,
        /// What is mounted there.
        fs_type: String,
    },
    /// Another holder has the lock.
    #[error("another forelayer mount process is holding {path}")]
    Held {
        /// The lock file.
        path: PathBuf,
    },
    /// A mount that was just made is not in mountinfo.
    #[error("{path} was mounted and is not in /proc/self/mountinfo")]
    Vanished {
        /// The mount point.
        path: PathBuf,
    },
    /// The other side of the holder's socket said something unexpected.
    #[error("the peer at {path} does not speak as expected: {why}")]
    Protocol {
        /// The socket.
        path: PathBuf,
        /// What was wrong.
        why: String,
    },
    /// Another store is being served by the holder.
    #[error("the holder at {path} already has a store (process {pid}); stop it first")]
    Busy {
        /// The socket.
        path: PathBuf,
        /// The other store's process id.
        pid: i32,
    },
    /// The holder that was started did not come up.
    #[error("the holder did not start ({command}): {why}")]
    NoHolder {
        /// The command line.
        command: String,
        /// Its exit status, or what it said.
        why: String,
    },
    /// A connection cannot be served.
    #[error("cannot serve the {mount} mount: {what}: {source}")]
    Session {
        /// Which.
        mount: MountName,
        /// The step that failed.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl MountError {
    pub(crate) fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            what,
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn protocol(path: &Path, why: impl Into<String>) -> Self {
        Self::Protocol {
            path: path.to_owned(),
            why: why.into(),
        }
    }
}
