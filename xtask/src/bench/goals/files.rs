//! Small files one after another, nothing learned: adjacent ones, and every 20th.

use std::{fs, path::Path, time::Instant};

use anyhow::{Context as _, Result};
use forelayer_tests::{engine::store::Store, fixtures::Layer};

use super::{
    super::stats::median,
    content,
    figure::{Figure, Goal},
    lab::{FORMATS, LATENCY, Lab, NO_BACKGROUND, Published, afresh},
};

const ROUNDS: usize = 5;
const FILES: u32 = 1000;
const SIZE: usize = 8 << 10;

/// Which files are read.
struct Way {
    name: &'static str,
    count: u32,
    step: usize,
    goal: f64,
}

const WAYS: [Way; 2] = [
    Way {
        name: "100 adjacent files of 8 KiB",
        count: 100,
        step: 1,
        goal: 0.15,
    },
    Way {
        name: "50 files of 8 KiB, every 20th of 1,000",
        count: 1000,
        step: 20,
        goal: 1.0,
    },
];

pub(super) fn measure(program: &Path) -> Result<Vec<Figure>> {
    let lab = Lab::new(program)?;
    let mut figures = Vec::new();
    // The goal is of what is asked for; with the background lane the whole of so small a layer is soon here.
    for (with, options) in [("", NO_BACKGROUND), (", background lane on", "")] {
        let mut store = lab.store(if with.is_empty() { "alone" } else { "default" }, options)?;
        for (repository, name, lazy) in FORMATS {
            let layer = Layer::build(&content::files(FILES, SIZE), &lazy)?;
            let image = lab.publish(repository, &[layer])?;
            for way in &WAYS {
                let goal = if with.is_empty() {
                    Goal::AtMost(way.goal)
                } else {
                    Goal::Told
                };
                let found = (0..ROUNDS)
                    .map(|_| read(&lab, &mut store, &image, way))
                    .collect::<Result<Vec<_>>>()
                    .with_context(|| format!("{}, {name}", way.name))?;
                let seconds: Vec<f64> = found.iter().map(|read| read.seconds).collect();
                let misses: Vec<f64> = found.iter().map(|read| read.misses).collect();
                let requests = found.iter().map(|read| read.requests).max();
                figures.push(
                    Figure::new(
                        format!("{}, {name}{with}", way.name),
                        goal,
                        median(&seconds),
                        "s",
                    )
                    .beside(format!(
                        "{:.0} READs waited, {} requests of 50 ms; one after another the files would take {:.2} s",
                        median(&misses),
                        requests.unwrap_or_default(),
                        f64::from(way.count) / f64::from(u32::try_from(way.step)?)
                            * LATENCY.as_secs_f64(),
                    )),
                );
            }
        }
        store.stop()?;
    }
    Ok(figures)
}

/// What reading the files took.
struct Read {
    seconds: f64,
    requests: usize,
    /// READs that waited.
    misses: f64,
}

fn read(lab: &Lab, store: &mut Store<'_>, image: &Published, way: &Way) -> Result<Read> {
    afresh(store)?;
    // Before the lookup, behind which the background lane begins.
    lab.server.set_latency(LATENCY);
    let trees = image.trees(store)?;
    let tree = trees.first().context("an image without a layer")?;
    lab.server.log().clear();
    let begin = Instant::now();
    for number in (0..way.count).step_by(way.step) {
        let read = fs::read(tree.join(content::name(number)))?;
        anyhow::ensure!(read.len() == SIZE, "a file of {} bytes", read.len());
    }
    let seconds = begin.elapsed().as_secs_f64();
    let requests = lab.server.log().requests();
    lab.server.set_latency(std::time::Duration::ZERO);
    Ok(Read {
        seconds,
        requests,
        misses: store.metric("forelayer_cache_misses_total")?,
    })
}
