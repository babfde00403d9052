//! Pulling downloads manifests, configs and TOCs only; the container runs and answers; what leaves the engine again
//! (`save`, `push`) is the image.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write as _},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use forelayer_tests::engine::{
    images::{self, Format},
    podman::{Generation, Podman},
    process,
    stored::StoredImage,
};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::{
    Test, for_each_lazy,
    lab::{DEMAND_ONLY, Lab, last_line},
};

/// What the store may read at the end of a blob besides the TOC, by default.
const TAIL: u64 = 512 << 10;

pub(crate) fn add(tests: &mut Vec<Test>) {
    for_each_lazy(tests, "lazy::python_runs_and_answers", python);
    for (generation, format) in [
        (Generation::ByBlob, Format::Estargz),
        (Generation::ByToc, Format::Zstd5),
    ] {
        tests.push((
            format!(
                "lazy::postgres_answers::{}::{}",
                generation.name(),
                format.name()
            ),
            Box::new(move |lab| postgres(lab, generation, format)),
        ));
    }
    for (generation, format) in [
        (Generation::ByBlob, Format::Zstd5),
        (Generation::ByBlob, Format::Estargz),
        (Generation::ByToc, Format::Zstd5),
        (Generation::ByToc, Format::Estargz),
    ] {
        // Not of what Podman 4.3.1 wrote: its base layer decompresses to another digest than the DiffID that Podman put
        // into the config, and `save` rightly refuses it.
        tests.push((
            format!(
                "lazy::save_and_push::{}::{}",
                generation.name(),
                format.name()
            ),
            Box::new(move |lab| leave(lab, generation, format)),
        ));
        tests.push((
            format!(
                "lazy::index_of_platforms::{}::{}",
                generation.name(),
                format.name()
            ),
            Box::new(move |lab| platforms(lab, generation, format)),
        ));
    }
}

fn python(lab: &Lab, generation: Generation, format: Format) -> Result<()> {
    let store = lab.running(DEMAND_ONLY)?;
    let podman = lab.podman(generation, Some(&store.mount()))?;
    let image = lab.image(format, "python")?;
    let reference = lab.reference(format, "python");
    let mark = lab.images.mark()?;
    podman.run(&["pull", &reference])?;
    lab.check_only_metadata(mark, &image, TAIL)?;
    ensure!(
        store.metric("forelayer_layers")? >= 2.0,
        "the store does not serve the layers; its log ends:\n{}",
        store.log_end("serve")
    );
    // The manifest, the config, and a TOC a layer.
    let asked = store.metric("forelayer_requests_total{lane=\"metadata\"}")?;
    ensure!(asked <= 4.0, "opening two layers took {asked} requests");

    let answer = podman.run(&["run", "--rm", &reference])?;
    let count = last_line(&answer)
        .strip_prefix("ready ")
        .and_then(|count| count.parse::<u32>().ok())
        .with_context(|| format!("the program said {answer:?}"))?;
    ensure!(count > 400, "the program could read only {count} things");
    serve(&podman, &reference)?;

    podman.run(&["rmi", "--force", &reference])?;
    let mark = lab.images.mark()?;
    podman.run(&["pull", &reference])?;
    lab.check_only_metadata(mark, &image, TAIL)?;
    let again = podman.run(&["run", "--rm", &reference])?;
    ensure!(again == answer, "after a second pull it said {again:?}");
    Ok(())
}

/// Starts the program as a server and asks it.
fn serve(podman: &Podman<'_>, reference: &str) -> Result<()> {
    let container = podman.run(&[
        "run",
        "--detach",
        reference,
        "python3",
        "/usr/local/bin/workload.py",
        "serve",
    ])?;
    let port = process::until("the server's port", Duration::from_secs(120), || {
        let log = podman.run(&["logs", &container])?;
        Ok(log
            .lines()
            .find_map(|line| line.strip_prefix("port ")?.parse::<u16>().ok()))
    })?;
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
    write!(stream, "GET /question HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let expected = hex::encode(Sha256::digest(b"/question"));
    ensure!(answer.ends_with(&expected), "it answered {answer:?}");
    podman.run(&["rm", "--force", "--time", "0", &container])?;
    Ok(())
}

fn postgres(lab: &Lab, generation: Generation, format: Format) -> Result<()> {
    let store = lab.running(DEMAND_ONLY)?;
    let podman = lab.podman(generation, Some(&store.mount()))?;
    let image = lab.image(format, "postgres")?;
    let reference = lab.reference(format, "postgres");
    let mark = lab.images.mark()?;
    podman.run(&["pull", &reference])?;
    lab.check_only_metadata(mark, &image, TAIL)?;
    let answer = podman.run(&["run", "--rm", &reference])?;
    ensure!(
        answer.lines().any(|line| line == "42"),
        "it answered {answer:?}"
    );
    Ok(())
}

/// `save` and `push` give the layers that the image's configuration names, to the bit.
fn leave(lab: &Lab, generation: Generation, format: Format) -> Result<()> {
    let store = lab.running(DEMAND_ONLY)?;
    let podman = lab.podman(generation, Some(&store.mount()))?;
    let image = lab.image(format, "python")?;
    let reference = lab.reference(format, "python");
    podman.run(&["pull", &reference])?;

    let archive = podman.directory().join("saved.tar");
    let name = archive.to_str().context("a path that is not UTF-8")?;
    podman.run(&[
        "save",
        "--format",
        "oci-archive",
        "--output",
        name,
        &reference,
    ])?;
    check_archive(&archive, &image).context("the saved archive")?;
    fs::remove_file(&archive)?;

    // A place of its own for each pair: nothing there to reuse.
    let target = images::reference(
        &lab.pushes.host(),
        format,
        &format!("from-{}", generation.name()),
    );
    podman.run(&["push", &reference, &format!("docker://{target}")])?;
    let pushed = lab.pushed.image(
        format,
        &format!("from-{}", generation.name()),
        images::architecture(),
    )?;
    ensure!(
        pushed.layers.len() == image.layers.len(),
        "{} layers were pushed",
        pushed.layers.len()
    );
    for (layer, original) in pushed.layers.iter().zip(&image.layers) {
        ensure!(
            layer.diff_id == original.diff_id,
            "another layer was pushed"
        );
        let bytes = fs::File::open(lab.pushed.blob(&layer.blob)?)?;
        let digest = uncompressed_digest(bytes)?;
        ensure!(
            digest == original.diff_id,
            "the layer {} was pushed with other content",
            layer.blob
        );
    }
    Ok(())
}

/// All layers of an OCI archive are the image's.
fn check_archive(path: &Path, image: &StoredImage) -> Result<()> {
    let mut digests = BTreeMap::new();
    let mut small = BTreeMap::new();
    let mut archive = tar::Archive::new(fs::File::open(path)?);
    for file in archive.entries()? {
        let mut file = file?;
        let name = file.path()?.to_string_lossy().into_owned();
        if file.size() < 1 << 20 {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            digests.insert(name.clone(), uncompressed_digest(&bytes[..])?);
            small.insert(name, bytes);
        } else {
            digests.insert(name, uncompressed_digest(file)?);
        }
    }
    let json = |name: &str| -> Result<Value> {
        let bytes = small
            .get(name)
            .with_context(|| format!("{name} is missing"))?;
        Ok(serde_json::from_slice(bytes)?)
    };
    let file_of = |digest: &Value| -> Result<String> {
        let digest = digest.as_str().context("a descriptor without a digest")?;
        Ok(format!("blobs/{}", digest.replace(':', "/")))
    };
    let manifest = json(&file_of(&json("index.json")?["manifests"][0]["digest"])?)?;
    let layers = manifest["layers"].as_array().context("no layers")?;
    ensure!(
        layers.len() == image.layers.len(),
        "{} layers",
        layers.len()
    );
    for (layer, original) in layers.iter().zip(&image.layers) {
        let name = file_of(&layer["digest"])?;
        let digest = digests
            .get(&name)
            .with_context(|| format!("{name} is missing"))?;
        ensure!(*digest == original.diff_id, "{name} holds something else");
    }
    Ok(())
}

/// SHA-256 of what a stream holds after decompression, by its first bytes.
fn uncompressed_digest(stream: impl Read) -> Result<String> {
    let mut stream = std::io::BufReader::with_capacity(256 << 10, stream);
    let magic = std::io::BufRead::fill_buf(&mut stream)?;
    let mut reader: Box<dyn Read + '_> = match magic {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(stream)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            Box::new(zstd::Decoder::with_buffer(stream)?)
        }
        _ => Box::new(stream),
    };
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match reader.read(&mut buffer)? {
            0 => break,
            length => hasher.update(&buffer[..length]),
        }
    }
    Ok(format!("sha256:{}", hex::encode(hasher.finalize())))
}

/// The layer is found in the child manifest of this machine's platform, and of another when that is asked for.
fn platforms(lab: &Lab, generation: Generation, format: Format) -> Result<()> {
    let store = lab.running(DEMAND_ONLY)?;
    let podman = lab.podman(generation, Some(&store.mount()))?;
    let reference = lab.reference(format, "multi");
    let mark = lab.images.mark()?;
    podman.run(&["pull", &reference])?;
    lab.check_only_metadata(mark, &lab.image(format, "python")?, TAIL)?;
    let answer = podman.run(&["run", "--rm", &reference, "cat", "/etc/debian_version"])?;
    if answer.is_empty() {
        bail!("the container says nothing");
    }
    podman.run(&["rmi", "--force", &reference])?;
    let mark = lab.images.mark()?;
    podman.run(&["pull", "--platform", "linux/s390x", &reference])?;
    let other = lab.stored.image(format, "multi", "s390x")?;
    lab.check_only_metadata(mark, &other, TAIL)
}
