//! A store and a witness with nothing to do: how often they wake, what they keep; and what a GB served costs.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use forelayer_tests::{
    engine::{process, store::Store, store::drop_caches},
    fixtures::{Entry, Layer, Lazy},
};

use super::{
    super::{
        cost::{Meters, children},
        report::megabytes,
    },
    content,
    figure::{Figure, Goal},
    lab::{Lab, afresh},
    memory::Memory,
    overlay::read,
};

const WINDOW: Duration = Duration::from_secs(30);
const SIZE: usize = 512_000_000;

pub(super) fn measure(program: &Path) -> Result<Vec<Figure>> {
    let lab = Lab::new(program)?;
    let layer = Layer::build(
        &[Entry::file("file", content::program(3, SIZE))],
        &Lazy::zstd_chunked(),
    )?;
    let image = lab.publish("idle", &[layer])?;
    let mut store = lab.store("store", "")?;
    afresh(&mut store)?;
    store.watch()?;
    let mut figures = Vec::new();
    // The witness tries its programs when it starts.
    figures.extend(idle(&store, "the first 30 s", Goal::Told)?);
    figures.extend(idle(&store, "the next 30 s", Goal::AtMost(0.0))?);
    figures.push(memory(&store, "serve, never used", Goal::AtMost(25.0))?);
    let trees = image.trees(&store)?;
    process::run(&mut store.command(&["prefetch", "--all", &image.reference]))?;
    let file = trees
        .first()
        .context("an image without a layer")?
        .join("file");
    drop_caches()?;
    let meters = Meters::new("serve", store.server_id().context("no store runs")?)?;
    let (bytes, seconds) = read(&file)?;
    let cost = meters.first()?;
    figures.push(
        Figure::new(
            "processor seconds of the store for a GB served from its cache",
            Goal::Told,
            cost.cpu / megabytes(bytes) * 1e3,
            "s",
        )
        .beside(format!(
            "the page cache was empty; {:.0} MB/s by one reader",
            megabytes(bytes) / seconds
        )),
    );
    figures.extend(idle(
        &store,
        "the first 30 s after half a GB was brought and read",
        Goal::Told,
    )?);
    figures.extend(idle(&store, "the next 30 s after that", Goal::AtMost(0.0))?);
    figures.push(memory(
        &store,
        "serve, after half a GB was brought and read",
        Goal::AtMost(25.0),
    )?);
    store.stop()?;
    Ok(figures)
}

/// How often each of the processes wakes while nobody wants anything.
fn idle(store: &Store<'_>, when: &str, goal: Goal) -> Result<Vec<Figure>> {
    let server = store.server_id().context("no store runs")?;
    let witness = store.witness_id().context("no witness runs")?;
    let mut processes = vec![("serve".to_owned(), server), ("watch".to_owned(), witness)];
    processes.extend(
        children(server)?
            .into_iter()
            .map(|id| ("its holder".to_owned(), id)),
    );
    let before = (processes.iter())
        .map(|&(_, id)| switches(id))
        .collect::<Result<Vec<_>>>()?;
    // The measurement itself, not a wait for anything.
    std::thread::sleep(WINDOW);
    (processes.into_iter().zip(before))
        .map(|((name, id), before)| {
            let after = switches(id)?;
            let mut woken: Vec<(u64, String)> = (after.iter())
                .map(|(thread, (count, name))| {
                    let before = before.get(thread).map_or(0, |&(count, _)| count);
                    (count.saturating_sub(before), name.clone())
                })
                .filter(|&(count, _)| count > 0)
                .collect();
            woken.sort_by(|a, b| b.cmp(a));
            let count = woken.iter().map(|&(count, _)| count).sum::<u64>();
            let threads: Vec<_> = (woken.iter().take(4))
                .map(|(count, name)| format!("{name} {count}"))
                .collect();
            #[expect(clippy::cast_precision_loss, reason = "a count of seconds' wake-ups")]
            let figure = Figure::new(
                format!("wake-ups of {name} in 30 s, {when}"),
                goal,
                count as f64,
                "",
            );
            Ok(figure.beside(threads.join(", ")))
        })
        .collect()
}

/// Voluntary context switches of each thread of a process, and its name.
fn switches(process: u32) -> Result<std::collections::BTreeMap<String, (u64, String)>> {
    let path = format!("/proc/{process}/task");
    let mut found = std::collections::BTreeMap::new();
    for entry in fs::read_dir(&path).with_context(|| format!("cannot list {path}"))? {
        let entry = entry?;
        // A thread that has ended meanwhile wakes no more.
        let Ok(status) = fs::read_to_string(entry.path().join("status")) else {
            continue;
        };
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.map(|line| line.trim().to_owned())
        };
        let count = field("voluntary_ctxt_switches:").and_then(|count| count.parse().ok());
        let name = field("Name:").unwrap_or_default();
        let thread = entry.file_name().to_string_lossy().into_owned();
        found.insert(
            thread,
            (
                count.with_context(|| format!("{path} has no counts"))?,
                name,
            ),
        );
    }
    Ok(found)
}

fn memory(store: &Store<'_>, when: &str, goal: Goal) -> Result<Figure> {
    let of = |id: Option<u32>| Memory::of(id.context("it does not run")?);
    let (server, witness) = (of(store.server_id())?, of(store.witness_id())?);
    Ok(Figure::new(
        format!("memory of {when}"),
        goal,
        megabytes(server.resident),
        "MB",
    )
    .beside(format!(
        "of it {:.0} MB without a file behind; at the most {:.0} MB; watch {:.0} MB",
        megabytes(server.anonymous),
        megabytes(server.peak),
        megabytes(witness.resident)
    )))
}
