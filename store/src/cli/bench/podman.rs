//! Podman with a storage of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::Context as _;
use serde::Deserialize;
use tokio::process::Command;

use super::{place, tool};

/// An empty storage, which goes when this does.
#[derive(Debug)]
pub(super) struct Podman {
    dir: PathBuf,
    /// The store's control mount.
    store: Option<PathBuf>,
}

/// What of a manifest is read.
#[derive(Deserialize)]
struct Manifest {
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
struct Layer {
    size: u64,
}

impl Podman {
    /// A storage in `dir`, which must not be there yet.
    pub(super) fn new(dir: &Path, store: Option<PathBuf>) -> anyhow::Result<Self> {
        fs::create_dir(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let podman = Self::at(dir.to_owned(), store);
        // Instead of the machine's own, which may name the store that runs.
        let text = format!(
            "[storage]\ndriver = \"overlay\"\ngraphroot = \"{0}/graph\"\nrunroot = \"{0}/run\"\n",
            dir.display()
        );
        fs::write(dir.join("storage.conf"), text).context("cannot write storage.conf")?;
        Ok(podman)
    }

    /// The storage that was made in `dir`.
    pub(super) const fn at(dir: PathBuf, store: Option<PathBuf>) -> Self {
        Self { dir, store }
    }

    /// A command with this storage. Directories and stores are arguments, not only in the file: Podman gives its
    /// arguments on to the clean-up that it runs after a container, and with `--root` its database lies there too.
    pub(super) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = tool::command("podman");
        for (option, name) in [
            ("--root", "graph"),
            ("--runroot", "run"),
            ("--tmpdir", "tmp"),
        ] {
            command.arg(option).arg(self.dir.join(name));
        }
        command.args(["--storage-driver", "overlay", "--events-backend", "none"]);
        if let Some(store) = &self.store {
            let option = format!("overlay.additionallayerstore={}:ref", store.display());
            command.args(["--storage-opt", &option]);
        }
        command
            .args(arguments)
            .env("CONTAINERS_STORAGE_CONF", self.dir.join("storage.conf"))
            // Another machine's Podman is not what is measured.
            .env_remove("CONTAINER_HOST")
            .env_remove("CONTAINER_CONNECTION");
        command
    }

    /// Runs Podman to its end.
    pub(super) async fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        tool::finished(&mut self.command(arguments)).await
    }

    /// The command that starts the container.
    pub(super) fn container(&self, options: &[String], image: &str, words: &[String]) -> Command {
        let mut command = self.command(&["run", "--pull", "never", "--log-driver", "none"]);
        // A signal is for Podman, which ends at once; a container may take no notice of it.
        command.arg("--sig-proxy=false");
        let named = ["--network", "--net"];
        if !options
            .iter()
            .any(|option| named.iter().any(|name| option.starts_with(name)))
        {
            command.args(["--network", "host"]);
        }
        command
            .args(options)
            .arg(image)
            .args(words)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Ends and removes all containers.
    pub(super) async fn remove_containers(&self) -> anyhow::Result<()> {
        let arguments = ["rm", "--all", "--force", "--time", "0"];
        self.run(&arguments).await.map(drop)
    }

    /// Compressed bytes of the layers of the only image that is here, by its manifest; none if that cannot be read.
    pub(super) fn layer_bytes(&self) -> Option<u64> {
        let images = fs::read_dir(self.dir.join("graph/overlay-images")).ok()?;
        let text = images
            .filter_map(Result::ok)
            .find_map(|image| fs::read(image.path().join("manifest")).ok())?;
        layer_bytes(&text)
    }

    /// Deletes the storage with all that is in it.
    pub(super) async fn end(self) -> anyhow::Result<()> {
        // Unmounted and deleted whatever becomes of this.
        let removed = self.remove_containers().await;
        place::clear(&self.dir)?;
        removed
    }
}

fn layer_bytes(manifest: &[u8]) -> Option<u64> {
    let manifest: Manifest = serde_json::from_slice(manifest).ok()?;
    let sizes = manifest.layers.iter().map(|layer| layer.size);
    Some(sizes.fold(0, u64::saturating_add))
}

/// What `podman --version` says.
pub(super) async fn version() -> anyhow::Result<String> {
    tool::finished(tool::command("podman").arg("--version")).await
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn nothing_but_its_own_directories_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("one");
        let podman = Podman::new(&place, Some("/s/store".into())).unwrap();
        let shown = tool::shown(&podman.container(&[], "h/app:1", &["a b".to_owned()]));
        let path = place.display();
        assert_eq!(
            shown,
            format!(
                "podman --root {path}/graph --runroot {path}/run --tmpdir {path}/tmp --storage-driver overlay \
                 --events-backend none --storage-opt overlay.additionallayerstore=/s/store:ref run --pull never \
                 --log-driver none --sig-proxy=false --network host h/app:1 \"a b\""
            )
        );
        let own = ["--network=none".to_owned()];
        let shown = tool::shown(&podman.container(&own, "h/app:1", &[]));
        assert!(shown.ends_with("false --network=none h/app:1"), "{shown}");
        assert!(Podman::new(&place, None).is_err(), "it is there already");
    }

    #[test]
    fn a_manifest_s_layers_are_summed() {
        let manifest = br#"{"config": {"size": 9}, "layers": [{"size": 5}, {"size": 7}]}"#;
        assert_eq!(layer_bytes(manifest), Some(12));
        assert_eq!(layer_bytes(b"{}"), None);
    }
}
