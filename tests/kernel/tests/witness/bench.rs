//! One rung's witness with a tree it watches, and the comparison of what it saw with what was done.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{Context as _, Result, ensure};
use forelayer_kernel_tests::trace::{Seen, collect};
use forelayer_kernel_tests::tree::{Kind, Tree, pages};
use forelayer_kernel_tests::workload::{Cgroup, Step, start};
use forelayer_profiler::protocol::{Access, Level};
use forelayer_profiler::witness::{Event, Witness, WitnessError};
use libtest_mimic::{Completion, Failed};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use crate::{LEVELS, failed, unprivileged};

/// How a test that did not fail ended.
pub(crate) enum Outcome {
    Passed,
    /// It says nothing here; why.
    Pointless(&'static str),
}

impl From<Outcome> for Completion {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Passed => Self::Completed,
            Outcome::Pointless(reason) => Self::ignored_with(reason),
        }
    }
}

/// One rung's witness, and a tree it watches.
pub(crate) struct Bench {
    pub(crate) level: Level,
    pub(crate) runtime: Runtime,
    pub(crate) witness: Witness,
    pub(crate) events: mpsc::Receiver<Event>,
    pub(crate) tree: Tree,
    // Removed after the tree is unmounted.
    _directory: tempfile::TempDir,
}

/// Whether a rung is there; the reason if not.
pub(crate) fn available(level: Level) -> Result<(), String> {
    static FOUND: OnceLock<Mutex<BTreeMap<&'static str, Result<(), String>>>> = OnceLock::new();
    let name = LEVELS
        .iter()
        .find(|(_, known)| *known == level)
        .map_or("off", |(name, _)| name);
    let mut found = FOUND
        .get_or_init(Mutex::default)
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    found
        .entry(name)
        .or_insert_with(|| match Runtime::new() {
            Ok(runtime) => {
                let _inside = runtime.enter();
                Witness::load(Some(level))
                    .map(drop)
                    .map_err(|error| match error {
                        WitnessError::NoLevel { reasons, .. } => reasons,
                        other => other.to_string(),
                    })
            }
            Err(error) => Err(error.to_string()),
        })
        .clone()
}

/// Runs a test on a rung, on a new window.
pub(crate) fn on(
    bench: &Mutex<Option<Bench>>,
    level: Level,
    run: fn(&mut Bench) -> Result<Outcome>,
) -> Result<Completion, Failed> {
    if let Some(reason) = unprivileged() {
        return Ok(Completion::ignored_with(reason));
    }
    if let Err(reason) = available(level) {
        return Ok(Completion::ignored_with(reason));
    }
    let mut bench = bench.lock().unwrap_or_else(PoisonError::into_inner);
    if bench.as_ref().is_none_or(|bench| bench.level != level) {
        // Two witnesses at a time would each see everything, but pay for it twice.
        *bench = None;
        *bench = Some(Bench::new(level).map_err(failed)?);
    }
    let bench = bench.as_mut().ok_or("no bench")?;
    bench
        .new_window()
        .and_then(|()| run(bench))
        .map_err(failed)
        .map(Completion::from)
}

impl Bench {
    fn new(level: Level) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let tree = Tree::mount(directory.path())?;
        let runtime = Runtime::new()?;
        let mut witness = {
            let _inside = runtime.enter();
            Witness::load(Some(level))?
        };
        ensure!(
            witness.level() == level,
            "asked for {level:?}, got {:?}",
            witness.level()
        );
        let events = witness.events().context("the events were taken already")?;
        witness.watch_devices(&[tree.device()])?;
        Ok(Self {
            level,
            runtime,
            witness,
            events,
            tree,
            _directory: directory,
        })
    }

    pub(crate) fn new_window(&mut self) -> Result<()> {
        self.witness.reset()?;
        self.witness.attach()?;
        Ok(())
    }

    /// Whether the rung sees every touch and nothing else.
    pub(crate) fn is_exact(&self) -> bool {
        self.level != Level::Add
    }

    /// Runs one child in a cgroup of its own: what was seen of it.
    pub(crate) fn run(&mut self, steps: &[Step]) -> Result<Seen> {
        let cgroup = Cgroup::new()?;
        self.run_in(&cgroup, steps)
    }

    pub(crate) fn run_in(&mut self, cgroup: &Cgroup, steps: &[Step]) -> Result<Seen> {
        let lost = self.witness.lost();
        let mut child = start(cgroup, steps)?;
        let status = child.wait()?;
        ensure!(status.success(), "the child ended with {status}");
        let mut all = self.runtime.block_on(collect(
            &mut self.events,
            self.tree.device(),
            vec![child.id()],
        ))?;
        ensure!(
            self.witness.lost() == lost,
            "{} events were lost",
            self.witness.lost() - lost
        );
        Ok(all.remove(&cgroup.id()).unwrap_or_default())
    }

    /// Compares what was seen of a file with what was done: equal on the exact rungs, contained in it on `add`, which
    /// also sees what the kernel reads ahead.
    pub(crate) fn compare(
        &self,
        seen: &Seen,
        ino: u64,
        kind: Kind,
        done: &BTreeMap<u64, Access>,
    ) -> Result<()> {
        let seen = seen.pages(ino, pages(kind));
        if self.is_exact() {
            ensure!(seen == *done, "seen {}, done {}", show(&seen), show(done));
        } else {
            ensure!(
                seen.values().all(|access| *access == Access::Add),
                "seen {}",
                show(&seen)
            );
            let missing: BTreeMap<_, _> = done
                .iter()
                .filter(|(page, _)| !seen.contains_key(page))
                .map(|(page, access)| (*page, *access))
                .collect();
            ensure!(
                missing.is_empty(),
                "not seen {}, seen {}",
                show(&missing),
                show(&seen)
            );
        }
        Ok(())
    }

    /// Does it on a file nobody has touched, then again in a new window, when every page is in memory: the exact rungs
    /// see the same, `add` nothing.
    pub(crate) fn cold_and_warm(
        &mut self,
        steps: &[Step],
        ino: u64,
        kind: Kind,
        done: &BTreeMap<u64, Access>,
    ) -> Result<()> {
        let cold = self.run(steps)?;
        self.compare(&cold, ino, kind, done).context("cold")?;
        self.new_window()?;
        let warm = self.run(steps)?;
        if self.is_exact() {
            self.compare(&warm, ino, kind, done).context("warm")
        } else {
            ensure!(
                warm.touches.is_empty(),
                "seen {:?}, though nothing entered the page cache",
                warm.touches
            );
            Ok(())
        }
    }
}

pub(crate) fn range(access: Access, parts: &[Range<u64>]) -> BTreeMap<u64, Access> {
    parts
        .iter()
        .cloned()
        .flatten()
        .map(|page| (page, access))
        .collect()
}

/// Runs of pages, short enough to read.
pub(crate) fn show(pages: &BTreeMap<u64, Access>) -> String {
    let mut runs: Vec<(u64, u64, Access)> = Vec::new();
    for (&page, &access) in pages {
        match runs.last_mut() {
            Some((_, last, same)) if *last + 1 == page && *same == access => *last = page,
            _ => runs.push((page, page, access)),
        }
    }
    let runs: Vec<_> = runs
        .iter()
        .map(|(first, last, access)| format!("{first}-{last} {access:?}"))
        .collect();
    format!("[{}]", runs.join(", "))
}
