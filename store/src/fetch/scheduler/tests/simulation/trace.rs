//! What a start touches and when: recorded ones (`traces/`) and made-up ones; the plans that are made of them.

use std::{ops::Range, sync::Arc};

use super::super::super::LayerKey;
use crate::fetch::backoff::Jitter;

/// Nanoseconds of virtual time.
pub(super) type Nanos = u64;
pub(super) const MS: Nanos = 1_000_000;
pub(super) const SECOND: Nanos = 1000 * MS;

/// Where the chunks of a layer lie in its blob.
#[derive(Debug)]
pub(super) struct Places {
    pub(super) spans: Vec<Range<u64>>,
}

/// The first touch of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Touch {
    /// From the program's start.
    pub(super) at: Nanos,
    pub(super) layer: LayerKey,
    pub(super) chunk: u32,
}

/// A start with everything local.
#[derive(Debug, Clone)]
pub(super) struct Trace {
    pub(super) layers: Vec<Arc<Places>>,
    /// By time.
    pub(super) touches: Vec<Touch>,
    /// From the program's start to ready.
    pub(super) ready: Nanos,
    /// From the plan to the program's start.
    pub(super) lead: Nanos,
}

/// How good a plan is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quality {
    Right,
    /// A third is missing, a third of it is not needed.
    Partly,
    /// Of another version: a fifth of it is right.
    Stale,
    /// The right chunks in any order.
    Shuffled,
    None,
}

impl Quality {
    pub(super) const ALL: [Self; 5] = [
        Self::Right,
        Self::Partly,
        Self::Stale,
        Self::Shuffled,
        Self::None,
    ];
}

impl Trace {
    /// `text`: lines `ready US`, for each layer `layer N BYTES` (what lies behind its last touched chunk) and for each
    /// touched chunk `N BYTES BYTES US`: chunks and bytes before it that are not touched, its bytes, its first touch.
    /// Untouched chunks between two touched ones count as equally long.
    pub(super) fn parse(text: &str, lead: Nanos) -> Self {
        let mut trace = Self {
            layers: Vec::new(),
            touches: Vec::new(),
            ready: 0,
            lead,
        };
        let mut lines = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .peekable();
        while let Some(line) = lines.next() {
            let words: Vec<&str> = line.split(' ').collect();
            let number = |n: usize| words[n].parse::<u64>().unwrap();
            if words[0] == "ready" {
                trace.ready = number(1) * 1000;
                continue;
            }
            let (chunks, bytes) = (number(1), number(2));
            let mut spans = Vec::new();
            let mut end = 0;
            while let Some(line) = lines.next_if(|line| !line.starts_with("layer")) {
                let touch: Vec<u64> = line.split(' ').map(|word| word.parse().unwrap()).collect();
                untouched(&mut spans, end, touch[0], touch[1]);
                let start = end + touch[1];
                end = start + touch[2];
                trace.touches.push(Touch {
                    at: touch[3] * 1000,
                    layer: trace.layers.len(),
                    chunk: spans.len().try_into().unwrap(),
                });
                spans.push(start..end);
            }
            untouched(&mut spans, end, chunks, bytes);
            trace.layers.push(Arc::new(Places { spans }));
        }
        trace.touches.sort_unstable();
        trace
    }

    /// A start of files in any order over up to three layers, each read from its beginning on.
    pub(super) fn made_up(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let mut layers = Vec::new();
        // Files: layer and chunks.
        let mut files: Vec<(LayerKey, Range<u32>)> = Vec::new();
        let usual = dice.spread(1_000, 100_000);
        for layer in 0..dice.within(1, 3) as usize {
            let mut spans: Vec<Range<u64>> = Vec::new();
            let mut end = 0;
            for _ in 0..dice.within(1, 60) {
                let first = u32::try_from(spans.len()).unwrap();
                for _ in 0..dice.within(1, 6) {
                    // What a tar writer puts between.
                    let start = end + dice.within(0, 600);
                    end = start + dice.spread(usual / 10, usual * 10);
                    spans.push(start..end);
                }
                files.push((layer, first..u32::try_from(spans.len()).unwrap()));
            }
            layers.push(Arc::new(Places { spans }));
        }
        dice.shuffle(&mut files);
        files.truncate(dice.within(1, files.len() as u64) as usize);
        // Files of one directory are read together.
        let together = dice.within(1, 10) as usize;
        for files in files.chunks_mut(together) {
            files.sort_by_key(|(layer, chunks)| (*layer, chunks.start));
        }
        let pause = dice.spread(MS / 50, 30 * MS);
        let mut at = 0;
        let mut touches = Vec::new();
        for (layer, chunks) in files {
            for chunk in chunks {
                at += dice.within(0, 2 * pause);
                touches.push(Touch { at, layer, chunk });
            }
        }
        Self {
            layers,
            touches,
            ready: at + dice.within(0, 10 * pause),
            lead: dice.within(0, 400 * MS),
        }
    }

    /// A plan for it.
    pub(super) fn plan(&self, quality: Quality, seed: u64) -> Vec<Touch> {
        let mut dice = Dice::new(seed);
        let mut steps = self.touches.clone();
        let (kept, wrong) = match quality {
            Quality::None => return Vec::new(),
            Quality::Right => return steps,
            Quality::Shuffled => {
                let times: Vec<_> = steps.iter().map(|step| step.at).collect();
                dice.shuffle(&mut steps);
                for (step, at) in steps.iter_mut().zip(times) {
                    step.at = at;
                }
                return steps;
            }
            Quality::Partly => (2, 1),
            Quality::Stale => (1, 4),
        };
        let count = steps.len() as u64;
        steps.retain(|_| dice.within(1, if wrong == 1 { 3 } else { 5 }) <= kept);
        let touched: std::collections::HashSet<_> = (self.touches.iter())
            .map(|touch| (touch.layer, touch.chunk))
            .collect();
        let share = if wrong == 1 { count / 3 } else { count * 4 / 5 };
        for _ in 0..share {
            let layer = dice.within(0, self.layers.len() as u64 - 1) as usize;
            let chunks = self.layers[layer].spans.len() as u64;
            let chunk = u32::try_from(dice.within(0, chunks - 1)).unwrap();
            let at = dice.within(0, self.ready);
            if !touched.contains(&(layer, chunk)) {
                steps.push(Touch { at, layer, chunk });
            }
        }
        steps.sort_unstable();
        let mut seen = std::collections::HashSet::new();
        steps.retain(|step| seen.insert((step.layer, step.chunk)));
        steps
    }

    /// T*: no order of fetching over such a link can be ready sooner (docs/benchmarks.md, "The limit"). Times count from
    /// the plan; `first` is when the first byte can come, `rate` in bytes a second.
    pub(super) fn limit(&self, first: Nanos, rate: f64) -> Nanos {
        let mut bytes = 0;
        let came = self.touches.iter().map(|touch| {
            bytes += self.bytes(touch);
            first + seconds(bytes as f64 / rate) + self.ready.saturating_sub(touch.at)
        });
        came.fold(self.lead + self.ready, Nanos::max)
    }

    pub(super) fn bytes(&self, touch: &Touch) -> u64 {
        let span = &self.layers[touch.layer].spans[touch.chunk as usize];
        span.end - span.start
    }
}

fn untouched(spans: &mut Vec<Range<u64>>, from: u64, chunks: u64, bytes: u64) {
    for n in 0..chunks {
        let span = from + bytes * n / chunks..from + bytes * (n + 1) / chunks;
        if !span.is_empty() {
            spans.push(span);
        }
    }
}

/// Virtual time of so many seconds, rounded up.
pub(super) fn seconds(seconds: f64) -> Nanos {
    (seconds * 1e9).ceil() as Nanos
}

/// Numbers that are the same in every run.
#[derive(Debug)]
pub(super) struct Dice(Jitter);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(Jitter(seed))
    }
    /// A number of these, the last included.
    pub(super) fn within(&mut self, least: u64, most: u64) -> u64 {
        least + (self.0.draw() * (most - least + 1) as f64) as u64
    }
    /// A number between these, each order of magnitude as likely.
    pub(super) fn spread(&mut self, least: u64, most: u64) -> u64 {
        let (least, most) = (least.max(1) as f64, most.max(1) as f64);
        (least * (most / least).powf(self.0.draw())) as u64
    }
    fn shuffle<T>(&mut self, items: &mut [T]) {
        for n in (1..items.len()).rev() {
            items.swap(n, self.within(0, n as u64) as usize);
        }
    }
}
