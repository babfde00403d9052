//! One large file from its start to its end, nothing learned.

use std::{fs::File, io::Read as _, path::Path, time::Instant};

use anyhow::{Context as _, Result};
use forelayer_tests::{
    engine::store::Store,
    fixtures::{Entry, Layer},
};

use super::{
    super::stats::median,
    content,
    figure::{Figure, Goal},
    lab::{FORMATS, LATENCY, Lab, NO_BACKGROUND, Published, afresh},
};

const ROUNDS: usize = 7;
const SIZE: usize = 40_000_000;

pub(super) fn measure(program: &Path) -> Result<Vec<Figure>> {
    let lab = Lab::new(program)?;
    let mut store = lab.store("store", NO_BACKGROUND)?;
    let mut figures = Vec::new();
    for (repository, name, lazy) in FORMATS {
        let layer = Layer::build(&[Entry::file("file", content::program(7, SIZE))], &lazy)?;
        let blob = format!("/v2/plain/blobs/{}", layer.digest);
        let compressed = layer.blob.len();
        let image = lab.publish(repository, &[layer])?;
        let (mut lazily, mut whole, mut misses) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            lazily.push(read(&lab, &mut store, &image)?);
            misses.push(store.metric("forelayer_cache_misses_total")?);
            lab.server.set_latency(LATENCY);
            let begin = Instant::now();
            lab.get(&blob, None)?;
            whole.push(begin.elapsed().as_secs_f64());
            lab.server.set_latency(std::time::Duration::ZERO);
        }
        #[expect(clippy::cast_precision_loss, reason = "bytes of a file")]
        let (size, compressed) = (SIZE as f64 / 1e6, compressed as f64 / 1e6);
        let whole = median(&whole);
        figures.push(
            Figure::new(
                format!("40 MB, {name}, {compressed:.0} MB compressed"),
                Goal::AtLeast(200.0),
                size / median(&lazily),
                "MB/s",
            )
            .beside(format!(
                "{:.3} s, {:.0} READs waited; the blob whole in one plain request, not decoded: {whole:.3} s, {:.0} MB/s of content",
                median(&lazily),
                median(&misses),
                size / whole
            )),
        );
    }
    store.stop()?;
    Ok(figures)
}

/// Seconds that reading the file takes.
fn read(lab: &Lab, store: &mut Store<'_>, image: &Published) -> Result<f64> {
    afresh(store)?;
    let trees = image.trees(store)?;
    let tree = trees.first().context("an image without a layer")?;
    let mut buffer = vec![0; 128 << 10];
    lab.server.set_latency(LATENCY);
    let begin = Instant::now();
    let mut file = File::open(tree.join("file"))?;
    let mut bytes = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => bytes += read,
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    lab.server.set_latency(std::time::Duration::ZERO);
    anyhow::ensure!(bytes == SIZE, "the file has {bytes} bytes");
    Ok(seconds)
}
