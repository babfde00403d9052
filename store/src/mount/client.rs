//! The store's side of the holder's socket.

use std::{
    ffi::OsString,
    io::{self, BufRead, BufReader},
    os::{
        fd::{IntoRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::net::sockopt::Timeout;

use super::{
    MountError, MountName, Paths,
    protocol::{self, HeldMount, ToHolder, ToStore},
};
use crate::sys::seqpacket;

/// What a holder started by a store writes to its standard output, followed by a newline, once its socket is there.
pub const READY: &str = "ready";

/// How long the holder may take to answer; longer means that another store keeps it.
const PATIENCE: Duration = Duration::from_secs(5);

/// How a holder is started where no service manager does it.
#[derive(Debug, Clone)]
pub struct HolderCommand {
    /// The program: this one.
    pub program: PathBuf,
    /// Its arguments. Paths in them must be absolute: the holder runs in `/`.
    pub args: Vec<OsString>,
}

/// The connections, as the holder handed them over.
#[derive(Debug)]
pub struct Mounts {
    /// Whether a store has served them before.
    pub adopt: bool,
    held: Vec<(HeldMount, OwnedFd)>,
    /// Whether a store has to stop the holder.
    child: bool,
    socket: OwnedFd,
    path: PathBuf,
    process: Option<Child>,
}

/// Connects to the holder; without one, starts `holder` and connects to that. Blocks for at most some seconds.
///
/// # Errors
/// There is no holder and none may or can be started, it has another store, or it speaks another protocol.
pub fn connect(paths: &Paths, holder: Option<&HolderCommand>) -> Result<Mounts, MountError> {
    let path = &paths.socket;
    let (socket, process) = match seqpacket::connect(path) {
        Ok(socket) => (socket, None),
        Err(error) => {
            let absent = matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            );
            let Some(command) = holder.filter(|_| absent) else {
                return Err(MountError::io("connect to the holder at", path, error));
            };
            let process = start(command)?;
            let socket = seqpacket::connect(path)
                .map_err(|error| MountError::io("connect to the holder at", path, error))?;
            (socket, Some(process))
        }
    };
    greet(path, socket, process)
}

/// Starts a holder and returns when it listens.
fn start(command: &HolderCommand) -> Result<Child, MountError> {
    let shown = format!("{} {:?}", command.program.display(), command.args);
    let failed = |why: String| MountError::NoHolder {
        command: shown.clone(),
        why,
    };
    let mut child = Command::new(&command.program)
        .args(&command.args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // A group of its own: what interrupts the store at a terminal must not take the mounts away.
        .process_group(0)
        .current_dir("/")
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout)
            .read_line(&mut line)
            .map_err(|error| failed(error.to_string()))?;
    }
    if line.trim_end() == READY {
        return Ok(child);
    }
    // It closed its output without a word (it has ended, its log says why), or is another program.
    let _ = child.kill();
    let why = match child.wait() {
        Ok(status) if line.is_empty() => format!("it ended with {status}; its messages are above"),
        Ok(_) => format!("it said {line:?} instead of {READY:?}"),
        Err(error) => error.to_string(),
    };
    Err(failed(why))
}

fn greet(path: &Path, socket: OwnedFd, process: Option<Child>) -> Result<Mounts, MountError> {
    let io = |error| MountError::io("talk to the holder at", path, error);
    rustix::net::sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))
        .map_err(|error| io(error.into()))?;
    let hello = ToHolder::Hello {
        version: protocol::VERSION,
    };
    protocol::send(&socket, &hello, &[]).map_err(io)?;
    let mut busy = None;
    loop {
        let received = match (protocol::receive::<ToStore>(&socket), busy) {
            (Err(error), Some(pid)) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(MountError::Busy {
                    path: path.to_owned(),
                    pid,
                });
            }
            (received, _) => received.map_err(io)?,
        };
        match received {
            Some((ToStore::Busy { pid }, _)) => {
                tracing::info!(pid, "waiting for another store process to end");
                busy = Some(pid);
            }
            Some((
                ToStore::Mounts {
                    version,
                    adopt,
                    child,
                    mounts,
                },
                fds,
            )) => {
                if version != protocol::VERSION {
                    return Err(MountError::protocol(path, format!("version {version}")));
                }
                let names: Vec<MountName> = mounts.iter().map(|mount| mount.name).collect();
                if names != MountName::ALL || fds.len() != mounts.len() {
                    return Err(MountError::protocol(
                        path,
                        format!("{} descriptors for the mounts {names:?}", fds.len()),
                    ));
                }
                return Ok(Mounts {
                    adopt,
                    child,
                    held: mounts.into_iter().zip(fds).collect(),
                    socket,
                    path: path.to_owned(),
                    process,
                });
            }
            Some((ToStore::Refused { why }, _)) => return Err(MountError::protocol(path, why)),
            Some((ToStore::Stopped, _)) | None => {
                return Err(MountError::protocol(path, "it hung up"));
            }
        }
    }
}

impl Mounts {
    /// Where a connection is mounted, and its device number.
    #[must_use]
    pub fn held(&self, name: MountName) -> Option<&HeldMount> {
        self.all().find(|mount| mount.name == name)
    }

    /// Device numbers of the data mounts as the kernel writes them in its events, for the witness.
    #[must_use]
    pub fn data_devices(&self) -> Vec<u32> {
        [MountName::Plain, MountName::Xattr]
            .into_iter()
            .filter_map(|name| self.held(name))
            .map(|mount| mount.device)
            .collect()
    }

    /// Everything that is mounted.
    pub(crate) fn all(&self) -> impl Iterator<Item = &HeldMount> {
        self.held.iter().map(|(mount, _)| mount)
    }

    /// A duplicate of a connection's descriptor.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn device(&self, name: MountName) -> Result<OwnedFd, MountError> {
        let device = self.held.iter().find(|(mount, _)| mount.name == name);
        let duplicate = device
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
            .and_then(|(_, device)| device.try_clone());
        duplicate.map_err(|source| MountError::Session {
            mount: name,
            what: "take over the descriptor",
            source,
        })
    }

    /// Tells the holder that the connections are served: from now on they can be adopted.
    ///
    /// # Errors
    /// The holder has gone.
    pub fn serving(&self) -> Result<(), MountError> {
        protocol::send(&self.socket, &ToHolder::Serving, &[])
            .map_err(|error| MountError::io("talk to the holder at", &self.path, error))
    }

    /// For a clean stop of the store: where a store started the holder, has it unmount and end; otherwise nothing
    /// happens until this process ends, and then the mounts wait for the next store. Blocks for at most some seconds.
    ///
    /// # Errors
    /// The holder does not answer.
    pub fn stop(mut self) -> Result<(), MountError> {
        if !self.child {
            // Closed when this process ends, not before: its threads still read the kernel's requests, and the next
            // store must not adopt the connections while they do.
            let _ = self.socket.into_raw_fd();
            return Ok(());
        }
        let path = self.path.clone();
        let io = |error| MountError::io("stop the holder at", &path, error);
        // Without our copies the connections end with the holder's.
        self.held.clear();
        protocol::send(&self.socket, &ToHolder::Stop, &[]).map_err(io)?;
        match protocol::receive::<ToStore>(&self.socket).map_err(io)? {
            Some((ToStore::Stopped, _)) | None => {}
            Some((other, _)) => {
                return Err(MountError::protocol(
                    &self.path,
                    format!("{other:?} instead of stopped"),
                ));
            }
        }
        if let Some(mut process) = self.process.take() {
            process.wait().map_err(io)?;
        }
        Ok(())
    }
}
