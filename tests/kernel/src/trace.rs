//! What the witness saw, by container.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use forelayer_profiler::protocol::Access;
use forelayer_profiler::witness::Event;
use tokio::sync::mpsc;

/// How long an event may take before the test fails: it is the end of a wait for something that never comes.
const PATIENCE: Duration = Duration::from_secs(60);

/// What one container did, as events.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Seen {
    /// By inode number: the pages touched, and how each was touched first.
    pub touches: BTreeMap<u64, BTreeMap<u64, Access>>,
    /// Paths opened, with the call's result.
    pub opens: Vec<(PathBuf, i32)>,
    /// Programs started.
    pub execs: Vec<PathBuf>,
    /// Processes made (by their parent in the container) and ended.
    pub exits: Vec<u32>,
}

impl Seen {
    /// Touches of one file, as far as it reaches: what the kernel announces beyond its end is cut, as the store does.
    #[must_use]
    pub fn pages(&self, ino: u64, file_pages: u64) -> BTreeMap<u64, Access> {
        let pages = self.touches.get(&ino).cloned().unwrap_or_default();
        pages
            .into_iter()
            .filter(|(page, _)| *page < file_pages)
            .collect()
    }
}

/// Takes events until each of these processes has ended, and sorts them by cgroup.
///
/// # Errors
/// The events ended, or did not come.
pub async fn collect(
    events: &mut mpsc::Receiver<Event>,
    device: u32,
    mut processes: Vec<u32>,
) -> Result<BTreeMap<u64, Seen>> {
    let mut all: BTreeMap<u64, Seen> = BTreeMap::new();
    while !processes.is_empty() {
        let event = tokio::time::timeout(PATIENCE, events.recv())
            .await
            .with_context(|| format!("the end of the processes {processes:?} was not reported"))?
            .context("the witness ended")?;
        match event {
            Event::Touch {
                origin,
                dev,
                ino,
                page,
                pages,
                access,
            } => {
                if dev != device {
                    bail!("an event of device {dev:#x}, which nobody watches");
                }
                let file = all
                    .entry(origin.cgroup)
                    .or_default()
                    .touches
                    .entry(ino)
                    .or_default();
                for page in page..page + u64::from(pages) {
                    file.entry(page).or_insert(access);
                }
            }
            Event::Open {
                origin,
                path,
                result,
                ..
            } => {
                all.entry(origin.cgroup)
                    .or_default()
                    .opens
                    .push((path, result));
            }
            Event::Exec { origin, path } => all.entry(origin.cgroup).or_default().execs.push(path),
            Event::Fork { .. } => {}
            Event::Exit { origin } => {
                all.entry(origin.cgroup).or_default().exits.push(origin.pid);
                processes.retain(|process| *process != origin.pid);
            }
        }
    }
    Ok(all)
}
