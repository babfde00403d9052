//! Containers on a node: the tests' Python image, under as many names as are wanted, started through Podman.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail, ensure};
use forelayer_tests::{
    engine::{
        environment::Environment,
        images::{self, Format},
        namespace::Namespace,
        podman::{Generation, Podman},
        process,
        store::{Store, drop_caches},
        stored::{Stored, StoredLayer},
    },
    fixtures::digest,
};
use serde_json::{Value, json};

use super::{
    super::lab::engine_files,
    lab::{Lab, Published},
};

const PREFIX: &str = "io.github.containers.zstd-chunked";
/// How long the store may take to learn starts that have ended.
const PATIENCE: Duration = Duration::from_secs(45);

/// An engine, and what the node has in memory before any container starts.
pub(super) struct Node<'a> {
    lab: &'a Lab,
    engine: Namespace,
    resident: Vec<PathBuf>,
    stored: Stored,
}

impl<'a> Node<'a> {
    pub(super) fn new(lab: &'a Lab, environment: &Environment, program: &Path) -> Result<Self> {
        let mut resident = engine_files(&environment.debian13)?;
        resident.push(program.to_path_buf());
        Ok(Self {
            lab,
            engine: lab.engine(environment)?,
            resident,
            stored: Stored::new(&environment.images),
        })
    }

    /// Podman with an empty storage.
    pub(super) fn podman(&self, name: &str, store: &Store<'_>) -> Result<Podman<'_>> {
        let directory = self.lab.directory("engine")?.join(name);
        let podman = Podman::new(
            &self.engine,
            Generation::ByToc,
            &directory,
            Some(&store.mount()),
        )?;
        podman.run(&["images"])?;
        Ok(podman)
    }

    /// Empties the page cache but for the engine's and the store's programs, which a node has there.
    pub(super) fn cold(&self) -> Result<()> {
        drop_caches()?;
        for path in &self.resident {
            io::copy(&mut File::open(path)?, &mut io::sink())?;
        }
        Ok(())
    }

    /// Publishes the Python image (zstd:chunked). Two variants have the same files and no layer, no TOC and no chunk
    /// in common: their TOCs differ by a blank, so their blobs do, and the store keeps chunks by the blob.
    pub(super) fn publish(&self, variant: usize) -> Result<Published> {
        let stored = self
            .stored
            .image(Format::Zstd5, "python", images::architecture())?;
        let content = self.lab.server.content();
        let mut manifest = stored.manifest.clone();
        let mut keys = Vec::new();
        for (number, layer) in stored.layers.iter().enumerate() {
            let (blob, position, key) = self
                .variant(layer, variant)
                .with_context(|| format!("layer {number} of the Python image"))?;
            let size = blob.len();
            let annotations = json!({
                format!("{PREFIX}.manifest-checksum"): key,
                format!("{PREFIX}.manifest-position"): position,
            });
            // Its bytes are in memory, as on a registry elsewhere.
            let digest = content.add_blob(blob);
            let media_type = manifest["layers"][number]["mediaType"].clone();
            manifest["layers"][number] = json!({
                "mediaType": media_type, "digest": digest, "size": size, "annotations": annotations,
            });
            keys.push(key);
        }
        let config = fs::read(self.stored.blob(&stored.config)?)?;
        let mut config: Value = serde_json::from_slice(&config)?;
        // What is claimed of tars that differ by nothing: engines would take them for one layer.
        config["rootfs"]["diff_ids"] = keys.iter().map(|key| digest(key.as_bytes())).collect();
        let config = serde_json::to_vec(&config)?;
        manifest["config"]["size"] = config.len().into();
        manifest["config"]["digest"] = content.add_blob(config).into();
        let media_type = manifest["mediaType"]
            .as_str()
            .unwrap_or("application/vnd.oci.image.manifest.v1+json");
        let media_type = media_type.to_owned();
        let root = content.add_manifest(&media_type, serde_json::to_vec(&manifest)?);
        let repository = format!("python{variant}");
        content.tag(&repository, "1", &root);
        Ok(Published {
            reference: format!("{}/{repository}:1", self.lab.server.host()),
            keys,
        })
    }

    /// The blob of a layer with another TOC; the TOC's place as annotations say it, and its digest.
    fn variant(&self, layer: &StoredLayer, variant: usize) -> Result<(Vec<u8>, String, String)> {
        let position = (layer.annotations)
            .get(&format!("{PREFIX}.manifest-position"))
            .and_then(Value::as_str)
            .context("a layer without a TOC")?;
        let offset: usize = position.split(':').next().unwrap_or_default().parse()?;
        let mut json = serde_json::to_vec(&self.stored.toc(layer)?)?;
        json.resize(json.len() + variant, b' ');
        let section = zstd::encode_all(&json[..], 3)?;
        let mut blob = fs::read(self.stored.blob(&layer.blob)?)?;
        // Up to the TOC, whose length stands before it; then zeros for a footer, which nobody reads.
        blob.truncate(offset - 4);
        blob.extend(u32::try_from(section.len())?.to_le_bytes());
        blob.extend_from_slice(&section);
        blob.extend([0; 72]);
        let position = format!("{offset}:{}:{}:1", section.len(), json.len());
        Ok((blob, position, digest(&section)))
    }
}

/// The command that starts an image in a container. It is made where the engine is known, and may run anywhere.
pub(super) fn start(podman: &Podman<'_>, container: &str, reference: &str) -> Command {
    podman.command(&["run", "--name", container, reference])
}

/// Runs such a command until the program's line is there and the container has ended; answers when the line came.
pub(super) fn ready(mut command: Command) -> Result<Instant> {
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let out = child.stdout.take().context("no output")?;
    let (mut ready, mut said) = (None, String::new());
    for line in BufReader::new(out).lines() {
        let line = line?;
        if line.starts_with("ready ") {
            ready.get_or_insert_with(Instant::now);
        }
        said.push_str(&line);
    }
    ensure!(child.wait()?.success(), "the container failed: {said}");
    match ready {
        Some(ready) => Ok(ready),
        None => bail!("the container was not ready: {said}"),
    }
}

/// Calls `start`, which starts `count` containers, and waits until the store has learned them all. Answers also
/// whether it has: on a machine that is too busy the witness may miss one.
pub(super) fn recorded<T>(
    store: &Store<'_>,
    count: usize,
    start: impl FnOnce() -> Result<T>,
) -> Result<(T, bool)> {
    let traces = || store.metric("forelayer_traces_total");
    #[expect(clippy::cast_precision_loss, reason = "a few containers")]
    let expected = traces()? + count as f64;
    let started = start()?;
    let deadline = Instant::now() + PATIENCE;
    let all = process::until("the traces", PATIENCE * 2, || {
        let all = traces()? >= expected;
        Ok((all || Instant::now() > deadline).then_some(all))
    })?;
    Ok((started, all))
}

/// Unix time in seconds.
pub(super) fn now() -> Result<f64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64())
}
