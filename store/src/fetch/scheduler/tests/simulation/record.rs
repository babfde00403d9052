//! Reduces a recorded start to a trace (`traces/`): chunks by place and first touch, without a path or a digest.
//!
//! ```text
//! FORELAYER_TRACE=STATE_DIR/profiles/NAME.json FORELAYER_INDEXES=STATE_DIR/blobs/sha256 FORELAYER_READY_US=2500000 \
//!     [FORELAYER_RUN=MS] cargo test -p forelayer --lib -- --ignored --nocapture --exact \
//!     fetch::scheduler::tests::simulation::record::a_recorded_start_becomes_a_trace
//! ```
//! prints it: of the newest run of the profile, or of the one that started then (`started_ms`), touches up to ready.

use std::{collections::BTreeMap, fmt::Write as _, path::Path};

use forelayer_profiler::model::{PAGE, Profile, Run};

use crate::format::LayerIndex;

/// First touches by where a span begins.
type Touched = BTreeMap<u64, i64>;

#[test]
#[ignore = "makes a fixture from a state directory"]
fn a_recorded_start_becomes_a_trace() {
    let var = |name| std::env::var(name).unwrap();
    let profile = Profile::from_json(&std::fs::read(var("FORELAYER_TRACE")).unwrap()).unwrap();
    let ready: i64 = var("FORELAYER_READY_US").parse().unwrap();
    let wanted: Option<u64> = std::env::var("FORELAYER_RUN")
        .ok()
        .map(|run| run.parse().unwrap());
    let run = (profile.runs.iter())
        .find(|run| wanted.is_none_or(|wanted| run.started_ms == wanted))
        .unwrap();
    print!(
        "{}",
        reduce(run, Path::new(&var("FORELAYER_INDEXES")), ready)
    );
}

fn reduce(run: &Run, indexes: &Path, ready: i64) -> String {
    let mut text = format!("ready {ready}\n");
    for layer in &run.layers {
        let hex = layer.to_string();
        let path = indexes
            .join(hex.trim_start_matches("sha256:"))
            .join("index");
        let index = LayerIndex::open(&path, false).unwrap();
        let touched = touches(run, &index, &hex, ready);
        let mut spans: Vec<_> = (0..index.chunk_count())
            .filter_map(|chunk| index.chunk(chunk).unwrap())
            .filter(|chunk| !chunk.zeros)
            .map(|chunk| chunk.span)
            .collect();
        // Chunks of one gzip member come together.
        spans.sort_by_key(|span| span.start);
        spans.dedup_by_key(|span| span.start);
        write_layer(&mut text, &spans, index.facts().size, &touched);
    }
    text
}

fn touches(run: &Run, index: &LayerIndex, layer: &str, ready: i64) -> Touched {
    let mut touched = Touched::new();
    for file in &run.files {
        if file.layer.map(|layer| layer.to_string()).as_deref() != Some(layer) {
            continue;
        }
        let Some(node) = index.find(file.path.as_bytes()).unwrap() else {
            continue;
        };
        for range in file.ranges.iter().filter(|range| range.at_us <= ready) {
            let end = (range.end() * PAGE).min(file.size);
            for chunk in index.chunks_covering(node, range.page * PAGE..end).unwrap() {
                let chunk = index.chunk(chunk).unwrap().unwrap();
                if !chunk.zeros {
                    let at = touched.entry(chunk.span.start).or_insert(range.at_us);
                    *at = (*at).min(range.at_us);
                }
            }
        }
    }
    touched
}

fn write_layer(text: &mut String, spans: &[std::ops::Range<u64>], size: u64, touched: &Touched) {
    let (mut chunks, mut end) = (0, 0);
    let mut lines = String::new();
    for span in spans {
        let Some(at) = touched.get(&span.start) else {
            chunks += 1;
            continue;
        };
        let (before, bytes) = (span.start - end, span.end - span.start);
        writeln!(lines, "{chunks} {before} {bytes} {}", (*at).max(0)).unwrap();
        (chunks, end) = (0, span.end);
    }
    writeln!(text, "layer {chunks} {}", size - end).unwrap();
    text.push_str(&lines);
}
