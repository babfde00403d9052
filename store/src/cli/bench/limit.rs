//! T*, about: the time before which no start of this image can be ready over this link (docs/benchmarks.md, "The limit"
//! and "Your own image").

use std::collections::{HashMap, hash_map::Entry};

use anyhow::{Context as _, ensure};
use forelayer::{config::Config, digest::Digest, format::LayerIndex};
use forelayer_profiler::{
    model::{PAGE, Run},
    profiles::ProfileDir,
};
use serde::Serialize;

/// Round trips before the first byte of a layer can come: the engine's three, then manifest, TOC and the first range.
const ROUND_TRIPS: f64 = 6.0;

/// What is known of the way to the registry.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Link {
    /// Seconds; none where no connection could be made.
    pub(super) round_trip: Option<f64>,
    /// Bytes a second that came through it; it may carry more.
    pub(super) rate: f64,
}

/// The limit and what it was computed from, in seconds.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Limit {
    /// T*.
    pub(super) t_star: f64,
    /// From the beginning of the pull to the first exec, everything local and warm.
    pub(super) g: f64,
    /// From the first exec to ready, everything local and warm.
    pub(super) t_w: f64,
    /// Compressed bytes of the chunks that the start needs.
    pub(super) bytes: u64,
    /// How many these are.
    pub(super) chunks: usize,
    pub(super) link: Link,
}

/// A chunk that a start needs, with the first time at which it does, in seconds from the first exec.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Need {
    at: f64,
    bytes: u64,
}

/// The limit of the newest start that a store recorded, whose pull began at `begun` (Unix time) and which was ready so
/// many seconds later.
pub(super) fn of(config: &Config, begun: f64, ready: f64, link: Link) -> anyhow::Result<Limit> {
    let dir = ProfileDir::open_read_only(&config.profiles_dir())?;
    let files: Vec<_> = dir.list().into_iter().map(|listed| listed.file).collect();
    let profiles = dir.load_all(files.iter().map(String::as_str));
    let run = (profiles.iter())
        .flat_map(|profile| &profile.runs)
        .max_by_key(|run| run.started_ms)
        .context("no start was recorded")?;
    let g = run.started_ms as f64 / 1e3 - begun;
    ensure!(
        g > 0.0 && g < ready,
        "the first exec came {g:.3} s after the beginning of the pull, ready {ready:.3} s after it: was the clock set?"
    );
    let t_w = ready - g;
    let mut needs = needs(config, run)?;
    let l0 = ROUND_TRIPS * link.round_trip.unwrap_or_default();
    Ok(Limit {
        t_star: t_star(g, t_w, l0, link.rate, &mut needs),
        g,
        t_w,
        bytes: needs.iter().map(|need| need.bytes).sum(),
        chunks: needs.len(),
        link,
    })
}

/// T* of needs in any order, by the formula of docs/benchmarks.md.
fn t_star(g: f64, t_w: f64, l0: f64, rate: f64, needs: &mut [Need]) -> f64 {
    needs.sort_by(|a, b| a.at.total_cmp(&b.at));
    let mut bytes = 0_u64;
    needs.iter().fold(g + t_w, |limit, need| {
        bytes += need.bytes;
        // What is needed after ready is not waited for.
        let left = t_w - need.at;
        if left < 0.0 {
            return limit;
        }
        limit.max(l0 + bytes as f64 / rate + left)
    })
}

/// The chunks that hold the touched pages of a run. Chunks of one gzip member come together and count once.
fn needs(config: &Config, run: &Run) -> anyhow::Result<Vec<Need>> {
    let mut indexes: HashMap<Digest, LayerIndex> = HashMap::new();
    let mut first: HashMap<(Digest, u64), Need> = HashMap::new();
    for file in &run.files {
        let Some(layer) = file.layer else { continue };
        let index = match indexes.entry(layer) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(none) => none.insert(open(config, &layer)?),
        };
        let Some(node) = index.find(file.path.as_bytes())? else {
            continue;
        };
        for range in &file.ranges {
            let end = range.end().saturating_mul(PAGE).min(file.size);
            for chunk in index.chunks_covering(node, range.page * PAGE..end)? {
                let Some(chunk) = index.chunk(chunk)?.filter(|chunk| !chunk.zeros) else {
                    continue;
                };
                let at = range.at_us as f64 / 1e6;
                let bytes = chunk.span.end - chunk.span.start;
                let need = first
                    .entry((layer, chunk.span.start))
                    .or_insert(Need { at, bytes });
                need.at = need.at.min(at);
            }
        }
    }
    Ok(first.into_values().collect())
}

fn open(config: &Config, layer: &Digest) -> anyhow::Result<LayerIndex> {
    let name = layer.to_string().replace(':', "/");
    let path = config.state_dir.join("blobs").join(name).join("index");
    LayerIndex::open(&path, false).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is(t_star: f64, seconds: f64) {
        assert!((t_star - seconds).abs() < 1e-9, "{t_star} is not {seconds}");
    }

    /// Of a start of 0.5 + 2 s over a link of 1 MB/s.
    fn limit(needs: &[(f64, u64)]) -> f64 {
        let mut needs: Vec<_> = (needs.iter())
            .map(|&(at, bytes)| Need { at, bytes })
            .collect();
        t_star(0.5, 2.0, 0.3, 1e6, &mut needs)
    }

    #[test]
    fn work_bounds_a_start_of_few_bytes() {
        is(limit(&[]), 2.5);
        is(limit(&[(1.0, 1000)]), 2.5);
    }

    #[test]
    fn the_link_bounds_a_start_of_many_bytes_with_what_follows_them() {
        is(limit(&[(1.9, 3_000_000)]), 3.4);
        is(limit(&[(0.0, 3_000_000)]), 5.3);
        is(limit(&[(1.9, 2_000_000), (0.0, 1_000_000)]), 3.4);
        // Needed after ready only.
        is(limit(&[(2.1, 9_000_000)]), 2.5);
    }
}
