//! A registry, a store in a process of its own, and what an engine would do with them.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Child, ChildStdout, Command, Stdio},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use forelayer::mount::{MountName, Paths, client, holder, mountinfo};
use forelayer_tests::{
    fixtures::{Image, ImageConfig, Layer},
    registry::{Content, Server},
};

use crate::role;

pub(crate) const REPOSITORY: &str = "test/image";

pub(crate) struct Lab {
    pub(crate) server: Option<Server>,
    pub(crate) store: Store,
    pub(crate) paths: Paths,
    pub(crate) dir: tempfile::TempDir,
}

/// A running store.
pub(crate) struct Store {
    pub(crate) child: Child,
    output: BufReader<ChildStdout>,
    /// What the mounts heard, as far as it was read.
    events: Vec<String>,
}

impl Lab {
    /// An empty registry and a fresh store.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(Content::default()).unwrap();
        let paths = role::paths(dir.path());
        let store = Store::start(&dir, false);
        Self {
            server: Some(server),
            store,
            paths,
            dir,
        }
    }

    pub(crate) fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }

    /// Puts an image of these layers into the registry; answers its reference.
    pub(crate) fn publish(&self, tag: &str, layers: &[Layer]) -> String {
        let image = Image::new(layers, &ImageConfig::default()).unwrap();
        self.publish_image(tag, &image)
    }

    pub(crate) fn publish_image(&self, tag: &str, image: &Image) -> String {
        let content = self.server().content();
        for blob in image.blobs.values() {
            content.add_blob(blob.clone());
        }
        for manifest in &image.manifests {
            content.add_manifest(&manifest.media_type, manifest.bytes.clone());
        }
        content.tag(REPOSITORY, tag, &image.root().digest);
        format!("{}/{REPOSITORY}:{tag}", self.server().host())
    }

    /// The directory that an engine asks for.
    pub(crate) fn target(&self, reference: &str, digest: &str) -> PathBuf {
        self.paths
            .target(MountName::Control)
            .join(STANDARD.encode(reference))
            .join(digest)
    }

    /// Publishes an image of one layer and answers the path of its tree, looked up.
    pub(crate) fn serve(&self, layer: &Layer) -> PathBuf {
        let reference = self.publish("latest", std::slice::from_ref(layer));
        let diff = self.target(&reference, &layer.digest).join("diff");
        std::fs::metadata(&diff).unwrap();
        diff
    }

    /// Kills the store and starts another that adopts the mounts.
    pub(crate) fn kill_and_restart(&mut self) {
        self.store.child.kill().unwrap();
        self.store.child.wait().unwrap();
        self.store = Store::start(&self.dir, true);
    }

    /// Stops the store, which unmounts, and starts a fresh one.
    pub(crate) fn stop_and_restart(&mut self) {
        self.store.say("stop");
        assert!(self.store.child.wait().unwrap().success());
        let mounted = MountName::ALL
            .into_iter()
            .any(|name| mountinfo::at(&self.paths.target(name)).unwrap().is_some());
        assert!(!mounted, "a clean stop unmounts");
        self.store = Store::start(&self.dir, false);
    }
}

impl Drop for Lab {
    /// Nothing stays mounted and nobody hangs, also when a test failed.
    fn drop(&mut self) {
        let _ = self.store.child.kill();
        let _ = self.store.child.wait();
        if let Ok(mounts) = client::connect(&self.paths, None) {
            let _ = mounts.stop();
        }
        let _ = holder::release(&self.paths);
    }
}

impl Store {
    fn start(dir: &tempfile::TempDir, adopt: bool) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg(role::STORE)
            .arg(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut store = Self {
            child,
            output,
            events: Vec::new(),
        };
        assert_eq!(store.line(), format!("serving adopt={adopt}"));
        store
    }

    pub(crate) fn say(&mut self, text: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{text}").unwrap();
    }

    /// The next line that is no event.
    pub(crate) fn line(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(
                self.output.read_line(&mut line).unwrap(),
                0,
                "the store ended"
            );
            let line = line.trim_end();
            match line.strip_prefix("event ") {
                Some(event) => self.events.push(event.to_owned()),
                None => return line.to_owned(),
            }
        }
    }

    /// All metrics, and with them all events so far.
    pub(crate) fn metrics(&mut self) -> BTreeMap<String, u64> {
        self.say("metrics");
        let mut all = BTreeMap::new();
        loop {
            let line = self.line();
            if line == "." {
                return all;
            }
            if let Some((name, value)) = line.rsplit_once(' ')
                && let Ok(value) = value.parse()
            {
                all.insert(name.to_owned(), value);
            }
        }
    }

    /// What the mounts heard since the last time.
    pub(crate) fn events(&mut self) -> Vec<String> {
        self.metrics();
        std::mem::take(&mut self.events)
    }
}

/// Messages of the kernel on a mount since `before`, by operation, without those of which there were none.
pub(crate) fn messages(
    before: &BTreeMap<String, u64>,
    after: &BTreeMap<String, u64>,
    mount: MountName,
) -> BTreeMap<String, u64> {
    after
        .iter()
        .filter_map(|(name, now)| {
            let labels = name.strip_prefix("forelayer_fuse_requests_total{")?;
            let op = labels.split("op=\"").nth(1)?.split('"').next()?;
            let here = labels.contains(&format!("mount=\"{mount}\""));
            let more = now - before.get(name).copied().unwrap_or_default();
            (here && more > 0).then(|| (op.to_owned(), more))
        })
        .collect()
}

/// Bytes that no codec makes smaller, the same for the same seed.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}
