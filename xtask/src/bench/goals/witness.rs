//! What watching costs a start: the programs' own run time, starts with and without a witness, and its memory.

use std::{collections::BTreeMap, fs, path::Path, time::Instant};

use anyhow::{Context as _, Result, ensure};
use forelayer_tests::engine::{environment, podman::Podman, process, store::Store};

use super::{
    super::{
        report::{megabytes, shown},
        stats::{estimate, median},
    },
    figure::{Figure, Goal},
    lab::{Lab, Published},
    memory::Memory,
    node::{self, Node},
};

const PAIRS: usize = 15;
const COUNTED: usize = 5;
const STATS: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// Has the kernel count what programs take, until it is dropped.
struct Stats {
    before: String,
}

impl Stats {
    fn new() -> Result<Self> {
        let before = fs::read_to_string(STATS).with_context(|| format!("cannot read {STATS}"))?;
        fs::write(STATS, "1").with_context(|| format!("cannot write {STATS}"))?;
        Ok(Self { before })
    }
}

impl Drop for Stats {
    fn drop(&mut self) {
        if let Err(error) = fs::write(STATS, self.before.trim()) {
            eprintln!("cannot write {STATS}: {error}");
        }
    }
}

pub(super) fn measure(program: &Path) -> Result<Vec<Figure>> {
    let environment = environment::prepare()?;
    let lab = Lab::new(program)?;
    let node = Node::new(&lab, &environment, program)?;
    let image = node.publish(0)?;
    // Without profiles' fetching, which the starts without a witness would have too: what is compared is watching.
    let mut store = lab.store("store", "[witness]\nquiet = 1\n")?;
    store.start()?;
    let podman = node.podman("engine", &store)?;
    podman.run(&["pull", "--quiet", &image.reference])?;
    process::run(&mut store.command(&["prefetch", "--all", &image.reference]))?;
    store.watch()?;
    // Fills the page cache, and is learned.
    start(&store, &podman, &image, true)?;
    let idle = memory(&store)?;
    let (mut with, mut without, mut more) = (Vec::new(), Vec::new(), Vec::new());
    for pair in 0..PAIRS {
        let mut one = |watched: bool| -> Result<f64> {
            if watched && store.witness_id().is_none() {
                store.watch()?;
            } else if !watched && store.witness_id().is_some() {
                store.kill_witness()?;
            }
            start(&store, &podman, &image, watched)
        };
        // Whoever comes second finds a warmer machine: by turns.
        let (watched, alone) = if pair % 2 == 0 {
            (one(true)?, one(false)?)
        } else {
            let alone = one(false)?;
            (one(true)?, alone)
        };
        with.push(watched);
        without.push(alone);
        more.push((watched - alone) / alone);
    }
    if store.witness_id().is_none() {
        store.watch()?;
    }
    let (events, seconds, share) = counted(&store, &podman, &image)?;
    let after = memory(&store)?;
    drop(podman);
    store.stop()?;
    let paired = estimate([&more], |[more]| Some(median(more)));
    Ok(vec![
        Figure::new("run time of the programs, of a start's time to ready", Goal::AtMost(1.0), share * 100.0, "%")
            .beside(format!("{:.2} ms in {events} runs", seconds * 1e3)),
        Figure::new(
            format!("a start with the witness beside one without, {PAIRS} pairs, everything local and warm"),
            Goal::AtMost(1.0),
            median(&more) * 100.0,
            "%",
        )
        .beside(format!(
            "medians {:.3} s and {:.3} s; {} %",
            median(&with),
            median(&without),
            shown(paired, 100.0, ""),
        )),
        Figure::new("memory of watch after the starts", Goal::AtMost(30.0), megabytes(after.resident), "MB")
            .beside(format!(
                "of it {:.0} MB without a file behind; at the most {:.0} MB; after one start {:.0} MB",
                megabytes(after.anonymous),
                megabytes(after.peak),
                megabytes(idle.resident)
            )),
    ])
}

fn memory(store: &Store<'_>) -> Result<Memory> {
    Memory::of(store.witness_id().context("no witness runs")?)
}

/// Seconds from `podman run` to the program's line.
fn start(store: &Store<'_>, podman: &Podman<'_>, image: &Published, watched: bool) -> Result<f64> {
    let once = || {
        let begin = Instant::now();
        let ready = node::ready(node::start(podman, "start", &image.reference))?;
        podman.run(&["rm", "start"])?;
        Ok((ready - begin).as_secs_f64())
    };
    if !watched {
        return once();
    }
    let (seconds, recorded) = node::recorded(store, 1, once)?;
    ensure!(
        recorded,
        "the start was not recorded; the log of watch ends:\n{}",
        store.log_end("watch")
    );
    Ok(seconds)
}

/// Runs of the programs in a start, their seconds, and the share of the time to ready: of each the median.
fn counted(store: &Store<'_>, podman: &Podman<'_>, image: &Published) -> Result<(f64, f64, f64)> {
    let _stats = Stats::new()?;
    let witness = store.witness_id().context("no witness runs")?;
    let (mut runs, mut seconds, mut shares) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..COUNTED {
        let before = programs(witness)?;
        let ready = start(store, podman, image, true)?;
        let after = programs(witness)?;
        ensure!(!after.is_empty(), "the witness has no programs");
        let (mut count, mut nanoseconds) = (0, 0);
        for (id, (now, took)) in after {
            let (then, had) = before.get(&id).copied().unwrap_or_default();
            count += now - then;
            nanoseconds += took - had;
        }
        #[expect(clippy::cast_precision_loss, reason = "of some seconds")]
        let (count, took) = (count as f64, nanoseconds as f64 / 1e9);
        runs.push(count);
        seconds.push(took);
        shares.push(took / ready);
    }
    Ok((median(&runs), median(&seconds), median(&shares)))
}

/// Runs and nanoseconds of each program that a process holds, by its number.
fn programs(process: u32) -> Result<BTreeMap<u64, (u64, u64)>> {
    let path = format!("/proc/{process}/fdinfo");
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(&path).with_context(|| format!("cannot list {path}"))? {
        // One that was closed meanwhile is none.
        let text = fs::read_to_string(entry?.path()).unwrap_or_default();
        let field = |name: &str| -> Option<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().parse().ok()
        };
        if let (Some(id), Some(count), Some(time)) =
            (field("prog_id:"), field("run_cnt:"), field("run_time_ns:"))
        {
            found.insert(id, (count, time));
        }
    }
    Ok(found)
}
