//! The process that holds the connections, so that the store's process can die, be upgraded and come back.
//!
//! It mounts the three, keeps their descriptors, hands duplicates to one store at a time over a socket, and hears from
//! it when they can be adopted. It never looks into a mount: a request nobody answers would hang it for ever.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::FlockOperation,
};

use super::{
    MountError, MountName, Paths, make_dir, mountinfo,
    protocol::{self, HeldMount, ToHolder, ToStore},
};
use crate::sys::{device, seqpacket};

/// Who decides when the mounts go away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// A store started this holder: its mounts end when a store says so, or with this process's stop.
    Child,
    /// A service manager started it. The stop of this process leaves the mounts alone (its next life, or
    /// [`release`], takes care of them) where `unmount_on_stop` is false.
    Service {
        /// Whether SIGTERM unmounts.
        unmount_on_stop: bool,
    },
}

/// Mounts the three connections and serves the socket until `stop` becomes readable or, in [`Mode::Child`], a store
/// says stop. `ready` is called once the socket can be connected to.
///
/// # Errors
/// Nothing can be mounted or listened at: the message says what. Failures with a single store only end that store's
/// connection.
pub fn run(
    paths: &Paths,
    mode: Mode,
    stop: BorrowedFd<'_>,
    ready: impl FnOnce() -> io::Result<()>,
) -> Result<(), MountError> {
    let paths = paths.resolved()?;
    let run_dir = paths
        .socket
        .parent()
        .unwrap_or_else(|| Path::new("/"))
        .to_owned();
    make_dir(&run_dir)?;
    let _lock = lock(&paths.socket.with_extension("lock"))?;
    // The lock says that nobody listens there any more.
    match std::fs::remove_file(&paths.socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(MountError::io("remove", &paths.socket, error));
        }
        _ => {}
    }
    let mut holder = Holder {
        held: mount_all(&paths)?,
        life: Life::Fresh,
        mode,
        client: None,
        waiting: VecDeque::new(),
        paths,
    };
    let listener = seqpacket::listen(&holder.paths.socket)
        .map_err(|error| MountError::io("listen at", &holder.paths.socket, error))?;
    ready().map_err(|error| MountError::io("report readiness of", &holder.paths.socket, error))?;
    let ended = holder.serve(&listener, stop);
    // Gone first, so that nobody connects to a holder that is going.
    drop(listener);
    let _ = std::fs::remove_file(&holder.paths.socket);
    let unmount = match mode {
        Mode::Child => true,
        Mode::Service { unmount_on_stop } => unmount_on_stop,
    };
    if unmount {
        release(&holder.paths)?;
    }
    if let Some(client) = holder.client.filter(|_| ended.is_ok()) {
        // Whether the store still hears it or not, the mounts are gone.
        let _ = protocol::send(&client.socket, &ToStore::Stopped, &[]);
    }
    ended
}

/// Lazily unmounts whatever of ours is mounted at these paths.
///
/// # Errors
/// mountinfo cannot be read, something else is mounted there, or the kernel refuses to unmount.
pub fn release(paths: &Paths) -> Result<(), MountError> {
    let paths = paths.resolved()?;
    for name in MountName::ALL {
        unmount(&paths.target(name))?;
    }
    Ok(())
}

/// Takes away every mount of ours at a path, however many lie on each other.
fn unmount(target: &Path) -> Result<(), MountError> {
    while let Some(line) = find(target)? {
        if line.fs_type != device::FS_TYPE {
            return Err(MountError::Foreign {
                path: target.to_owned(),
                fs_type: line.fs_type,
            });
        }
        device::unmount_lazily(target).map_err(|error| MountError::io("unmount", target, error))?;
        tracing::info!(path = %target.display(), "unmounted");
    }
    Ok(())
}

fn find(target: &Path) -> Result<Option<mountinfo::MountLine>, MountError> {
    mountinfo::at(target)
        .map_err(|error| MountError::io("read", Path::new("/proc/self/mountinfo"), error))
}

fn lock(path: &Path) -> Result<File, MountError> {
    let file = File::create(path).map_err(|error| MountError::io("create", path, error))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(MountError::Held {
            path: path.to_owned(),
        }),
        Err(error) => Err(MountError::io("lock", path, error.into())),
    }
}

/// How far the connections have come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    /// Nobody has had them: the kernel's INIT waits to be read.
    Fresh,
    /// Somebody has them, and INIT may be half done.
    Handed,
    /// A store has served them; another can adopt them.
    Served,
}

/// A connection and where it is mounted.
#[derive(Debug)]
struct Held {
    mount: HeldMount,
    device: OwnedFd,
}

impl Held {
    /// Whether it is still mounted there and its connection is up. Asks nobody who could fail to answer.
    fn is_alive(&self) -> bool {
        let mounted = mountinfo::at(&self.mount.target)
            .ok()
            .flatten()
            .is_some_and(|line| line.kernel_device() == self.mount.device);
        let mut fds = [PollFd::new(&self.device, PollFlags::empty())];
        let polled = poll(&mut fds, Some(&Timespec::default()));
        mounted && polled.is_ok() && !fds[0].revents().contains(PollFlags::ERR)
    }
}

fn mount_all(paths: &Paths) -> Result<Vec<Held>, MountError> {
    MountName::ALL
        .into_iter()
        .map(|name| {
            let target = paths.target(name);
            // What a dead predecessor left there; before anything asks for the directory itself.
            unmount(&target)?;
            make_dir(&target)?;
            let device = device::open_fuse().map_err(MountError::Device)?;
            device::mount_fuse(device.as_fd(), &target, name.read_only())
                .map_err(|error| MountError::io("mount", &target, error))?;
            let line = find(&target)?.ok_or_else(|| MountError::Vanished {
                path: target.clone(),
            })?;
            tracing::info!(mount = %name, path = %target.display(), device = line.kernel_device(), "mounted");
            Ok(Held {
                mount: HeldMount {
                    name,
                    device: line.kernel_device(),
                    target,
                },
                device,
            })
        })
        .collect()
}

/// A store at the other end of a connection.
#[derive(Debug)]
struct Client {
    socket: OwnedFd,
    pid: i32,
}

#[derive(Debug)]
struct Holder {
    paths: Paths,
    mode: Mode,
    held: Vec<Held>,
    life: Life,
    client: Option<Client>,
    /// Stores that came while another was connected, in order.
    waiting: VecDeque<Client>,
}

/// What a message from the store leads to.
enum Next {
    Go,
    HangUp,
    Stop,
}

impl Holder {
    fn serve(&mut self, listener: &OwnedFd, stop: BorrowedFd<'_>) -> Result<(), MountError> {
        loop {
            let (stopping, coming, talking, gone) = self.wait(listener, stop)?;
            if stopping {
                return Ok(());
            }
            // Highest first, so that the numbers stay right.
            for &n in gone.iter().rev() {
                self.waiting.remove(n);
            }
            if talking {
                match self.hear() {
                    Next::Go => {}
                    Next::Stop => return Ok(()),
                    Next::HangUp => self.client = self.waiting.pop_front(),
                }
            }
            if coming {
                self.welcome(listener);
            }
        }
    }

    /// Waits until something happens: (stop, a store is coming, ours talks, those waiting that have gone).
    fn wait(
        &self,
        listener: &OwnedFd,
        stop: BorrowedFd<'_>,
    ) -> Result<(bool, bool, bool, Vec<usize>), MountError> {
        let mut fds = vec![
            PollFd::from_borrowed_fd(stop, PollFlags::IN),
            PollFd::new(listener, PollFlags::IN),
        ];
        fds.extend(
            self.client
                .iter()
                .map(|client| PollFd::new(&client.socket, PollFlags::IN)),
        );
        let others = fds.len();
        // What they have said stays unread until it is their turn; only that they hung up matters.
        fds.extend(
            self.waiting
                .iter()
                .map(|client| PollFd::new(&client.socket, PollFlags::empty())),
        );
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(MountError::io("poll", &self.paths.socket, error.into())),
        }
        let happened: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let talking = self.client.is_some() && happened[2];
        let gone = (others..happened.len())
            .filter(|&n| happened[n])
            .map(|n| n - others)
            .collect();
        Ok((happened[0], happened[1], talking, gone))
    }

    fn welcome(&mut self, listener: &OwnedFd) {
        let (socket, pid, uid) = match seqpacket::accept(listener) {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection to the holder failed");
                return;
            }
        };
        if uid != 0 && uid != rustix::process::geteuid().as_raw() {
            tracing::warn!(
                pid,
                uid,
                "refused a connection to the holder of another user"
            );
            return;
        }
        let client = Client { socket, pid };
        match &self.client {
            None => self.client = Some(client),
            Some(current) => {
                let busy = ToStore::Busy { pid: current.pid };
                if protocol::send(&client.socket, &busy, &[]).is_ok() {
                    self.waiting.push_back(client);
                }
            }
        }
    }

    /// Takes in one message of the connected store.
    fn hear(&mut self) -> Next {
        let Some(client) = &self.client else {
            return Next::Go;
        };
        let message = match protocol::receive::<ToHolder>(&client.socket) {
            Ok(Some((message, _))) => message,
            Ok(None) => {
                tracing::info!(pid = client.pid, "the store has gone");
                return Next::HangUp;
            }
            Err(error) => {
                tracing::warn!(pid = client.pid, %error, "the store said something unintelligible");
                return self.refuse(format!("unintelligible: {error}"));
            }
        };
        match message {
            ToHolder::Hello { version } if version != protocol::VERSION => self.refuse(format!(
                "this holder speaks version {} of its protocol, not {version}; restart it with the new program",
                protocol::VERSION
            )),
            ToHolder::Hello { .. } => self.hand_over(),
            ToHolder::Serving => {
                self.life = Life::Served;
                Next::Go
            }
            ToHolder::Stop if self.mode == Mode::Child => Next::Stop,
            ToHolder::Stop => self.refuse("this holder is a service; stop the service".to_owned()),
        }
    }

    fn refuse(&self, why: String) -> Next {
        if let Some(client) = &self.client {
            let _ = protocol::send(&client.socket, &ToStore::Refused { why }, &[]);
        }
        Next::HangUp
    }

    fn hand_over(&mut self) -> Next {
        if self.life == Life::Handed || !self.held.iter().all(Held::is_alive) {
            tracing::warn!("mounting afresh: the mounts were never served or have been taken away");
            match mount_all(&self.paths) {
                Ok(held) => self.held = held,
                Err(error) => {
                    tracing::error!(%error, "cannot mount");
                    return self.refuse(error.to_string());
                }
            }
            self.life = Life::Fresh;
        }
        let Some(client) = &self.client else {
            return Next::Go;
        };
        let adopt = self.life == Life::Served;
        let message = ToStore::Mounts {
            version: protocol::VERSION,
            adopt,
            child: self.mode == Mode::Child,
            mounts: self.held.iter().map(|held| held.mount.clone()).collect(),
        };
        let fds: Vec<BorrowedFd<'_>> = self.held.iter().map(|held| held.device.as_fd()).collect();
        if let Err(error) = protocol::send(&client.socket, &message, &fds) {
            tracing::warn!(pid = client.pid, %error, "cannot hand the mounts over");
            return Next::HangUp;
        }
        tracing::info!(pid = client.pid, adopt, "handed the mounts over");
        if !adopt {
            self.life = Life::Handed;
        }
        Next::Go
    }
}
