//! Nothing is fetched twice: not for two containers of one image, nor for two images that share a layer.

use anyhow::{Result, ensure};
use forelayer_tests::engine::{images::Format, podman::Generation, process, store::Store};

use crate::{
    Test, for_each_lazy,
    lab::{DEMAND_ONLY, Lab, last_line},
};

pub(crate) fn add(tests: &mut Vec<Test>) {
    for_each_lazy(tests, "once::two_containers", containers);
    for_each_lazy(tests, "once::shared_layer", shared);
}

/// Chunks that were brought, and chunks that are there; the first is larger only when one came twice.
fn chunks(store: &Store<'_>) -> Result<(u64, u64)> {
    let mut brought = 0.0;
    for lane in ["demand", "predicted", "nearby", "background"] {
        brought += store.metric(&format!("forelayer_chunks_total{{lane=\"{lane}\"}}"))?;
    }
    let status = store.get_json("/v1/status")?;
    let mut blobs = std::collections::BTreeMap::new();
    for image in status["images"].as_array().into_iter().flatten() {
        for layer in image["layers"].as_array().into_iter().flatten() {
            // The same blob under two references is one blob.
            blobs.insert(
                layer["blob"].to_string(),
                layer["present_chunks"].as_u64().unwrap_or(0),
            );
        }
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a count far below 2^53"
    )]
    Ok((brought as u64, blobs.values().sum()))
}

/// Fails if a chunk came twice. `images`: those that were pulled.
fn check(lab: &Lab, store: &Store<'_>, format: Format, images: &[&str]) -> Result<u64> {
    let (brought, present) = chunks(store)?;
    ensure!(present > 100, "only {present} chunks are there");
    // Runs of zeros, which only zstd:chunked knows, are there without having been brought.
    let mut zeros = 0;
    let mut seen = std::collections::BTreeSet::new();
    for image in images {
        for layer in lab.image(format, image)?.layers {
            if seen.insert(layer.blob.clone()) {
                let toc = lab.stored.toc(&layer)?;
                let entries = toc["entries"].as_array().into_iter().flatten();
                zeros += entries
                    .filter(|entry| entry["chunkType"] == "zeros")
                    .count() as u64;
            }
        }
    }
    ensure!(
        brought <= present && present <= brought + zeros,
        "{brought} chunks were brought, {present} are there, {zeros} are zeros"
    );
    Ok(brought)
}

fn containers(lab: &Lab, generation: Generation, format: Format) -> Result<()> {
    let store = lab.running(DEMAND_ONLY)?;
    let podman = lab.podman(generation, Some(&store.mount()))?;
    let reference = lab.reference(format, "python");
    podman.run(&["pull", &reference])?;
    // Created one after the other (Podman locks its storage anyway), started at the same time.
    let mut names = Vec::new();
    for name in ["one", "two"] {
        podman.run(&["create", "--name", name, &reference])?;
        names.push(name);
    }
    let outputs = std::thread::scope(|scope| {
        let running: Vec<_> = names
            .iter()
            .map(|name| {
                let mut command = podman.command(&["start", "--attach", name]);
                scope.spawn(move || process::run(&mut command))
            })
            .collect();
        running
            .into_iter()
            .map(|thread| thread.join().expect("the thread does not panic"))
            .collect::<Result<Vec<_>>>()
    })?;
    for output in outputs {
        ensure!(
            last_line(&output).starts_with("ready "),
            "a container said {output:?}"
        );
    }
    check(lab, &store, format, &["python"])?;
    Ok(())
}

fn shared(lab: &Lab, generation: Generation, format: Format) -> Result<()> {
    let store = lab.running(DEMAND_ONLY)?;
    let podman = lab.podman(generation, Some(&store.mount()))?;
    let python = lab.reference(format, "python");
    let base = lab.reference(format, "base");
    // All of the shared layer's programs, through two images.
    let read = ["sh", "-c", "cat /usr/bin/* /usr/sbin/* | sha256sum"];
    podman.run(&["pull", &base])?;
    let first = podman.run(&[&["run", "--rm", &base], &read[..]].concat())?;
    let before = check(lab, &store, format, &["base"])?;
    podman.run(&["pull", &python])?;
    let layer = &lab.image(format, "base")?.layers[0].blob;
    let mark = lab.images.mark()?;
    podman.run(&[
        "run",
        "--rm",
        &python,
        "sh",
        "-c",
        "cat /usr/bin/dpkg /usr/bin/perl | sha256sum",
    ])?;
    let again = lab
        .images
        .requests_since(mark)?
        .into_iter()
        .filter(|request| request.blob() == layer.strip_prefix("sha256:"))
        .count();
    ensure!(
        again == 0,
        "the shared layer was asked for {again} times more"
    );
    let after = check(lab, &store, format, &["base", "python"])?;
    ensure!(after >= before && !first.is_empty());
    Ok(())
}
