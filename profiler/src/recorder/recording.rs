//! One container while it is recorded.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    path::Path,
};

use super::{Bounds, ranges::Ranges};
use crate::{
    attribution::Identity,
    protocol::{Access, Container, Exec, Level, Open, Touch, Trace, slot_of},
    witness::Origin,
};

/// A touch with the kernel's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RawTouch {
    pub(super) at_ns: u64,
    pub(super) pid: u32,
    pub(super) ino: u64,
    pub(super) page: u64,
    pub(super) pages: u32,
    pub(super) access: Access,
}

/// A container whose first exec was seen.
#[derive(Debug)]
pub(super) struct Recording {
    pub(super) id: u64,
    /// Who called its first exec.
    pub(super) origin: Origin,
    /// Unix time of that.
    started_ms: u64,
    /// Whether the first process has a pid namespace of its own: with it the container ends.
    pub(super) first: bool,
    /// Device of its root, while known.
    pub(super) overlay: Option<u32>,
    /// Whether it is ended before its time.
    pub(super) cut: bool,
    /// What became known of it; nothing until then.
    pub(super) identity: Option<Identity>,
    /// Layers, for asking quickly.
    slots: BTreeSet<u32>,
    /// Events lost before it started.
    lost_before: u64,
    /// When something was first touched the last time.
    pub(super) last_ns: u64,
    /// When to look again whether it has ended.
    pub(super) look_ns: Option<u64>,
    /// When to stop looking.
    pub(super) look_until_ns: u64,
    seen: HashMap<u64, Ranges>,
    touches: Vec<RawTouch>,
    opened: HashSet<(String, bool)>,
    opens: Vec<(u64, Open)>,
    execs: Vec<(u64, Exec)>,
    dropped: u64,
}

impl Recording {
    pub(super) fn new(id: u64, origin: Origin, started_ms: u64, lost_before: u64) -> Self {
        Self {
            id,
            origin,
            started_ms,
            first: false,
            overlay: None,
            cut: false,
            identity: None,
            slots: BTreeSet::new(),
            lost_before,
            last_ns: origin.ktime_ns,
            look_ns: None,
            look_until_ns: 0,
            seen: HashMap::new(),
            touches: Vec::new(),
            opened: HashSet::new(),
            opens: Vec::new(),
            execs: Vec::new(),
            dropped: 0,
        }
    }

    /// It became known who it is. Where the engine's files do not tell its command, that is its first exec.
    pub(super) fn identify(&mut self, mut identity: Identity, lost_before: u64) {
        let command = &mut identity.container.command;
        if command.is_empty() {
            command.extend(self.execs.first().map(|(_, exec)| exec.path.clone()));
        }
        self.slots = identity.container.slots.iter().copied().collect();
        self.overlay = Some(identity.overlay);
        self.lost_before = lost_before;
        self.identity = Some(identity);
    }

    pub(super) fn slots(&self) -> &BTreeSet<u32> {
        &self.slots
    }

    pub(super) fn touch(&mut self, touch: RawTouch, bounds: &Bounds) {
        let new = self
            .seen
            .entry(touch.ino)
            .or_default()
            .insert(touch.page, touch.pages);
        if !new.is_empty() {
            self.last_ns = self.last_ns.max(touch.at_ns);
        }
        for (start, end) in new {
            if self.touches.len() >= bounds.touches {
                self.dropped += 1;
                continue;
            }
            self.touches.push(RawTouch {
                page: start,
                // Part of a run whose length is a u32.
                pages: u32::try_from(end - start).unwrap_or(u32::MAX),
                ..touch
            });
        }
    }

    /// A path that a process of the container asked for, after its first exec: what the runtime opens before is the
    /// host's. Kernel file systems are never a layer's.
    pub(super) fn open(&mut self, at_ns: u64, path: &Path, found: bool, bounds: &Bounds) {
        let kernel = ["/proc", "/sys", "/dev"]
            .iter()
            .any(|top| path.starts_with(top));
        if at_ns < self.origin.ktime_ns || kernel {
            return;
        }
        // Names that are no text occur, but neither the profile nor the prefetch could write them down.
        let Some(path) = path.to_str() else { return };
        if self.opens.len() >= bounds.opens {
            self.dropped += 1;
            return;
        }
        if self.opened.insert((path.to_owned(), found)) {
            let open = Open {
                path: path.to_owned(),
                found,
                at_us: 0,
            };
            self.opens.push((at_ns, open));
        }
    }

    pub(super) fn into_touches(self) -> Vec<RawTouch> {
        self.touches
    }

    pub(super) fn exec(&mut self, at_ns: u64, pid: u32, path: &Path, bounds: &Bounds) {
        if self.execs.len() >= bounds.execs {
            self.dropped += 1;
            return;
        }
        let exec = Exec {
            path: path.to_string_lossy().into_owned(),
            pid,
            at_us: 0,
        };
        self.execs.push((at_ns, exec));
    }

    /// The whole of it; nothing if it never became known.
    pub(super) fn finish(self, run: String, level: Level, lost: u64) -> Option<Trace> {
        let zero = self.origin.ktime_ns;
        let Container {
            id,
            image,
            command,
            labels,
            slots,
        } = self.identity?.container;
        let mut touches: Vec<Touch> = self
            .touches
            .into_iter()
            .filter(|touch| self.slots.contains(&slot_of(touch.ino)))
            .map(|touch| Touch {
                ino: touch.ino,
                page: touch.page,
                pages: touch.pages,
                at_us: micros(touch.at_ns, zero),
                access: touch.access,
            })
            .collect();
        touches.sort_by_key(|touch| touch.at_us);
        let mut opens: Vec<Open> = self
            .opens
            .into_iter()
            .map(|(at_ns, open)| Open {
                at_us: micros(at_ns, zero),
                ..open
            })
            .collect();
        opens.sort_by_key(|open| open.at_us);
        let mut execs: Vec<Exec> = self
            .execs
            .into_iter()
            .map(|(at_ns, exec)| Exec {
                at_us: micros(at_ns, zero),
                ..exec
            })
            .collect();
        execs.sort_by_key(|exec| exec.at_us);
        Some(Trace {
            run,
            started_ms: self.started_ms,
            level,
            container: Container {
                id,
                image,
                command,
                labels,
                slots,
            },
            touches,
            opens,
            execs,
            lost: lost.saturating_sub(self.lost_before) + self.dropped,
            cut: self.cut,
        })
    }
}

/// Microseconds from `zero`, rounded down.
fn micros(at_ns: u64, zero: u64) -> i64 {
    // Both are nanoseconds since the machine started: the difference fits for 292 years.
    let nanos = i128::from(at_ns) - i128::from(zero);
    i64::try_from(nanos.div_euclid(1000)).unwrap_or(i64::MAX)
}
