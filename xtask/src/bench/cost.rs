//! What a start cost the store: its own counts, and the kernel's of its processes.

use std::{collections::BTreeMap, fs};

use anyhow::{Context as _, Result};
use forelayer_tests::engine::store::Store;
use serde::Serialize;

/// Ticks a second of /proc/PID/stat: USER_HZ, the same on every architecture that we build for.
const TICKS: f64 = 100.0;

/// What a process used.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Cost {
    pub(super) process: String,
    /// Processor seconds, the kernel's for it included; known to a hundredth.
    pub(super) cpu: f64,
    /// Resident memory at the most, in bytes, since the process began.
    pub(super) peak: u64,
}

/// Processes whose use is to be known from now on: one, and those that it had started by then. What of these has ended
/// before it is read (the store's warmer lives for a moment) has no figures any more.
#[derive(Debug)]
pub(super) struct Meters {
    first: Meter,
    children: Vec<Meter>,
}

#[derive(Debug)]
struct Meter {
    process: String,
    id: u32,
    before: f64,
}

impl Meters {
    pub(super) fn new(process: &str, id: u32) -> Result<Self> {
        let first = Meter::new(process.to_owned(), id)?;
        let children = children(id)?.into_iter();
        let children =
            children.filter_map(|child| Meter::new(format!("{process}'s {child}"), child).ok());
        Ok(Self {
            first,
            children: children.collect(),
        })
    }

    /// Of the one itself, since [`Meters::new`].
    pub(super) fn first(&self) -> Result<Cost> {
        self.first.read()
    }

    /// Of all that are still there.
    pub(super) fn read(&self) -> Result<Vec<Cost>> {
        let mut costs = vec![self.first()?];
        costs.extend(self.children.iter().filter_map(|child| child.read().ok()));
        Ok(costs)
    }
}

impl Meter {
    fn new(process: String, id: u32) -> Result<Self> {
        let before = cpu(id)?;
        Ok(Self {
            process,
            id,
            before,
        })
    }

    fn read(&self) -> Result<Cost> {
        let path = format!("/proc/{}/status", self.id);
        let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        Ok(Cost {
            process: self.process.clone(),
            cpu: cpu(self.id)? - self.before,
            peak: peak(&status).with_context(|| format!("{path} names no VmHWM"))?,
        })
    }
}

/// The processes whose parent is this one.
pub(super) fn children(id: u32) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(other) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // One that has ended meanwhile is nobody's.
        let stat = fs::read_to_string(format!("/proc/{other}/stat")).unwrap_or_default();
        if parent(&stat) == Some(id) {
            found.push(other);
        }
    }
    Ok(found)
}

/// The parent in a line of /proc/PID/stat: the second field behind the name.
fn parent(stat: &str) -> Option<u32> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

fn cpu(id: u32) -> Result<f64> {
    let path = format!("/proc/{id}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    used(&stat).with_context(|| format!("{path} cannot be read"))
}

/// utime and stime of a line of /proc/PID/stat, in seconds.
fn used(stat: &str) -> Option<f64> {
    // The name in parentheses may hold blanks; the two are fields 14 and 15, 12 and 13 of those behind it.
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |field: usize| fields.get(field)?.parse::<f64>().ok();
    Some((ticks(11)? + ticks(12)?) / TICKS)
}

/// VmHWM of /proc/PID/status, in bytes.
fn peak(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// The store's counts when the program was ready; of predictions when the recording was over.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Counts {
    /// Seconds that READs waited for chunks, summed over all that waited.
    pub(super) stalled: f64,
    /// READs that waited.
    pub(super) misses: u64,
    /// By lane.
    pub(super) requests: BTreeMap<String, u64>,
    /// Compressed bytes by lane, and those between wanted chunks (`gap`).
    pub(super) bytes: BTreeMap<String, u64>,
    pub(super) chunks: BTreeMap<String, u64>,
    /// Predicted chunks by what became of them: `used`, `late`, `waste`.
    pub(super) predictions: BTreeMap<String, u64>,
}

impl Counts {
    /// As the store tells them now.
    pub(super) fn read(store: &Store<'_>) -> Result<Self> {
        let page = store.get("/metrics")?;
        Ok(Self {
            stalled: plain(&page, "forelayer_stall_microseconds_total")? / 1e6,
            misses: count(plain(&page, "forelayer_cache_misses_total")?),
            requests: labelled(&page, "forelayer_requests_total"),
            bytes: labelled(&page, "forelayer_fetched_bytes_total"),
            chunks: labelled(&page, "forelayer_chunks_total"),
            predictions: labelled(&page, "forelayer_predictions_total"),
        })
    }

    /// Takes in what is known only when the recording is over, which began at `before`.
    pub(super) fn judge(&mut self, store: &Store<'_>, before: &Self) -> Result<()> {
        self.predictions = less(Self::read(store)?.predictions, &before.predictions);
        Ok(())
    }

    /// What was counted from `before` to now.
    pub(super) fn since(self, before: &Self) -> Self {
        Self {
            stalled: self.stalled - before.stalled,
            misses: self.misses.saturating_sub(before.misses),
            requests: less(self.requests, &before.requests),
            bytes: less(self.bytes, &before.bytes),
            chunks: less(self.chunks, &before.chunks),
            predictions: less(self.predictions, &before.predictions),
        }
    }

    /// Predicted chunks with this end.
    pub(super) fn predicted(&self, outcome: &str) -> u64 {
        self.predictions.get(outcome).copied().unwrap_or_default()
    }
}

fn plain(page: &str, name: &str) -> Result<f64> {
    page.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
        .with_context(|| format!("there is no metric {name}"))
}

/// The values of a metric with one label, by that label's value.
fn labelled(page: &str, name: &str) -> BTreeMap<String, u64> {
    let one = |line: &str| {
        let (labels, value) = line
            .strip_prefix(name)?
            .strip_prefix('{')?
            .split_once("} ")?;
        let label = labels.split('"').nth(1)?.to_owned();
        Some((label, count(value.parse().ok()?)))
    };
    page.lines().filter_map(one).collect()
}

fn less(mut now: BTreeMap<String, u64>, before: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    for (label, value) in &mut now {
        *value = value.saturating_sub(before.get(label).copied().unwrap_or_default());
    }
    now
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts far below 2^53"
)]
fn count(value: f64) -> u64 {
    value as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_figures_are_read() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4 100 0 0 0 250 50 3 4 20 0 9 0 1 2 3";
        assert_eq!(used(stat), Some(3.0));
        assert_eq!(peak("VmPeak:\t 9 kB\nVmHWM:\t  20 kB\n"), Some(20480));
        assert_eq!(parent(stat), Some(1));
        let own = Meters::new("own", std::process::id()).expect("a family");
        let cost = own.first().expect("figures");
        assert!(cost.peak > 0 && cost.cpu >= 0.0);
    }

    #[test]
    fn a_child_that_has_ended_has_no_figures_and_its_parent_has() {
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .expect("a child");
        let own = Meters::new("own", std::process::id()).expect("a family");
        let name = format!("own's {}", child.id());
        let names = || -> Vec<String> {
            let costs = own.read().expect("figures").into_iter();
            costs.map(|cost| cost.process).collect()
        };
        assert!(names().contains(&name));
        drop(child.stdin.take());
        child.wait().expect("its end");
        assert!(names().contains(&"own".to_owned()) && !names().contains(&name));
    }

    #[test]
    fn metrics_are_read_by_label() {
        let page = "# HELP a_total x\na_total{lane=\"demand\"} 3\na_total{lane=\"gap\"} 4\nab_total{lane=\"demand\"} 5\nb 7\n";
        let found: Vec<_> = labelled(page, "a_total").into_iter().collect();
        assert_eq!(found, [("demand".to_owned(), 3), ("gap".to_owned(), 4)]);
        assert!(plain(page, "b").is_ok_and(|value| value > 6.0));
        let before = labelled("a_total{lane=\"gap\"} 1\n", "a_total");
        let since: Vec<_> = less(labelled(page, "a_total"), &before)
            .into_values()
            .collect();
        assert_eq!(since, [3, 3]);
    }
}
