//! Reads through an overlay of what is local: one large file and 20,000 small ones, each beside the same on ordinary
//! storage through an overlay.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use forelayer_tests::{
    engine::{process, store::drop_caches},
    fixtures::{Entry, Layer, Lazy},
};

use super::{
    super::stats::median,
    content,
    figure::{Figure, Goal},
    lab::{Lab, NO_BACKGROUND},
    overlay::{Overlay, read, read_all},
};

/// Of the warm passes.
const ROUNDS: usize = 9;
/// Of those after the page cache was dropped.
const DROPPED: usize = 3;
const LARGE: u64 = 1 << 30;
const FILES: usize = 20_000;
/// 195 MiB of them.
const SMALL: usize = 10_240;

/// Seconds of the passes over one tree.
#[derive(Default)]
struct Passes {
    large: Vec<f64>,
    small: Vec<f64>,
}

pub(super) fn measure(program: &Path) -> Result<Vec<Figure>> {
    let lab = Lab::new(program)?;
    let mut store = lab.store("store", NO_BACKGROUND)?;
    store.start()?;
    let plain = lab.directory("plain")?;
    let image = {
        let entries = entries();
        for entry in &entries {
            let path = plain.join(&entry.path);
            match entry.path.as_str() {
                "d" => fs::create_dir(&path)?,
                _ => fs::write(&path, entry.content())?,
            }
        }
        let layer = Layer::build(&entries, &Lazy::zstd_chunked())?;
        lab.publish("warm", &[layer])?
    };
    process::run(&mut store.command(&["prefetch", "--all", &image.reference]))?;
    let trees = image.trees(&store)?;
    let tree = trees.first().context("an image without a layer")?;
    let lazy = Overlay::mount(tree, &lab.directory("over-lazy")?)?;
    let plain = Overlay::mount(&plain, &lab.directory("over-plain")?)?;
    let mut dropped = [Passes::default(), Passes::default()];
    for _ in 0..DROPPED {
        for (passes, overlay) in dropped.iter_mut().zip([&lazy, &plain]) {
            drop_caches()?;
            pass(overlay, passes)?;
        }
    }
    // Both trees have been read since, so that the page cache has them.
    pass(&lazy, &mut Passes::default())?;
    pass(&plain, &mut Passes::default())?;
    let misses = store.metric("forelayer_cache_misses_total")?;
    let reads = || store.metric("forelayer_fuse_requests_total{mount=\"plain\",op=\"read\"}");
    let before = reads()?;
    let mut warm = [Passes::default(), Passes::default()];
    for _ in 0..ROUNDS {
        for (passes, overlay) in warm.iter_mut().zip([&lazy, &plain]) {
            pass(overlay, passes)?;
        }
    }
    let asked = reads()? - before;
    ensure!(
        misses < 1.0,
        "{misses} READs waited for chunks: not all was local"
    );
    drop((lazy, plain));
    store.stop()?;
    let kernel = format!("{asked:.0} READs came to the store in all {ROUNDS} passes");
    Ok(vec![
        figure(
            "1 GiB sequential, page cache warm",
            Goal::AtLeast(0.8),
            &warm,
            |passes| &passes.large,
        )
        .beside(kernel.clone()),
        figure(
            "20,000 files of 10 KiB, page cache warm",
            Goal::AtLeast(0.75),
            &warm,
            |passes| &passes.small,
        )
        .beside(kernel),
        figure(
            "1 GiB sequential, page cache dropped, local in the store",
            Goal::Told,
            &dropped,
            |passes| &passes.large,
        ),
        figure(
            "20,000 files of 10 KiB, page cache dropped, local in the store",
            Goal::Told,
            &dropped,
            |passes| &passes.small,
        ),
    ])
}

fn entries() -> Vec<Entry> {
    // One of 64 MiB after another: what it holds matters to no read, and making it takes time.
    let part = content::program(1, 64 << 20);
    let mut large = Vec::new();
    while (large.len() as u64) < LARGE {
        large.extend_from_slice(&part);
    }
    let mut entries = vec![Entry::file("large", large), Entry::dir("d")];
    entries.extend(
        (0..FILES).map(|number| Entry::file(small(number), content::program(number as u64, SMALL))),
    );
    entries
}

fn small(number: usize) -> String {
    format!("d/{number:06}")
}

/// Both reads, once.
fn pass(overlay: &Overlay, passes: &mut Passes) -> Result<()> {
    let root = overlay.path();
    let (bytes, seconds) = read(&root.join("large"))?;
    ensure!(bytes == LARGE, "the large file has {bytes} bytes");
    passes.large.push(seconds);
    let paths: Vec<_> = (0..FILES).map(|number| root.join(small(number))).collect();
    let (bytes, seconds) = read_all(&paths)?;
    ensure!(
        bytes == (FILES * SMALL) as u64,
        "the small files have {bytes} bytes"
    );
    passes.small.push(seconds);
    Ok(())
}

/// The ratio of the rates: what ordinary storage takes to what the store takes.
fn figure(what: &str, goal: Goal, passes: &[Passes; 2], which: fn(&Passes) -> &Vec<f64>) -> Figure {
    let [lazy, plain] = passes.each_ref().map(|passes| median(which(passes)));
    let what = format!("{what}: rate to ordinary storage's ({lazy:.3} s to {plain:.3} s)");
    Figure::new(what, goal, plain / lazy, "")
}
