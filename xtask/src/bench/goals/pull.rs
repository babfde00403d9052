//! The whole image in the background: how much of the link it takes.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use forelayer_tests::{
    engine::{process, store::Store},
    fixtures::{Entry, Layer},
};

use super::{
    super::{cost::Meters, report::megabytes, stats::median},
    content,
    figure::{Figure, Goal},
    lab::{FORMATS, LATENCY, Lab, Published, afresh},
};

const ROUNDS: usize = 3;
/// Bytes a second: 1 Gbit/s.
const RATE: u64 = 125_000_000;
/// Of the requests by hand: a single one cannot fill the emulated link, which lets pieces through by the millisecond.
const CONNECTIONS: u64 = 8;
/// A bound against hanging.
const PATIENCE: Duration = Duration::from_secs(300);

/// What one pull took.
struct Pull {
    /// Until all chunks were stored, from the first lookup.
    seconds: f64,
    /// Until the first content was asked for.
    opening: f64,
    /// From the first byte of a layer's content that was asked for to the last that came.
    sending: f64,
    bytes: u64,
    cpu: f64,
}

pub(super) fn measure(program: &Path) -> Result<Vec<Figure>> {
    let lab = Lab::new(program)?;
    let mut store = lab.store("store", "")?;
    let mut figures = Vec::new();
    for (repository, name, lazy) in FORMATS {
        let entries = entries();
        let content: usize = entries.iter().map(|entry| entry.content().len()).sum();
        let layer = Layer::build(&entries, &lazy)?;
        drop(entries);
        let blob = (layer.digest.clone(), layer.blob.len());
        let image = lab.publish(repository, &[layer])?;
        let (mut pulls, mut plain) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            pulls.push(pull(&lab, &mut store, &image)?);
            shape(&lab, true);
            let begin = Instant::now();
            by_hand(&lab, &format!("/v2/plain/blobs/{}", blob.0), blob.1 as u64)?;
            plain.push(begin.elapsed().as_secs_f64());
            shape(&lab, false);
        }
        store.stop()?;
        lab.server.content().remove_blob(&blob.0);
        let of = |figure: fn(&Pull) -> f64| median(&pulls.iter().map(figure).collect::<Vec<_>>());
        let rate = megabytes(RATE);
        let share = |pull: &Pull| megabytes(pull.bytes) / pull.seconds / megabytes(RATE) * 100.0;
        let sending = |pull: &Pull| megabytes(pull.bytes) / pull.sending / megabytes(RATE) * 100.0;
        let size = megabytes(blob.1 as u64);
        figures.push(
            Figure::new(
                format!("{size:.0} MB in the background, {name}: share of 1 Gbit/s"),
                Goal::AtLeast(90.0),
                of(share),
                "%",
            )
            .beside(format!(
                "{:.2} s: {:.2} s to the first request of content, {:.2} s to the last byte ({:.0} %), {:.2} s to the last chunk \
                 stored; by {CONNECTIONS} plain requests at once, nothing made of it, {:.0} %",
                of(|pull| pull.seconds),
                of(|pull| pull.opening),
                of(|pull| pull.sending),
                of(sending),
                of(|pull| pull.seconds - pull.opening - pull.sending),
                size / median(&plain) / rate * 100.0,
            )),
        );
        figures.push(Figure::new(
            format!("processor seconds of the store for a GB of content brought, {name}"),
            Goal::Told,
            of(|pull| pull.cpu) / megabytes(content as u64) * 1e3,
            "s",
        ));
    }
    Ok(figures)
}

/// As images have it: most of the bytes in large files, most of the files small.
fn entries() -> Vec<Entry> {
    let mut entries = vec![Entry::dir("d")];
    entries.extend((0..80).map(|number| {
        Entry::file(
            format!("d/large{number}"),
            content::program(number, 8_000_000),
        )
    }));
    entries.extend((0..10_000).map(|number| {
        Entry::file(
            format!("d/small{number}"),
            content::program(1000 + number, 10_000),
        )
    }));
    entries
}

/// The link of the bench.
fn shape(lab: &Lab, on: bool) {
    let latency = if on { LATENCY } else { Duration::ZERO };
    lab.server.set_latency(latency);
    lab.server.set_connection_latency(latency);
    lab.server.set_bandwidth(on.then_some(RATE));
}

/// Asks for a blob in parts, all at once.
fn by_hand(lab: &Lab, path: &str, size: u64) -> Result<()> {
    let part = size.div_ceil(CONNECTIONS);
    std::thread::scope(|scope| {
        let parts: Vec<_> = (0..CONNECTIONS)
            .map(|number| (number * part, ((number + 1) * part).min(size) - 1))
            .map(|range| scope.spawn(move || lab.get(path, Some(range))))
            .collect();
        (parts.into_iter()).try_for_each(|part| {
            let got = part.join();
            got.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                .map(|_| ())
        })
    })
}

fn pull(lab: &Lab, store: &mut Store<'_>, image: &Published) -> Result<Pull> {
    afresh(store)?;
    let meters = Meters::new("serve", store.server_id().context("no store runs")?)?;
    shape(lab, true);
    lab.server.log().clear();
    let begin = Instant::now();
    image.trees(store)?;
    process::until("the whole image", PATIENCE, || {
        let status = store.get_json("/v1/status")?;
        let layer = &status["images"][0]["layers"][0];
        let whole = layer["present_chunks"] == layer["chunks"] && layer["chunks"].is_u64();
        Ok(whole.then_some(()))
    })?;
    let seconds = begin.elapsed().as_secs_f64();
    shape(lab, false);
    let records = lab.server.log().records();
    // Content is what is asked for once the TOC is here.
    let content: Vec<_> = (records.iter())
        .filter(|record| record.bytes > 1 << 20 && record.range.is_some())
        .collect();
    let first = content.iter().map(|record| record.start).min();
    let last = content.iter().filter_map(|record| record.end).max();
    let (first, last) = (first.zip(last)).context("nothing was asked for")?;
    Ok(Pull {
        seconds,
        opening: first.saturating_duration_since(begin).as_secs_f64(),
        sending: (last - first).as_secs_f64(),
        bytes: records.iter().map(|record| record.bytes).sum(),
        cpu: meters.first()?.cpu,
    })
}
