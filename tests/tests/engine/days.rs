//! The days of a node: what a user does by hand, what follows by itself, and what a start finds when the image was
//! there all along.

use std::{collections::BTreeMap, fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use forelayer_tests::engine::{
    images::Format,
    podman::{Generation, Podman},
    process,
    store::{self, Store},
};

use crate::{
    Test,
    lab::{DEMAND_ONLY, Lab, last_line},
    learn::options,
};

/// How long the store may take for what it does by itself; a bound against hanging.
const PATIENCE: Duration = Duration::from_secs(300);

pub(crate) fn add(tests: &mut Vec<Test>) {
    tests.push(("days::by_hand".into(), Box::new(by_hand)));
    tests.push(("days::the_rest_follows".into(), Box::new(rest)));
    for generation in Generation::ALL {
        tests.push((
            format!("days::the_second_day::{}", generation.name()),
            Box::new(move |lab| second_day(lab, generation)),
        ));
        tests.push((
            format!("days::a_warm_start_asks_for_nothing::{}", generation.name()),
            Box::new(move |lab| warm(lab, generation)),
        ));
    }
}

/// Chunks in all layers of all images: (here, all).
fn chunks(store: &Store<'_>) -> Result<(u64, u64)> {
    let status = store.get_json("/v1/status")?;
    let images = status["images"].as_array().into_iter().flatten();
    let layers = images.flat_map(|image| image["layers"].as_array().into_iter().flatten());
    Ok(layers.fold((0, 0), |(here, all), layer| {
        (
            here + layer["present_chunks"].as_u64().unwrap_or(0),
            all + layer["chunks"].as_u64().unwrap_or(0),
        )
    }))
}

/// `forelayer ARGUMENTS -- podman run --rm REFERENCE`, where Podman runs as it does in all tests.
fn around(store: &Store<'_>, arguments: &[&str], podman: &Podman<'_>, reference: &str) -> Command {
    let inner = podman.command(&["run", "--rm", reference]);
    let mut command = store.command(arguments);
    command
        .arg("--")
        .arg(inner.get_program())
        .args(inner.get_args());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

/// `profile record`, `list`, `show` and `delete`, `prefetch` and `status`, as a user types them.
fn by_hand(lab: &Lab) -> Result<()> {
    let reference = lab.reference(Format::Zstd5, "python");
    let mut store = lab.running(&options("auto"))?;
    let podman = lab.podman(Generation::ByToc, Some(&store.mount()))?;
    let nothing = process::run(&mut store.command(&["profile", "list"]))?;
    ensure!(!nothing.is_empty(), "an empty list says nothing");

    let record = [
        "profile",
        "record",
        "--image",
        &reference,
        "--ready-line",
        "^ready ",
    ];
    let said = process::output(&mut around(&store, &record, &podman, &reference))?;
    ensure!(
        said.success && last_line(&said.stdout).starts_with("ready "),
        "the recording ended with {:?} and said {said:?}",
        said.code
    );
    let file = said
        .stderr
        .split_whitespace()
        .map(|word| word.trim_matches(|c| matches!(c, '"' | ',' | ';')))
        .find(|word| word.ends_with(".json"))
        .with_context(|| format!("no profile's path in {:?}", said.stderr))?
        .to_owned();
    ensure!(Path::new(&file).is_file(), "there is no {file}");

    // An image that never starts is named.
    let other = ["profile", "record", "--image", "registry.invalid/other:1"];
    let other = process::output(&mut around(&store, &other, &podman, &reference))?;
    ensure!(
        !other.success && other.stderr.contains("registry.invalid/other:1"),
        "recording another image ended with {other:?}"
    );

    // The image goes, the profile stays.
    podman.run(&["rmi", "--all", "--force"])?;
    store.stop()?;
    store.forget()?;
    store.start()?;
    ensure!(store.profiles()?.len() == 1, "the profile has gone");
    let fetched = process::run(&mut store.command(&["prefetch", &reference]))?;
    ensure!(fetched.contains("fetched"), "prefetch said {fetched:?}");
    let predicted = store.metric("forelayer_chunks_total{lane=\"predicted\"}")?;
    ensure!(predicted > 100.0, "{predicted} chunks were prefetched");
    let shown = process::run(&mut store.command(&["status"]))?;
    ensure!(shown.contains(&reference), "the status is {shown}");
    podman.run(&["pull", &reference])?;
    podman.run(&["run", "--rm", &reference])?;
    let demanded = store.metric("forelayer_chunks_total{lane=\"demand\"}")?;
    ensure!(
        demanded <= 0.02 * predicted,
        "{demanded} chunks were missing after {predicted} were prefetched"
    );
    process::run(&mut store.command(&["prefetch", "--all", &reference]))?;
    let (here, all) = chunks(&store)?;
    ensure!(here == all && all > 0, "{here} of {all} chunks are here");

    pass_on(&store, &reference, &file)?;
    process::run(&mut store.command(&["profile", "delete", &file]))?;
    ensure!(!Path::new(&file).exists(), "{file} is still there");
    let without = process::output(&mut store.command(&["prefetch", &reference]))?;
    ensure!(
        !without.success && without.stderr.contains("no profile"),
        "without a profile prefetch said {without:?}"
    );
    store.stop()
}

/// `profile show --html`, `pin`, `export`, `import` and `diff`: a profile goes to another node and is the same there.
fn pass_on(store: &Store<'_>, reference: &str, file: &str) -> Result<()> {
    let profile = |arguments: &[&str]| {
        let arguments: Vec<&str> = std::iter::once("profile")
            .chain(arguments.iter().copied())
            .collect();
        process::run(&mut store.command(&arguments))
    };
    let place = |name: &str| store.state_dir().with_file_name(name).display().to_string();
    let (page, bundle) = (place("start.html"), place("bundle.json"));
    profile(&["show", "--html", "-o", &page, reference])?;
    let drawn = fs::read_to_string(&page)?;
    ensure!(
        drawn.contains("<svg") && drawn.contains(reference),
        "{page} shows no start of {reference}"
    );

    let pinned = || -> Result<Vec<bool>> {
        let shown = profile(&["show", "--json", reference])?;
        let shown: serde_json::Value = serde_json::from_str(&shown)?;
        let runs = shown["runs"].as_array().context("no runs")?;
        Ok(runs
            .iter()
            .map(|run| run["pinned"].as_bool().unwrap_or(false))
            .collect())
    };
    let before = pinned()?;
    ensure!(!before.is_empty() && !before.contains(&true), "{before:?}");
    profile(&["pin", reference])?;
    ensure!(!pinned()?.contains(&false), "the pin is not kept");

    profile(&["export", "-o", &bundle, reference])?;
    profile(&["delete", file])?;
    ensure!(store.profiles()?.is_empty(), "{file} is still there");
    profile(&["import", &bundle])?;
    ensure!(Path::new(file).is_file(), "{file} was not taken in");
    let differs = profile(&["diff", "--json", &bundle, reference])?;
    let differs: serde_json::Value = serde_json::from_str(&differs)?;
    let pages = &differs["pages"];
    ensure!(
        pages["only_a"] == 0 && pages["only_b"] == 0 && pages["common"].as_u64() > Some(100),
        "after a journey: {pages}"
    );
    profile(&["unpin", reference])?;
    ensure!(!pinned()?.contains(&true), "the pin is still there");
    // It is used again, as it was before.
    process::run(&mut store.command(&["prefetch", reference])).map(drop)
}

/// With nothing read, the complete image comes by itself, verified, and is served without the registry.
fn rest(lab: &Lab) -> Result<()> {
    let reference = lab.reference(Format::Estargz, "python");
    let mut store = lab.running("[prefetch]\nenabled = false\n")?;
    let podman = lab.podman(Generation::ByToc, Some(&store.mount()))?;
    podman.run(&["pull", &reference])?;
    process::until("the whole image", PATIENCE, || {
        let (here, all) = chunks(&store)?;
        Ok((here == all && all > 1000).then_some(()))
    })?;
    ensure!(store.metric("forelayer_chunks_total{lane=\"background\"}")? > 1000.0);
    ensure!(store.metric("forelayer_verify_failures_total")? == 0.0);
    let mark = lab.images.mark()?;
    podman.run(&["run", "--rm", &reference])?;
    let asked = lab.images.requests_since(mark)?;
    let asked = asked.iter().filter(|request| request.blob().is_some());
    ensure!(asked.count() == 0, "the registry was asked for blobs again");
    store.stop()
}

/// Deletes what a stopped store has cached of all blobs, as an eviction would.
fn evict(store: &Store<'_>) -> Result<()> {
    let mut evicted = 0;
    for blob in fs::read_dir(store.state_dir().join("blobs/sha256"))? {
        for name in ["data", "present"] {
            let path = blob
                .as_ref()
                .map_or_else(|_| std::path::PathBuf::new(), |blob| blob.path().join(name));
            if path.exists() {
                fs::remove_file(&path)?;
                evicted += 1;
            }
        }
    }
    ensure!(evicted > 0, "nothing was cached");
    Ok(())
}

/// The image is there since yesterday, its bytes are not: the container's mount alone starts the plan.
fn second_day(lab: &Lab, generation: Generation) -> Result<()> {
    let reference = lab.reference(Format::Zstd5, "python");
    let mut store = lab.running(&options("auto"))?;
    store.watch()?;
    let podman = lab.podman(generation, Some(&store.mount()))?;
    podman.run(&["pull", &reference])?;
    let first = podman.run(&["run", "--rm", &reference])?;
    process::until("the trace", PATIENCE, || {
        Ok((store.metric("forelayer_traces_total")? >= 1.0).then_some(()))
    })
    .with_context(|| store.log_end("watch"))?;
    store.stop()?;
    evict(&store)?;
    store::drop_caches()?;
    store.start()?;
    store.watch()?;
    let again = podman.run(&["run", "--rm", &reference])?;
    ensure!(again == first, "the container said {again:?}");
    let predicted = store.metric("forelayer_chunks_total{lane=\"predicted\"}")?;
    ensure!(predicted > 100.0, "only {predicted} chunks were predicted");
    process::until("the second trace", PATIENCE, || {
        Ok((store.metric("forelayer_traces_total")? >= 1.0).then_some(()))
    })
    .with_context(|| store.log_end("watch"))?;
    ensure!(
        store.metric("forelayer_warmed_bytes_total")? > 0.0,
        "no page was filled ahead"
    );
    store.stop()
}

/// Messages of a data mount by operation.
fn messages(store: &Store<'_>, mount: &str) -> Result<BTreeMap<String, u64>> {
    let page = store.get("/metrics")?;
    let head = format!("forelayer_fuse_requests_total{{mount=\"{mount}\",op=\"");
    Ok(page
        .lines()
        .filter_map(|line| {
            let (op, count) = line.strip_prefix(&head)?.split_once("\"} ")?;
            Some((op.to_owned(), count.parse().ok()?))
        })
        .collect())
}

/// Names that Podman 5 makes with `O_EXCL` where the image has them already: for these the kernel asks every time.
const EXCLUSIVE: u64 = 3;

/// Warm starts that are tried.
const WARM_STARTS: usize = 5;

/// The second start of a warm image sends one STATFS a lower and no other message for metadata but what the engine's own
/// writing brings (docs/design.md, "Mounts").
fn warm(lab: &Lab, generation: Generation) -> Result<()> {
    let reference = lab.reference(Format::Zstd5, "python");
    let layers = lab.image(Format::Zstd5, "python")?.layers.len() as u64;
    let expected = BTreeMap::from([("statfs".to_owned(), layers)]);
    let mut store = lab.running(DEMAND_ONLY)?;
    let podman = lab.podman(generation, Some(&store.mount()))?;
    podman.run(&["pull", &reference])?;
    let first = podman.run(&["run", "--rm", &reference])?;
    let mut sent = BTreeMap::new();
    // A machine that takes cached pages and names back between two starts makes the second one ask for them again: that
    // says nothing of the store. One that is left alone must ask for nothing, so one of these does.
    for _ in 0..WARM_STARTS {
        let before = messages(&store, "plain")?;
        let again = podman.run(&["run", "--rm", &reference])?;
        ensure!(again == first, "the container said {again:?}");
        sent = BTreeMap::new();
        for (op, count) in messages(&store, "plain")? {
            let more = count - before.get(&op).copied().unwrap_or(0);
            let by_the_engine_s_writing = op == "ioctl"
                || op == "lookup" && generation == Generation::ByToc && more <= EXCLUSIVE;
            // Pages that the machine took back meanwhile are read again.
            if more > 0 && op != "read" && !by_the_engine_s_writing {
                sent.insert(op, more);
            }
        }
        println!("{}: {sent:?}", generation.name());
        if sent == expected {
            return store.stop();
        }
    }
    bail!("every warm start sent more than one STATFS a layer, the last {sent:?}")
}
