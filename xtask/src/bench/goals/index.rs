//! A layer of 100,000 entries: its index made at the first lookup, opened again by the next store, its tree walked
//! through an overlay; and how much memory all that takes.

use std::{fs, path::Path, time::Instant};

use anyhow::{Context as _, Result, ensure};
use forelayer_tests::engine::store::{Store, drop_caches};

use super::{
    super::{report::megabytes, stats::median},
    figure::{Figure, Goal},
    lab::{Lab, NO_BACKGROUND, Published, afresh},
    memory::Memory,
    overlay::{Overlay, walk},
    toc::{self, Format, Item},
};

const ROUNDS: usize = 5;
const ENTRIES: usize = 100_000;
/// Of them one is a directory and one a link.
const IN_A_DIRECTORY: usize = 20;
const ABOVE: &str = "usr/lib/python3/dist-packages";

pub(super) fn measure(program: &Path) -> Result<Vec<Figure>> {
    let lab = Lab::new(program)?;
    let blobs = lab.directory("blobs")?;
    let mut store = lab.store("store", NO_BACKGROUND)?;
    let mut figures = Vec::new();
    for format in [Format::Estargz, Format::Zstd] {
        let image = toc::publish(&lab, &blobs, repository(format), &items(), format, 1)?;
        figures.extend(index(&lab, &mut store, &image, format.name())?);
    }
    // One is like the other here: both indexes are the same.
    figures.extend(walks(&lab, &store)?);
    store.stop()?;
    Ok(figures)
}

fn repository(format: Format) -> &'static str {
    match format {
        Format::Estargz => "estargz",
        Format::Zstd => "zstd",
    }
}

/// As a layer of Python packages: files of some kilobytes.
fn items() -> Vec<Item> {
    let entry = |number: usize| {
        let directory = format!("{ABOVE}/package{:05}", number / IN_A_DIRECTORY);
        match number % IN_A_DIRECTORY {
            0 => Item::Dir(directory),
            1 => Item::Link(format!("{directory}/link"), "module_2.py".to_owned()),
            other => Item::File(
                format!("{directory}/module_{other}.py"),
                5000 + number as u64 % 9000,
            ),
        }
    };
    (0..ENTRIES).map(entry).collect()
}

/// First lookup, the lookup of the next store, and memory.
fn index(lab: &Lab, store: &mut Store<'_>, image: &Published, name: &str) -> Result<Vec<Figure>> {
    let lookup = |store: &Store<'_>| -> Result<f64> {
        let layers = image.layers(store);
        let layer = layers.first().context("an image without a layer")?;
        let begin = Instant::now();
        fs::metadata(layer)
            .with_context(|| format!("the store's log ends:\n{}", store.log_end("serve")))?;
        Ok(begin.elapsed().as_secs_f64())
    };
    let (mut first, mut again, mut unclean) = (Vec::new(), Vec::new(), Vec::new());
    let (mut plain, mut peak) = (Vec::new(), 0);
    for _ in 0..ROUNDS {
        afresh(store)?;
        lab.server.log().clear();
        first.push(lookup(store)?);
        peak = Memory::of(id(store)?)?.peak.max(peak);
        // What the registry and the loopback device took of that.
        let begin = Instant::now();
        for record in lab.server.log().records() {
            lab.get(&record.path, record.range)?;
        }
        plain.push(begin.elapsed().as_secs_f64());
        store.stop()?;
        store.start()?;
        again.push(lookup(store)?);
        store.kill()?;
        store.start()?;
        unclean.push(lookup(store)?);
    }
    let memory = Memory::of(id(store)?)?;
    let (first, plain) = (median(&first), median(&plain));
    Ok(vec![
        Figure::new(
            format!("first lookup of 100,000 entries, {name}"),
            Goal::AtMost(0.35),
            first,
            "s",
        )
        .beside(format!(
            "the same requests by hand one after another: {plain:.3} s"
        )),
        Figure::new(
            format!("lookup by the next store, {name}"),
            Goal::AtMost(5.0),
            median(&again) * 1e3,
            "ms",
        )
        .beside(format!(
            "after a kill instead of a stop: {:.1} ms",
            median(&unclean) * 1e3
        )),
        Figure::new(
            format!("most memory while it was indexed, {name}"),
            Goal::AtMost(60.0),
            megabytes(peak),
            "MB",
        )
        .beside(format!(
            "a store that opened the index again: {:.0} MB",
            megabytes(memory.resident)
        )),
    ])
}

/// Walks through the overlay, beside a walk of the same tree on the machine's own file system.
fn walks(lab: &Lab, store: &Store<'_>) -> Result<Vec<Figure>> {
    let image = Published {
        reference: format!("{}/{}:1", lab.server.host(), repository(Format::Zstd)),
        keys: layer_keys(store)?,
    };
    let trees = image.trees(store)?;
    let tree = trees.first().context("an image without a layer")?;
    let plain = lab.directory("plain")?;
    for item in items() {
        match item {
            Item::Dir(name) => fs::create_dir_all(plain.join(name))?,
            Item::Link(name, target) => std::os::unix::fs::symlink(target, plain.join(name))?,
            Item::File(name, size) => fs::File::create(plain.join(name))?.set_len(size)?,
        }
    }
    let mut found = Vec::new();
    for (name, lower) in [("lazy", tree), ("plain", &plain)] {
        let (mut cold, mut again, mut other) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let overlay = Overlay::mount(lower, &lab.directory(&format!("{name}-{round}"))?)?;
            drop_caches()?;
            let (names, seconds) = walk(overlay.path())?;
            ensure!(names >= ENTRIES, "{names} names were found");
            cold.push(seconds);
            again.push(walk(overlay.path())?.1);
            // The next container of the image.
            drop(overlay);
            let next = Overlay::mount(lower, &lab.directory(&format!("{name}-{round}-next"))?)?;
            other.push(walk(next.path())?.1);
        }
        found.push([median(&cold), median(&again), median(&other)]);
    }
    let [lazy, plain] = found[..] else {
        anyhow::bail!("two trees were walked");
    };
    let memory = Memory::of(id(store)?)?;
    let figure = |what: &str, goal, which: usize| {
        Figure::new(what, goal, lazy[which], "s")
            .beside(format!("ordinary storage {:.3} s", plain[which]))
    };
    Ok(vec![
        figure("walk through an overlay, cold", Goal::AtMost(1.0), 0),
        figure("walk of the same overlay again", Goal::AtMost(0.4), 1),
        figure("walk of another overlay of the layer then", Goal::Told, 2),
        Figure::new(
            "memory of the store after the walks",
            Goal::AtMost(60.0),
            megabytes(memory.resident),
            "MB",
        )
        .beside(format!(
            "of it {:.0} MB without a file behind; at the most {:.0} MB",
            megabytes(memory.anonymous),
            megabytes(memory.peak)
        )),
    ])
}

/// What engines call the layer that is served.
fn layer_keys(store: &Store<'_>) -> Result<Vec<String>> {
    let status = store.get_json("/v1/status")?;
    let key = status["images"][0]["layers"][0]["toc"].as_str();
    Ok(vec![key.context("no layer is served")?.to_owned()])
}

fn id(store: &Store<'_>) -> Result<u32> {
    store.server_id().context("the store does not run")
}
