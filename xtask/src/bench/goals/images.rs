//! `podman images` with 50 lazy images of 10 GB, beside 50 ordinary small ones.

use std::{path::Path, time::Instant};

use anyhow::{Context as _, Result, ensure};
use forelayer_tests::{
    engine::{
        environment,
        podman::{Generation, Podman},
    },
    fixtures::{Image, ImageConfig, Layer, Lazy},
};

use super::{
    super::{report::megabytes, stats::median},
    content,
    figure::{Figure, Goal},
    lab::{Lab, NO_BACKGROUND},
    memory::Memory,
    toc::{self, Format, Item},
};

const IMAGES: u64 = 50;
const ROUNDS: usize = 15;

pub(super) fn measure(program: &Path) -> Result<Vec<Figure>> {
    let environment = environment::prepare()?;
    let lab = Lab::new(program)?;
    let mut store = lab.store("store", NO_BACKGROUND)?;
    store.start()?;
    let empty = Memory::of(store.server_id().context("the store does not run")?)?;
    let engine = lab.engine(&environment)?;
    let podman = |name: &str, store: Option<&Path>| {
        Podman::new(
            &engine,
            Generation::ByToc,
            &lab.directory("engine")?.join(name),
            store,
        )
    };
    let lazy = podman("lazy", Some(&store.mount()))?;
    let ordinary = podman("ordinary", None)?;
    let blobs = lab.directory("blobs")?;
    for number in 0..IMAGES {
        let name = format!("lazy{number}");
        let image = toc::publish(&lab, &blobs, &name, &items(), Format::Zstd, number)?;
        lazy.run(&["pull", "--quiet", &image.reference])?;
        let name = format!("ordinary{number}");
        let layer = Layer::build(
            &content::files(10, 1000 + usize::try_from(number)?),
            &Lazy::No,
        )?;
        let image = Image::new(&[layer], &ImageConfig::default())?;
        lab.server.content().add_image(&name, "1", &image);
        ordinary.run(&[
            "pull",
            "--quiet",
            &format!("{}/{name}:1", lab.server.host()),
        ])?;
    }
    let served = store.metric("forelayer_layers")?;
    #[expect(clippy::cast_precision_loss, reason = "a few images")]
    let expected = IMAGES as f64;
    ensure!(
        served >= expected,
        "the store serves {served} layers of {IMAGES}"
    );
    let time = |podman: &Podman<'_>| -> Result<f64> {
        let begin = Instant::now();
        let list = podman.run(&["images", "--quiet"])?;
        let seconds = begin.elapsed().as_secs_f64();
        let count = list.lines().count();
        ensure!(count as u64 == IMAGES, "podman lists {count} images");
        Ok(seconds)
    };
    // Once for what is read from disk.
    time(&lazy)?;
    time(&ordinary)?;
    let (mut lazily, mut plainly) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        lazily.push(time(&lazy)?);
        plainly.push(time(&ordinary)?);
    }
    let (lazily, plainly) = (median(&lazily), median(&plainly));
    let memory = Memory::of(store.server_id().context("the store does not run")?)?;
    // What a restarted store has of the same images.
    drop((lazy, ordinary));
    store.stop()?;
    let begin = Instant::now();
    store.start()?;
    let started = begin.elapsed().as_secs_f64();
    let again = Memory::of(store.server_id().context("the store does not run")?)?;
    store.stop()?;
    let shown = |memory: Memory| {
        format!(
            "of it {:.0} MB without a file behind; at the most {:.0} MB",
            megabytes(memory.anonymous),
            megabytes(memory.peak)
        )
    };
    Ok(vec![
        Figure::new(
            "podman images, 50 lazy images of 10 GB to 50 ordinary ones",
            Goal::AtMost(1.2),
            lazily / plainly,
            "",
        )
        .beside(format!("{lazily:.3} s to {plainly:.3} s")),
        Figure::new(
            "memory of the store that has pulled them",
            Goal::Told,
            megabytes(memory.resident),
            "MB",
        )
        .beside(format!(
            "{}; without images {:.0} MB",
            shown(memory),
            megabytes(empty.resident)
        )),
        Figure::new(
            "memory of the store restarted with them",
            Goal::Told,
            megabytes(again.resident),
            "MB",
        )
        .beside(format!("{}; started in {started:.2} s", shown(again))),
    ])
}

/// 10 GB as machine learning has it: most of it in a few large files.
fn items() -> Vec<Item> {
    let mut items = vec![Item::Dir("lib".to_owned())];
    items.extend((0..40).map(|number| Item::File(format!("lib/large{number}.so"), 225_000_000)));
    for number in 0..20_000 {
        if number % 50 == 0 {
            items.push(Item::Dir(format!("lib/package{:04}", number / 50)));
        }
        items.push(Item::File(
            format!("lib/package{:04}/module{number}.py", number / 50),
            50_000,
        ));
    }
    items
}
