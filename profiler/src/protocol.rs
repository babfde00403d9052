//! What the store tells the witness and the witness tells the store, as JSON over the control socket
//! (docs/formats.md, "Control socket").
//!
//! The store streams [`StoreEvent`]s, one a line; the witness answers each [`StoreEvent::Mounted`] with
//! [`Attached`], says who started as soon as that is known ([`Started`]), and hands in one [`Trace`] a container when
//! its window closes.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The slot of the layer that a file of the data mounts belongs to: the upper half of its inode number. Slots start at
/// 1, so 0 is none: the mounts' own directories.
#[must_use]
pub const fn slot_of(ino: u64) -> u32 {
    (ino >> 32) as u32
}

/// One line of the store's event stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum StoreEvent {
    /// Always the first line.
    Hello {
        /// The data mounts' devices as the kernel writes them in its events (`major << 20 | minor`).
        devices: Vec<u32>,
        /// The directory that holds the data mounts; a layer's tree is `<layers_dir>/<plain|xattr>/<slot>/diff`.
        layers_dir: PathBuf,
    },
    /// A container's overlay mount asked for the state of this layer: a start is 0.1 to 0.3 s away.
    Mounted {
        /// The number to answer with.
        window: u64,
        /// The layer's slot.
        slot: u32,
        /// When it asked: `CLOCK_MONOTONIC` in nanoseconds, the clock of the kernel's events.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at_ns: Option<u64>,
    },
}

/// The witness's answer to [`StoreEvent::Mounted`]: its programs are attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// The number of the event that is answered.
    pub window: u64,
}

/// Which programs see the touches (docs/design.md, "The witness").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The page cache's own events, Linux 6.12 and later: exact, also for a warm start.
    Tracepoints,
    /// Kprobes with offsets from BTF, Linux 5.14 to 6.11: exact.
    Kprobes,
    /// Pages entering the page cache only: includes read-ahead, blind on a warm start.
    Add,
    /// Nothing is seen.
    Off,
}

/// How a page was touched; decides which READ the kernel sends around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// By `read` and its kin, `sendfile` included.
    Read,
    /// Through a mapping.
    Map,
    /// Seen only entering the page cache (level `add`).
    Add,
}

/// A run of pages of one file, first touched at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touch {
    /// Inode number on the data mount; the store knows the layer and the file.
    pub ino: u64,
    /// First page, in pages of 4096 bytes. May lie past the end of the file: the store clamps.
    pub page: u64,
    /// Number of pages, at least 1.
    pub pages: u32,
    /// First touch in microseconds from the container's first exec; negative before it.
    pub at_us: i64,
    /// How.
    pub access: Access,
}

/// A path that a process of the container asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// As the container sees it, absolute where the process's root and directory were known.
    pub path: String,
    /// Whether it was there.
    pub found: bool,
    /// Microseconds from the container's first exec.
    pub at_us: i64,
}

/// A program that the container started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// The file as the container named it.
    pub path: String,
    /// Process id on the host.
    pub pid: u32,
    /// Microseconds from the container's first exec, which has 0.
    pub at_us: i64,
}

/// Who was recorded, from the engine's own files for the container's id; empty where they say nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// The engine's id, 64 hexadecimal digits; empty without a cgroup of its own.
    pub id: String,
    /// The image's name as the engine was asked for it.
    pub image: String,
    /// The command line; the first exec's path where the engine's files do not tell.
    pub command: Vec<String>,
    /// Kubernetes namespace, pod and container names and labels, where present.
    pub labels: std::collections::BTreeMap<String, String>,
    /// Slots of its layers, top layer first, as its overlay mount lists them.
    pub slots: Vec<u32>,
}

/// A container called its first exec, and this is who it is: what is planned for its layers can be narrowed.
///
/// Without the command line, which may hold secrets and which the profiles do not keep either.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Slots of its layers, top layer first.
    pub slots: Vec<u32>,
    /// The image's name as the engine was asked for it; empty where its files do not tell.
    pub image: String,
    /// The label of its command line ([`crate::model::workload`]).
    pub workload: String,
}

impl Started {
    /// What is said of this container.
    #[must_use]
    pub fn of(container: &Container) -> Self {
        Self {
            slots: container.slots.clone(),
            image: container.image.clone(),
            workload: crate::model::workload(&container.command),
        }
    }
}

/// One start of one container, as the witness hands it in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// Unique among all runs on all nodes: 32 hexadecimal digits.
    pub run: String,
    /// Unix time of the first exec in milliseconds.
    pub started_ms: u64,
    /// What the programs could see.
    pub level: Level,
    /// Who.
    pub container: Container,
    /// First touches in order of time.
    pub touches: Vec<Touch>,
    /// Opens in order of time.
    pub opens: Vec<Open>,
    /// Execs in order of time.
    pub execs: Vec<Exec>,
    /// Events the kernel could not hand over; with any, nothing is learned from what was not seen.
    pub lost: u64,
    /// Whether the recording was ended before the start was over: nothing is learned from what was not seen then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
}
