//! Opening an image: from the first lookup to both layers answered.

use std::{fs, path::Path, time::Instant};

use anyhow::{Context as _, Result};
use forelayer_tests::fixtures::{Layer, Lazy};

use super::{
    super::stats::median,
    content,
    figure::{Figure, Goal},
    lab::{FORMATS, LATENCY, Lab, NO_BACKGROUND, Published, afresh},
};

const ROUNDS: usize = 7;

pub(super) fn measure(program: &Path) -> Result<Vec<Figure>> {
    let lab = Lab::new(program)?;
    let mut store = lab.store("store", NO_BACKGROUND)?;
    let mut figures = Vec::new();
    for (repository, name, lazy) in FORMATS {
        let layers = [layer(0, &lazy)?, layer(1, &lazy)?];
        let image = lab.publish(repository, &layers)?;
        // The goal is of requests; what making connections costs on top is told.
        for connections in [false, true] {
            let (mut seconds, mut plain, mut requests) = (Vec::new(), Vec::new(), 0);
            for _ in 0..ROUNDS {
                afresh(&mut store)?;
                lab.server.set_latency(LATENCY);
                if connections {
                    lab.server.set_connection_latency(LATENCY);
                }
                lab.server.log().clear();
                let begin = Instant::now();
                for layer in image.layers(&store) {
                    fs::metadata(&layer).with_context(|| {
                        format!("the store's log ends:\n{}", store.log_end("serve"))
                    })?;
                }
                seconds.push(begin.elapsed().as_secs_f64());
                requests = lab.server.log().requests().max(requests);
                plain.push(by_hand(&lab, &image)?);
                lab.server.set_latency(std::time::Duration::ZERO);
                lab.server.set_connection_latency(std::time::Duration::ZERO);
            }
            let (time, count) = if connections {
                (Goal::Told, Goal::Told)
            } else {
                (Goal::AtMost(0.2), Goal::AtMost(4.0))
            };
            let and = if connections {
                ", and 50 ms a connection"
            } else {
                ""
            };
            figures.push(
                Figure::new(
                    format!("2 layers of 2,000 files, {name}{and}"),
                    time,
                    median(&seconds),
                    "s",
                )
                .beside(format!(
                    "the same requests by hand, nothing made of them: {:.3} s",
                    median(&plain)
                )),
            );
            #[expect(clippy::cast_precision_loss, reason = "a few requests")]
            let requests = requests as f64;
            figures.push(Figure::new(
                format!("requests of that, {name}{and}"),
                count,
                requests,
                "",
            ));
        }
    }
    store.stop()?;
    Ok(figures)
}

/// A layer whose TOC is what a layer's of that many files is.
fn layer(seed: u64, lazy: &Lazy) -> Result<Layer> {
    let mut entries = content::files(2000, 2000);
    entries.push(forelayer_tests::fixtures::Entry::file(
        "which",
        seed.to_string(),
    ));
    Layer::build(&entries, lazy)
}

/// The requests that the store has just sent, made again by hand: the manifest, then all others at once, each over a
/// connection of its own. Answers how long that takes.
fn by_hand(lab: &Lab, image: &Published) -> Result<f64> {
    let sent = lab.server.log().records();
    let begin = Instant::now();
    for record in sent.iter().filter(|record| record.is_manifest()) {
        lab.get(&record.path, record.range)
            .with_context(|| format!("the manifest of {}", image.reference))?;
    }
    std::thread::scope(|scope| {
        let others: Vec<_> = (sent.iter())
            .filter(|record| !record.is_manifest())
            .map(|record| scope.spawn(|| lab.get(&record.path, record.range)))
            .collect();
        (others.into_iter()).try_for_each(|other| {
            let got = other.join();
            got.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                .map(|_| ())
        })
    })?;
    Ok(begin.elapsed().as_secs_f64())
}
