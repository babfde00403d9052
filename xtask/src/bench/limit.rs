//! T*, the time before which no start can be ready (docs/benchmarks.md, "The limit").

use std::collections::HashMap;

use anyhow::{Context as _, Result, ensure};
use forelayer::format::LayerIndex;
use forelayer_profiler::model::{PAGE, Profile, Run};
use forelayer_tests::engine::store::Store;
use serde::Serialize;

use super::stats::median;

/// Round trips before the first byte of a layer can come: the engine's three, then manifest, TOC and the first range.
const ROUND_TRIPS: f64 = 6.0;

/// The limit and what it was computed from. Times in seconds, bytes compressed.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Limit {
    /// T*.
    pub(super) t_star: f64,
    /// From the start of the pull to the first exec, everything local and warm.
    pub(super) g: f64,
    /// From the first exec to ready, everything local and warm.
    pub(super) t_w: f64,
    /// Before the first byte of a layer can come.
    l0: f64,
    /// Bytes a second.
    bandwidth: f64,
    /// G and T_w of each start that this is the median of.
    pub(super) warm: Vec<(f64, f64)>,
    /// Compressed bytes of all chunks that are needed.
    pub(super) bytes: u64,
    /// Chunks in the order in which they are first needed: seconds from the pull's start, bytes up to it.
    pub(super) needs: Vec<(f64, u64)>,
}

/// A chunk that a start needs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Need {
    /// Seconds from the first exec.
    pub(super) at: f64,
    pub(super) bytes: u64,
}

/// What the witness recorded of a start with everything local and warm.
#[derive(Debug, Clone)]
pub(super) struct Warm {
    g: f64,
    t_w: f64,
    /// In any order.
    needs: Vec<Need>,
}

/// T* of needs in any order.
pub(super) fn t_star(g: f64, t_w: f64, l0: f64, bandwidth: f64, needs: &mut [Need]) -> f64 {
    needs.sort_by(|a, b| a.at.total_cmp(&b.at));
    let mut bytes = 0_u64;
    let needs = needs.iter().map(|need| {
        bytes += need.bytes;
        (need.at, bytes)
    });
    in_order(g, t_w, l0, bandwidth, needs)
}

/// T* of needs by time (from the first exec), with the bytes up to each.
fn in_order(
    g: f64,
    t_w: f64,
    l0: f64,
    bandwidth: f64,
    needs: impl Iterator<Item = (f64, u64)>,
) -> f64 {
    needs.fold(g + t_w, |limit, (at, bytes)| {
        #[expect(clippy::cast_precision_loss, reason = "bytes of an image")]
        let came = l0 + bytes as f64 / bandwidth;
        limit.max(came + (t_w - at).max(0.0))
    })
}

impl Limit {
    /// From the warm starts of a case: medians of G and T_w, the needs of the start whose T_w is nearest to its median.
    /// `latency` in seconds, `bandwidth` in bytes a second.
    pub(super) fn of(warm: &[Warm], latency: f64, bandwidth: f64) -> Result<Self> {
        let g = median(&warm.iter().map(|warm| warm.g).collect::<Vec<_>>());
        let t_w = median(&warm.iter().map(|warm| warm.t_w).collect::<Vec<_>>());
        let away = |warm: &Warm| (warm.t_w - t_w).abs();
        let nearest = (warm.iter())
            .min_by(|a, b| away(a).total_cmp(&away(b)))
            .context("no warm start")?;
        let l0 = ROUND_TRIPS * latency;
        let mut needs = nearest.needs.clone();
        let t_star = t_star(g, t_w, l0, bandwidth, &mut needs);
        let mut bytes = 0;
        let needs = needs
            .into_iter()
            .map(|need| {
                bytes += need.bytes;
                (g + need.at, bytes)
            })
            .collect();
        Ok(Self {
            t_star,
            g,
            t_w,
            l0,
            bandwidth,
            warm: warm.iter().map(|warm| (warm.g, warm.t_w)).collect(),
            bytes,
            needs,
        })
    }

    /// T* if G and T_w were these.
    pub(super) fn with(&self, g: f64, t_w: f64) -> f64 {
        let needs = (self.needs.iter()).map(|&(at, bytes)| (at - self.g, bytes));
        in_order(g, t_w, self.l0, self.bandwidth, needs)
    }
}

/// The newest recorded start of the store, whose pull began at `begun` (Unix time) and which was `ready` so long after.
pub(super) fn recorded(store: &Store<'_>, begun: f64, ready: f64) -> Result<Warm> {
    let runs = runs(store)?;
    let newest = runs.into_iter().max_by_key(|run| run.started_ms);
    let newest = newest.context("no start was recorded")?;
    warm(store, &[newest], begun, ready)
}

/// Starts made at once as one: all that were recorded since `begun` (Unix time), `count` of them, all ready so long
/// after. It needs what any of them needs, when the first of them needs it.
pub(super) fn joint(store: &Store<'_>, begun: f64, ready: f64, count: usize) -> Result<Warm> {
    let mut runs = runs(store)?;
    runs.retain(|run| unix(run) > begun);
    ensure!(
        runs.len() == count,
        "{} starts of {count} were recorded",
        runs.len()
    );
    warm(store, &runs, begun, ready)
}

/// All runs that the store's profiles hold.
fn runs(store: &Store<'_>) -> Result<Vec<Run>> {
    let mut runs = Vec::new();
    for profile in store.profiles()? {
        runs.extend(Profile::from_json(&serde_json::to_vec(&profile)?)?.runs);
    }
    Ok(runs)
}

/// When a run's first program began, in Unix time.
fn unix(run: &Run) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970")]
    let milliseconds = run.started_ms as f64;
    milliseconds / 1e3
}

fn warm(store: &Store<'_>, runs: &[Run], begun: f64, ready: f64) -> Result<Warm> {
    let first = runs.iter().map(unix).min_by(f64::total_cmp);
    let first = first.context("no start was recorded")?;
    let g = first - begun;
    ensure!(
        g > 0.0 && g < ready,
        "the first exec came {g} s after the pull's start, ready after {ready} s"
    );
    let mut needs = Needs::default();
    for run in runs {
        needs.add(store, run, unix(run) - first)?;
    }
    Ok(Warm {
        g,
        t_w: ready - g,
        needs: needs.first.into_values().collect(),
    })
}

/// The chunks that hold the touched pages of runs, each with its first touch.
#[derive(Default)]
struct Needs {
    indexes: HashMap<String, LayerIndex>,
    first: HashMap<(String, u64), Need>,
}

impl Needs {
    /// Takes a run in, whose first program began so many seconds after the first of all.
    fn add(&mut self, store: &Store<'_>, run: &Run, later: f64) -> Result<()> {
        for file in &run.files {
            let Some(layer) = file.layer else { continue };
            let layer = layer.to_string();
            if !self.indexes.contains_key(&layer) {
                let hex = layer.trim_start_matches("sha256:");
                let path = store
                    .state_dir()
                    .join("blobs/sha256")
                    .join(hex)
                    .join("index");
                (self.indexes).insert(layer.clone(), LayerIndex::open(&path, false)?);
            }
            let index = &self.indexes[&layer];
            let Some(node) = index.find(file.path.as_bytes())? else {
                continue;
            };
            for range in &file.ranges {
                let end = (range.end() * PAGE).min(file.size);
                for chunk in index.chunks_covering(node, range.page * PAGE..end)? {
                    let Some(chunk) = index.chunk(chunk)?.filter(|chunk| !chunk.zeros) else {
                        continue;
                    };
                    #[expect(clippy::cast_precision_loss, reason = "microseconds of a start")]
                    let at = later + range.at_us as f64 / 1e6;
                    // Chunks of one gzip member come together.
                    let need = self
                        .first
                        .entry((layer.clone(), chunk.span.start))
                        .or_insert(Need {
                            at,
                            bytes: chunk.span.end - chunk.span.start,
                        });
                    need.at = need.at.min(at);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn need(at: f64, bytes: u64) -> Need {
        Need { at, bytes }
    }

    fn is(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-9, "{a} is not {b}");
    }

    #[test]
    fn a_start_of_few_bytes_is_bound_by_its_work() {
        is(t_star(0.5, 2.0, 0.3, 1e6, &mut [need(1.0, 1000)]), 2.5);
        is(t_star(0.5, 2.0, 0.3, 1e6, &mut []), 2.5);
    }

    #[test]
    fn a_start_of_many_bytes_is_bound_by_the_link_and_by_what_follows_the_last() {
        // 3 MB needed 1.9 s into a start of 2 s: 0.3 + 3 + 0.1.
        is(t_star(0.5, 2.0, 0.3, 1e6, &mut [need(1.9, 3_000_000)]), 3.4);
        // The same bytes needed at once: everything is still to be done after them.
        is(t_star(0.5, 2.0, 0.3, 1e6, &mut [need(0.0, 3_000_000)]), 5.3);
        // In whatever order they are given.
        let mut needs = [need(1.9, 2_000_000), need(0.0, 1_000_000)];
        is(t_star(0.5, 2.0, 0.3, 1e6, &mut needs), 3.4);
    }

    impl Warm {
        /// A start that needs nothing.
        pub(in crate::bench) fn new(g: f64, t_w: f64) -> Self {
            let needs = Vec::new();
            Self { g, t_w, needs }
        }
    }

    #[test]
    fn a_limit_has_medians_and_the_needs_of_the_start_in_the_middle() {
        let warm = |g, t_w, bytes| Warm {
            g,
            t_w,
            needs: vec![need(0.5, bytes), need(0.0, bytes)],
        };
        let starts = [warm(0.3, 2.0, 1), warm(0.4, 1.0, 2), warm(0.9, 1.2, 3)];
        let limit = Limit::of(&starts, 0.05, 1e6).expect("a limit");
        is(limit.g, 0.4);
        is(limit.t_w, 1.2);
        is(limit.t_star, 1.6);
        assert_eq!(limit.needs, [(0.4, 3), (0.9, 6)]);
        is(limit.with(0.4, 1.2), limit.t_star);
        is(limit.with(0.5, 2.0), 2.5);
        assert!(Limit::of(&[], 0.05, 1e6).is_err());
    }
}
