//! The witness on real containers: complete traces, told apart; every level; and nothing depends on it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use forelayer_tests::engine::{images::Format, podman::Generation, process, store::Store};
use serde_json::Value;

use crate::{
    Test, Unavailable,
    lab::{Lab, last_line},
    learn::options,
};

/// How long the store may take to learn a start that has ended.
const PATIENCE: Duration = Duration::from_secs(60);
/// The Python image's two ways to start.
const COMMANDS: [&[&str]; 2] = [
    &["python3", "/usr/local/bin/workload.py"],
    &["python3", "/usr/local/bin/workload.py", "other"],
];

pub(crate) fn add(tests: &mut Vec<Test>) {
    for generation in Generation::ALL {
        tests.push((
            format!("witness::two_containers_at_once::{}", generation.name()),
            Box::new(move |lab| at_once(lab, generation)),
        ));
    }
    tests.push(("witness::killed_midway".into(), Box::new(killed)));
    for level in ["tracepoints", "kprobes", "add"] {
        tests.push((
            format!("witness::level_{level}"),
            Box::new(move |lab| levels(lab, level)),
        ));
    }
}

/// Pages touched by file, of the newest run of each profile, by the workload's name.
type Traces = BTreeMap<String, BTreeMap<String, BTreeSet<u64>>>;

fn traces(store: &Store<'_>) -> Result<Traces> {
    let mut traces = Traces::new();
    for profile in store.profiles()? {
        let workload = profile["identity"]["workload"]
            .as_str()
            .context("a profile without a workload")?
            .to_owned();
        let run = &profile["runs"][0];
        ensure!(
            run["lost"] == 0 || run["lost"].is_null(),
            "events were lost"
        );
        let mut files: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
        for file in run["files"].as_array().into_iter().flatten() {
            let path = file["path"].as_str().context("a file without a path")?;
            let pages = files.entry(path.to_owned()).or_default();
            for range in file["ranges"].as_array().into_iter().flatten() {
                let first = range["page"].as_u64().context("a range without a page")?;
                let count = range["pages"].as_u64().context("a range without pages")?;
                pages.extend(first..first + count);
            }
        }
        traces.insert(workload, files);
    }
    Ok(traces)
}

fn wait_for_traces(store: &Store<'_>, count: f64) -> Result<()> {
    process::until("the traces", PATIENCE, || {
        Ok((store.metric("forelayer_traces_total")? >= count).then_some(()))
    })
    .with_context(|| format!("the witness's log ends:\n{}", store.log_end("watch")))
}

fn watched<'a>(lab: &'a Lab, level: &str) -> Result<Store<'a>> {
    let mut store = lab.running(&options(level))?;
    store.watch()?;
    Ok(store)
}

/// Two containers of one image, started together, give the traces that each gives alone.
fn at_once(lab: &Lab, generation: Generation) -> Result<()> {
    let reference = lab.reference(Format::Zstd5, "python");
    let run = |together: bool| -> Result<Traces> {
        let store = watched(lab, "auto")?;
        let podman = lab.podman(generation, Some(&store.mount()))?;
        podman.run(&["pull", &reference])?;
        let names = ["first", "second"];
        for (name, command) in names.iter().zip(COMMANDS) {
            podman.run(&[&["create", "--name", name, &reference], command].concat())?;
        }
        if together {
            std::thread::scope(|scope| {
                let threads = names.map(|name| {
                    let mut command = podman.command(&["start", "--attach", name]);
                    scope.spawn(move || process::run(&mut command))
                });
                threads
                    .into_iter()
                    .try_for_each(|thread| thread.join().expect("no panic").map(drop))
            })?;
        } else {
            for name in names {
                podman.run(&["start", "--attach", name])?;
            }
        }
        wait_for_traces(&store, 2.0)?;
        traces(&store)
    };
    let alone = run(false)?;
    let together = run(true)?;
    ensure!(alone.len() == 2, "alone: the workloads {:?}", alone.keys());
    ensure!(
        together.keys().eq(alone.keys()),
        "together: the workloads {:?}, alone {:?}",
        together.keys(),
        alone.keys()
    );
    let files: Vec<&BTreeMap<_, _>> = alone.values().collect();
    ensure!(
        files[0].keys().ne(files[1].keys()),
        "both touch the same files"
    );
    for (workload, files) in &alone {
        let others = &together[workload];
        let missing: Vec<_> = files
            .keys()
            .filter(|file| !others.contains_key(*file))
            .collect();
        let strange: Vec<_> = others
            .keys()
            .filter(|file| !files.contains_key(*file))
            .collect();
        ensure!(
            missing.is_empty() && strange.is_empty(),
            "{workload}: together, the files {missing:?} are missing, and {strange:?} are new"
        );
        let count = |files: &BTreeMap<String, BTreeSet<u64>>| -> usize {
            files.values().map(BTreeSet::len).sum()
        };
        // Which neighbours of a fault are mapped along depends on what the other container has brought already.
        let (pages, others) = (count(files), count(others));
        ensure!(
            others.abs_diff(pages) * 20 <= pages,
            "{workload}: {pages} pages alone, {others} together"
        );
    }
    Ok(())
}

/// Killed while a container starts, the witness changes nothing but the learning.
fn killed(lab: &Lab) -> Result<()> {
    let reference = lab.reference(Format::Zstd5, "python");
    let mut store = watched(lab, "auto")?;
    let podman = lab.podman(Generation::ByToc, Some(&store.mount()))?;
    podman.run(&["pull", &reference])?;
    let mut command = podman.command(&["run", "--rm", &reference]);
    let said = std::thread::scope(|scope| {
        let container = scope.spawn(move || process::run(&mut command));
        process::until("a recording", PATIENCE, || {
            Ok((!store.logged("watch", "recording a start")?.is_empty()).then_some(()))
        })?;
        store.kill_witness()?;
        container.join().expect("the thread does not panic")
    })?;
    ensure!(
        last_line(&said).starts_with("ready "),
        "the container said {said:?}"
    );
    ensure!(store.metric("forelayer_read_errors_total")? == 0.0);
    process::until("the store to notice", PATIENCE, || {
        Ok((store.metric("forelayer_witness_connected")? == 0.0).then_some(()))
    })?;
    ensure!(
        store.metric("forelayer_traces_total")? == 0.0,
        "half a start was learned"
    );
    let again = podman.run(&["run", "--rm", &reference])?;
    ensure!(
        again == said,
        "without a witness the container said {again:?}"
    );
    // Another one takes over.
    store.watch()?;
    podman.run(&["run", "--rm", &reference])?;
    wait_for_traces(&store, 1.0)?;
    let profile = store.profiles()?.pop().context("no profile")?;
    ensure!(
        files(&profile).len() >= 300,
        "{} files",
        files(&profile).len()
    );
    store.stop()
}

fn files(profile: &Value) -> BTreeSet<&str> {
    profile["runs"][0]["files"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|file| file["path"].as_str())
        .collect()
}

/// A forced level records the start at that level, and the next start is predicted from it.
fn levels(lab: &Lab, level: &str) -> Result<()> {
    let reference = lab.reference(Format::Zstd5, "python");
    let mut store = lab.running(&options(level))?;
    if let Err(error) = store.watch() {
        let log = store.log("watch").unwrap_or_default();
        if log.contains("this kernel has no") {
            return Err(Unavailable(format!("this kernel has no {level}: {error:#}")).into());
        }
        return Err(error);
    }
    let podman = lab.podman(Generation::ByToc, Some(&store.mount()))?;
    podman.run(&["pull", &reference])?;
    podman.run(&["run", "--rm", &reference])?;
    wait_for_traces(&store, 1.0)?;
    let profiles = store.profiles()?;
    ensure!(profiles.len() == 1, "{} profiles", profiles.len());
    let run = &profiles[0]["runs"][0];
    ensure!(
        run["level"] == level,
        "recorded at the level {}",
        run["level"]
    );
    let files = files(&profiles[0]);
    ensure!(files.len() >= 300, "only {} files", files.len());
    for file in ["usr/bin/python3.11", "usr/local/bin/workload.py"] {
        ensure!(files.contains(file), "{file} is not among the files");
    }
    store.stop()?;
    store.forget()?;
    forelayer_tests::engine::store::drop_caches()?;
    podman.wipe()?;
    store.start()?;
    store.watch()?;
    podman.run(&["pull", &reference])?;
    podman.run(&["run", "--rm", &reference])?;
    let predicted = store.metric("forelayer_chunks_total{lane=\"predicted\"}")?;
    ensure!(predicted > 100.0, "only {predicted} chunks were predicted");
    store.stop()
}
