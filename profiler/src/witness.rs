//! Loads the eBPF object, attaches it while a container starts, and reads its events.
//!
//! The object is loaded once; [`Witness::attach`] and [`Witness::detach`] open and close the recording window. Which
//! programs are used is decided by what the kernel takes, never by its version (docs/design.md, "The witness").
//!
//! Invariant kept here: the witness only looks. Whatever fails, no byte that the store serves changes.

mod btf;
mod decode;
mod error;
mod event;
mod formats;
mod ladder;
mod links;
mod maps;
mod open;
mod reader;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::protocol::Level;
use links::{Attached, Detacher};
use maps::Maps;

pub use btf::BtfError;
pub use error::WitnessError;
pub use event::{Event, Origin, Watched};

/// The loaded eBPF object.
#[derive(Debug)]
pub struct Witness {
    level: Level,
    receiver: Option<mpsc::Receiver<Event>>,
    /// `None` at [`Level::Off`].
    loaded: Option<Loaded>,
}

/// What a witness that sees has.
#[derive(Debug)]
struct Loaded {
    ebpf: aya::Ebpf,
    maps: Maps,
    hooks: Vec<ladder::Hook>,
    attached: Vec<Attached>,
    detacher: Detacher,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Loaded {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.detacher.detach(std::mem::take(&mut self.attached));
    }
}

impl Witness {
    /// Loads the programs and picks the highest rung that attaches, or the one asked for. `Some(Level::Off)` gives a
    /// witness that sees nothing. Takes some 0.1 s; must be called inside a tokio runtime: a task of it reads the events.
    ///
    /// # Errors
    /// Says what is missing (privilege, tracefs, the rung that was asked for) and what to do.
    pub fn load(choice: Option<Level>) -> Result<Self, WitnessError> {
        let (sender, receiver) = mpsc::channel(reader::CHANNEL);
        if choice == Some(Level::Off) {
            return Ok(Self {
                level: Level::Off,
                receiver: Some(receiver),
                loaded: None,
            });
        }
        let runtime = tokio::runtime::Handle::try_current().map_err(std::io::Error::other)?;
        let open::Opened {
            mut ebpf,
            level,
            hooks,
            attached,
        } = open::open(choice)?;
        let (live, is_live) = watch::channel(true);
        let detacher = Detacher::new(live);
        // That they attach has been seen; until the first window they cost nothing.
        detacher.detach(attached);
        let (maps, ring, logger) = Maps::take(&mut ebpf)?;
        let _inside = runtime.enter();
        let (ring, logger) = (reader::readable(ring)?, reader::readable(logger)?);
        let tasks = [
            runtime.spawn(reader::read(ring, sender, is_live)),
            runtime.spawn(reader::log(logger)),
        ];
        let loaded = Loaded {
            ebpf,
            maps,
            hooks,
            attached: Vec::new(),
            detacher,
            tasks,
        };
        Ok(Self {
            level,
            receiver: Some(receiver),
            loaded: Some(loaded),
        })
    }

    /// The rung in use.
    #[must_use]
    pub fn level(&self) -> Level {
        self.level
    }

    /// The devices whose files are seen (`major << 20 | minor`; at most 64); replaces those given before.
    ///
    /// # Errors
    /// The kernel refused the map update.
    pub fn watch_devices(&mut self, devices: &[u32]) -> Result<(), WitnessError> {
        self.loaded
            .as_mut()
            .map_or(Ok(()), |loaded| loaded.maps.set_devices(devices))
    }

    /// Reports the opens of these processes from now on. The 1024 watched last are kept. A mount namespace other than
    /// the host's and our own is watched without being asked for once it touches a watched device.
    ///
    /// # Errors
    /// The kernel refused the map update.
    pub fn watch(&mut self, who: Watched) -> Result<(), WitnessError> {
        self.loaded
            .as_mut()
            .map_or(Ok(()), |loaded| loaded.maps.watch(who))
    }

    /// Ends [`Witness::watch`]; one that was not watched is no error.
    pub fn unwatch(&mut self, who: Watched) {
        if let Some(loaded) = &mut self.loaded {
            loaded.maps.unwatch(who);
        }
    }

    /// Opens the recording window: attaches the programs (about a millisecond; up to 0.1 s right after a detach, which
    /// it waits for). Attached already, it does nothing.
    ///
    /// # Errors
    /// The kernel refused; nothing is attached then.
    pub fn attach(&mut self) -> Result<(), WitnessError> {
        let Some(loaded) = &mut self.loaded else {
            return Ok(());
        };
        if !loaded.attached.is_empty() {
            return Ok(());
        }
        let mut attached = loaded.detacher.take_back();
        for hook in &loaded.hooks {
            if attached.iter().any(|there| there.hook == *hook) {
                continue;
            }
            match links::attach(&mut loaded.ebpf, *hook) {
                Ok(link) => attached.push(link),
                Err(error) => {
                    loaded.detacher.detach(attached);
                    return Err(error);
                }
            }
        }
        loaded.attached = attached;
        Ok(())
    }

    /// Closes the recording window. Returns at once; a thread of its own waits for the kernel. What was seen until
    /// then still comes through [`Witness::events`].
    pub fn detach(&mut self) {
        if let Some(loaded) = &mut self.loaded {
            loaded.detacher.detach(std::mem::take(&mut loaded.attached));
        }
    }

    /// The events, in the order of the kernel's ring buffer; `Some` the first time only.
    pub fn events(&mut self) -> Option<mpsc::Receiver<Event>> {
        self.receiver.take()
    }

    /// Events the kernel could not hand over since the object was loaded.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.loaded.as_ref().map_or(0, |loaded| loaded.maps.lost())
    }

    /// Forgets every first touch and whose opens are watched: each page is reported again when it is touched again.
    ///
    /// # Errors
    /// The kernel refused the map update.
    pub fn reset(&mut self) -> Result<(), WitnessError> {
        self.loaded
            .as_mut()
            .map_or(Ok(()), |loaded| loaded.maps.reset())
    }

    /// Forgets one container: its first touches, and that its opens are watched (`mnt_ns` numbers are used again by
    /// the kernel).
    ///
    /// # Errors
    /// The kernel refused the map update.
    pub fn forget(&mut self, cgroup: u64, mnt_ns: u32) -> Result<(), WitnessError> {
        self.forget_all(&[(cgroup, mnt_ns)])
    }

    /// [`Witness::forget`] of several, by cgroup and mount namespace, in one pass over the table.
    ///
    /// # Errors
    /// The kernel refused the map update.
    pub fn forget_all(&mut self, groups: &[(u64, u32)]) -> Result<(), WitnessError> {
        self.loaded
            .as_mut()
            .map_or(Ok(()), |loaded| loaded.maps.forget(groups))
    }
}
