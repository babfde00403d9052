//! One start teaches the next: with a slow registry, a start that was recorded before finds its bytes fetched ahead.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use forelayer_tests::{
    engine::{
        images::{self, Format},
        podman::Generation,
        process,
        store::{self, Store},
    },
    registry::Server,
};
use serde_json::Value;

use crate::{Test, lab::Lab};

/// Added to every request.
const LATENCY: Duration = Duration::from_millis(50);
/// How long the store may take to learn a start that has ended.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn add(tests: &mut Vec<Test>) {
    for (generation, format) in [
        (Generation::ByBlob, Format::Zstd4),
        (Generation::ByBlob, Format::Estargz),
        (Generation::ByToc, Format::Zstd5),
        (Generation::ByToc, Format::Estargz),
    ] {
        tests.push((
            format!(
                "learn::second_start::{}::{}",
                generation.name(),
                format.name()
            ),
            Box::new(move |lab| second_start(lab, generation, format)),
        ));
    }
    tests.push((
        "learn::nothing_without_a_witness".into(),
        Box::new(unlearned),
    ));
}

/// Options of a store of which only the witness's predictions are fetched ahead: neither the rest of the image nor what
/// lies near to a miss.
pub(crate) fn options(level: &str) -> String {
    format!(
        "[fetch]\nbackground = false\nnearby_bytes = 0\n[witness]\nlevel = \"{level}\"\nquiet = 5\n"
    )
}

/// What a start cost, from the store's metrics.
#[derive(Debug)]
struct Cost {
    stall_seconds: f64,
    demanded: f64,
    predicted: f64,
    /// By outcome: used, late, waste.
    outcomes: [f64; 3],
    predicted_bytes: [f64; 3],
    said: String,
}

/// A cold start: storage, cache and the machine's page cache are empty, only profiles are kept.
fn cold_start(
    lab: &Lab,
    store: &mut Store<'_>,
    generation: Generation,
    reference: &str,
    learns: bool,
) -> Result<Cost> {
    store.stop()?;
    if store.state_dir().exists() {
        store.forget()?;
    }
    store::drop_caches()?;
    store.start()?;
    store.watch()?;
    let podman = lab.podman(generation, Some(&store.mount()))?;
    podman.run(&["images"])?;
    podman.run(&["pull", reference])?;
    let said = podman.run(&["run", "--rm", reference])?;
    if learns {
        process::until("the trace", PATIENCE, || {
            Ok((store.metric("forelayer_traces_total")? >= 1.0).then_some(()))
        })
        .with_context(|| format!("the witness's log ends:\n{}", store.log_end("watch")))?;
    }
    let by = |metric: &str, label: &str| store.metric(&format!("forelayer_{metric}{{{label}}}"));
    let outcomes = |metric: &str| -> Result<[f64; 3]> {
        Ok([
            by(metric, "outcome=\"used\"")?,
            by(metric, "outcome=\"late\"")?,
            by(metric, "outcome=\"waste\"")?,
        ])
    };
    Ok(Cost {
        stall_seconds: store.metric("forelayer_stall_microseconds_total")? / 1e6,
        demanded: by("chunks_total", "lane=\"demand\"")?,
        predicted: by("chunks_total", "lane=\"predicted\"")?,
        outcomes: outcomes("predictions_total")?,
        predicted_bytes: outcomes("predicted_bytes_total")?,
        said,
    })
}

/// A number of a log line.
fn number(fields: &Value, name: &str) -> Result<f64> {
    fields[name]
        .as_f64()
        .with_context(|| format!("no {name} in {fields}"))
}

fn second_start(lab: &Lab, generation: Generation, format: Format) -> Result<()> {
    let proxy = Server::start_proxy(&lab.images.host())?;
    proxy.set_latency(LATENCY);
    let reference = images::reference(&proxy.host(), format, "python");
    // What is asked for before the manifest is to be told from what is asked for before the engine asks.
    let deaf = format!("{}[prefetch]\nread_commands = false\n", options("auto"));
    let mut store = lab.store(&deaf)?;

    let first = cold_start(lab, &mut store, generation, &reference, true)?;
    ensure!(
        first.predicted == 0.0,
        "the first start predicted: {first:?}"
    );
    ensure!(
        asked_early(&proxy)? == 0,
        "a pull that nothing is known of asked for ranges before its manifest"
    );
    proxy.log().clear();
    let learned = store.logged("watch", "learned a start")?;
    let run = learned.last().context("no start was learned")?;
    check_workload(&store, run)?;

    let second = cold_start(lab, &mut store, generation, &reference, true)?;
    let early = asked_early(&proxy)?;
    ensure!(
        early > 0,
        "the second pull waited for its manifest before it asked for anything else"
    );
    let learned = store.logged("watch", "learned a start")?;
    let run = learned.last().context("no start was learned")?;
    println!("{}/{}: first {first:?}", generation.name(), format.name());
    println!(
        "{}/{}: second {second:?} {run}",
        generation.name(),
        format.name()
    );
    ensure!(
        second.said == first.said,
        "the container said something else"
    );
    let touched = number(run, "touched_chunks")?;
    ensure!(
        second.demanded <= 0.02 * touched,
        "{} of {touched} touched chunks were fetched on demand",
        second.demanded
    );
    let predicted_bytes: f64 = second.predicted_bytes.iter().sum();
    let touched_bytes = number(run, "touched_chunk_bytes")?;
    ensure!(predicted_bytes > 0.0, "nothing was predicted");
    ensure!(
        predicted_bytes <= 1.25 * touched_bytes,
        "{predicted_bytes} bytes were predicted, {touched_bytes} touched"
    );
    ensure!(
        second.stall_seconds <= first.stall_seconds / 5.0,
        "the second start stalled {} s, the first {} s",
        second.stall_seconds,
        first.stall_seconds
    );
    // Every predicted chunk is either used (in time or late) or counted as waste.
    let accounted: f64 = second.outcomes.iter().sum();
    ensure!(
        accounted >= second.predicted,
        "{} chunks were predicted, {accounted} accounted for",
        second.predicted
    );
    command_line_is_enough(lab, &mut store, generation, &reference)
}

/// An engine that names a learned image, and whose policy refuses it: the store has looked it up all the same and follows
/// its plan, nobody having asked it for a layer.
fn command_line_is_enough(
    lab: &Lab,
    store: &mut Store<'_>,
    generation: Generation,
    reference: &str,
) -> Result<()> {
    store.stop()?;
    store.forget()?;
    store.configure(&options("auto"))?;
    store.start()?;
    let podman = lab.podman(generation, Some(&store.mount()))?;
    let policy = podman.directory().join("reject.json");
    std::fs::write(&policy, r#"{"default": [{"type": "reject"}]}"#)?;
    let policy = policy.to_str().context("a path that is no text")?;
    let output = podman.output(&["pull", "--signature-policy", policy, reference])?;
    ensure!(
        !output.success && output.stderr.contains("policy"),
        "the policy was to refuse it: {output:?}"
    );
    process::until("the image's layers", PATIENCE, || {
        Ok((store.metric("forelayer_layers")? >= 2.0).then_some(()))
    })?;
    process::until("what is predicted of it", PATIENCE, || {
        let predicted = store.metric("forelayer_chunks_total{lane=\"predicted\"}")?;
        Ok((predicted > 0.0).then_some(()))
    })?;
    for result in ["served", "no", "refused", "failed"] {
        let lookups = store.metric(&format!("forelayer_lookups_total{{result=\"{result}\"}}"))?;
        ensure!(lookups == 0.0, "{lookups} lookups: {result}");
    }
    Ok(())
}

/// Ranges that were asked for before the store had its manifest, which is the last that is asked for: the engine has its
/// own before it looks for layers.
fn asked_early(proxy: &Server) -> Result<usize> {
    let manifests = proxy.log().manifest_requests();
    let manifest = manifests.iter().max_by_key(|record| record.start);
    let there = manifest
        .and_then(|record| record.end)
        .context("no manifest was asked for")?;
    let records = proxy.log().records();
    let early = records
        .iter()
        .filter(|record| record.range.is_some() && record.start < there);
    Ok(early.count())
}

/// The program is what the numbers are asked of: 20 MB in 300 files over 2 layers.
fn check_workload(store: &Store<'_>, run: &Value) -> Result<()> {
    ensure!(number(run, "lost")? == 0.0, "events were lost: {run}");
    ensure!(number(run, "files")? >= 300.0, "too few files: {run}");
    ensure!(
        number(run, "touched_bytes")? >= 20e6,
        "too few bytes: {run}"
    );
    let profiles = store.profiles()?;
    ensure!(profiles.len() == 1, "{} profiles", profiles.len());
    let layers: std::collections::BTreeSet<&str> = profiles[0]["runs"][0]["files"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|file| file["layer"].as_str())
        .collect();
    ensure!(layers.len() >= 2, "only the layers {layers:?} were touched");
    Ok(())
}

/// Ranges come from the witness alone: without it a second start is like the first.
fn unlearned(lab: &Lab) -> Result<()> {
    let reference = lab.reference(Format::Zstd5, "python");
    let mut store = lab.store(&options("off"))?;
    for start in ["first", "second"] {
        let cost = cold_start(lab, &mut store, Generation::ByToc, &reference, false)?;
        ensure!(
            cost.predicted == 0.0,
            "the {start} start predicted: {cost:?}"
        );
        ensure!(
            cost.demanded > 100.0,
            "the {start} start fetched nothing: {cost:?}"
        );
    }
    ensure!(store.profiles()?.is_empty(), "a profile was made");
    Ok(())
}
