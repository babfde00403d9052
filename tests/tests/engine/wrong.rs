//! Wrong bytes from a registry never reach a reader, leave nothing wrong behind, and are forgotten once it is sane.

use std::{fs, io::Read as _, path::Path};

use anyhow::{Context as _, Result, ensure};
use forelayer_tests::{
    engine::{
        images::{self, Format},
        store::{Store, layer_path},
        stored::StoredLayer,
        tree,
    },
    registry::{Fault, Rule, Server},
};
use rustix::io::Errno;
use serde_json::Value;

use crate::{
    Test,
    lab::{DEMAND_ONLY, Lab},
};

/// The file that is read: several chunks in every format.
const FILE: &str = "usr/bin/python3.11";

/// What goes wrong.
#[derive(Debug, Clone, Copy)]
enum Wrong {
    FlippedBit,
    Truncated,
    OtherBlob,
    Html,
}

pub(crate) fn add(tests: &mut Vec<Test>) {
    for format in [Format::Zstd5, Format::Estargz] {
        for (wrong, name) in [
            (Wrong::FlippedBit, "flipped_bit"),
            (Wrong::Truncated, "truncated"),
            (Wrong::OtherBlob, "other_blob"),
            (Wrong::Html, "html"),
        ] {
            tests.push((
                format!("wrong::{name}::{}", format.name()),
                Box::new(move |lab| read(lab, format, wrong)),
            ));
        }
        tests.push((
            format!("wrong::raw_blob::{}", format.name()),
            Box::new(move |lab| raw(lab, format)),
        ));
        tests.push((
            format!("wrong::toc::{}", format.name()),
            Box::new(move |lab| toc(lab, format)),
        ));
    }
}

/// The TOC's entry of the file that is read.
fn file_entry(lab: &Lab, layer: &StoredLayer) -> Result<Value> {
    let toc = lab.stored.toc(layer)?;
    toc["entries"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|entry| {
            entry["type"] == "reg"
                && entry["name"]
                    .as_str()
                    .is_some_and(|name| name.trim_start_matches("./") == FILE)
        })
        .cloned()
        .with_context(|| format!("the TOC has no {FILE}"))
}

fn rule(
    lab: &Lab,
    format: Format,
    layer: &StoredLayer,
    entry: &Value,
    wrong: Wrong,
) -> Result<Rule> {
    let offset = entry["offset"]
        .as_u64()
        .context("an entry without an offset")?;
    let fault = match wrong {
        // Behind the headers of gzip and zstd, in the data.
        Wrong::FlippedBit => Fault::FlipBit {
            offset: offset + 500,
        },
        Wrong::Truncated => Fault::Truncate { after: 300 },
        Wrong::OtherBlob => Fault::OtherBlob {
            digest: lab.image(format, "postgres")?.layers[1].blob.clone(),
        },
        Wrong::Html => Fault::Html,
    };
    Ok(Rule::blob(&layer.blob, fault))
}

fn setup<'a>(lab: &'a Lab, format: Format) -> Result<(Server, Store<'a>, StoredLayer, String)> {
    let proxy = Server::start_proxy(&lab.images.host())?;
    let store = lab.running(DEMAND_ONLY)?;
    let layer = lab.image(format, "python")?.layers[1].clone();
    let reference = images::reference(&proxy.host(), format, "python");
    Ok((proxy, store, layer, reference))
}

fn is_io_error(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(Errno::IO.raw_os_error())
}

fn read(lab: &Lab, format: Format, wrong: Wrong) -> Result<()> {
    let (proxy, mut store, layer, reference) = setup(lab, format)?;
    let entry = file_entry(lab, &layer)?;
    let expected = entry["digest"]
        .as_str()
        .context("a file without a digest")?;
    let file = layer_path(&store.mount(), &reference, &layer.blob)
        .join("diff")
        .join(FILE);
    let size = fs::metadata(&file)?.len();
    ensure!(entry["size"] == size, "{FILE} has {size} bytes");

    proxy
        .faults()
        .add(rule(lab, format, &layer, &entry, wrong)?);
    match fs::read(&file) {
        Err(error) if is_io_error(&error) => {}
        Err(error) => anyhow::bail!("the read failed with {error}"),
        Ok(bytes) => anyhow::bail!("the read gave {} bytes", bytes.len()),
    }
    ensure!(proxy.faults().hits() > 0, "the fault was never met");
    let log = store.log("serve")?;
    ensure!(
        log.lines().any(|line| {
            line.contains(&layer.blob) && line.contains(FILE) && line.contains("chunk")
        }),
        "no line of the log names layer, file and chunk:\n{}",
        store.log_end("serve")
    );
    ensure!(store.metric("forelayer_read_errors_total")? >= 1.0);

    proxy.faults().clear();
    check(&file, expected).context("once the registry is sane")?;
    // What the cache has kept is right, too: the registry is not asked again.
    store.stop()?;
    drop(proxy);
    store.start()?;
    check(&file, expected).context("from the cache, after a restart")
}

fn check(file: &Path, expected: &str) -> Result<()> {
    let digest = format!("sha256:{}", hex::encode(tree::hash(file)?));
    ensure!(digest == expected, "{} holds {digest}", file.display());
    Ok(())
}

/// The raw blob's last read succeeds only if the whole digest matched.
fn raw(lab: &Lab, format: Format) -> Result<()> {
    let (proxy, store, layer, reference) = setup(lab, format)?;
    let path = layer_path(&store.mount(), &reference, &layer.blob);
    fs::metadata(path.join("diff"))?;
    let entry = file_entry(lab, &layer)?;
    proxy
        .faults()
        .add(rule(lab, format, &layer, &entry, Wrong::FlippedBit)?);
    let mut bytes = Vec::new();
    match fs::File::open(path.join("blob"))?.read_to_end(&mut bytes) {
        Err(error) if is_io_error(&error) => {}
        other => anyhow::bail!("reading the blob gave {other:?}"),
    }
    ensure!(
        (bytes.len() as u64) < layer.size,
        "all {} bytes were given away before the error",
        bytes.len()
    );
    proxy.faults().clear();
    check(&path.join("blob"), &layer.blob).context("once the registry is sane")
}

/// A layer whose TOC is wrong is not found, and found once the TOC is right; another image is not harmed.
fn toc(lab: &Lab, format: Format) -> Result<()> {
    let (proxy, mut store, layer, reference) = setup(lab, format)?;
    store.stop()?;
    // Each lookup asks anew.
    store.configure(&format!("{DEMAND_ONLY}[lookup]\nretry_delay = 0\n"))?;
    store.start()?;
    for fault in [
        Fault::Html,
        Fault::FlipBit {
            offset: toc_middle(lab, &layer)?,
        },
        Fault::Truncate { after: 100 },
    ] {
        proxy.faults().add(Rule::blob(&layer.blob, fault.clone()));
        let diff = layer_path(&store.mount(), &reference, &layer.blob).join("diff");
        match fs::metadata(&diff) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            other => anyhow::bail!("with {fault:?} the lookup gave {other:?}"),
        }
        ensure!(proxy.faults().hits() > 0, "{fault:?} was never met");
        ensure!(
            store.log("serve")?.contains(&layer.blob),
            "with {fault:?} the log does not name the layer:\n{}",
            store.log_end("serve")
        );
        proxy.faults().clear();
        let other = images::reference(&proxy.host(), format, "base");
        let base = lab.image(format, "base")?.layers[0].blob.clone();
        fs::metadata(layer_path(&store.mount(), &other, &base).join("diff"))
            .context("another image")?;
    }
    // Failures are remembered for a moment only.
    forelayer_tests::engine::process::until(
        "the layer, once the registry is sane",
        std::time::Duration::from_secs(30),
        || {
            let diff = layer_path(&store.mount(), &reference, &layer.blob).join("diff");
            Ok(fs::metadata(diff).ok())
        },
    )?;
    Ok(())
}

/// A byte in the middle of the compressed TOC.
fn toc_middle(lab: &Lab, layer: &StoredLayer) -> Result<u64> {
    let last = lab.stored.toc(layer)?["entries"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            entry["endOffset"]
                .as_u64()
                .or_else(|| entry["offset"].as_u64())
        })
        .max()
        .context("a TOC without data")?;
    let position = layer
        .annotations
        .get("io.github.containers.zstd-chunked.manifest-position")
        .and_then(|position| position.as_str()?.split(':').next()?.parse::<u64>().ok());
    // An eStargz TOC is the last thing before the footer.
    Ok(position.map_or(
        u64::midpoint(last, layer.size).max(layer.size - 50_000),
        |start| start + 1000,
    ))
}
