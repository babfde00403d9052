//! Small layers made by hand, whose chunks come when a test says so.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    fs,
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use serde_json::{Value, json};

use crate::{
    cache::Cache,
    digest::Digest,
    format::{LayerFormat, LayerIndex, NodeId, footer::TocPlace, limits::Limits, toc::build_index},
    image::Layer,
};

/// What a layer holds.
#[derive(Debug, Clone)]
pub(super) enum Item {
    /// A file: path, what makes its content, lengths of its chunks.
    File(&'static str, &'static str, Vec<u64>),
    /// A file of one chunk of zeros: path, length.
    Zeros(&'static str, u64),
    /// A symbolic link: path, target.
    Link(&'static str, &'static str),
    /// A directory that hides those below.
    Opaque(&'static str),
    /// A name that hides those below.
    Whiteout(&'static str),
    /// The end of what is needed first.
    Landmark,
}

/// A process with the command line of an engine, until it is dropped.
pub(super) struct Engine(Child);

impl Engine {
    /// The command `podman -vs` with these arguments: a shell that reads from its input (`s`), which does not end,
    /// whatever the arguments are.
    pub(super) fn starts(arguments: &[&str]) -> Self {
        let shell = Command::new("sh")
            .arg0("podman")
            .arg("-vs")
            .args(arguments)
            .stdin(Stdio::piped())
            .spawn();
        let mut engine = Self(shell.unwrap());
        // The kernel answers the parent a moment before the child has its words.
        while fs::read(format!("/proc/{}/cmdline", engine.id()))
            .unwrap()
            .is_empty()
        {
            assert_eq!(engine.0.try_wait().unwrap(), None);
            std::thread::yield_now();
        }
        engine
    }

    pub(super) fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A file of one page.
pub(super) fn small(path: &'static str) -> Item {
    Item::File(path, path, vec![4096])
}

/// Where layers are kept.
pub(super) struct Place {
    pub(super) dir: tempfile::TempDir,
    cache: Arc<Cache>,
}

impl Place {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cache = Arc::new(Cache::open(dir.path()).unwrap());
        Self { dir, cache }
    }

    pub(super) fn layer(&self, slot: u32, items: &[Item]) -> Arc<Layer> {
        let json = serde_json::to_vec(&json!({"version": 1, "entries": entries(items)})).unwrap();
        let section = zstd::encode_all(json.as_slice(), 1).unwrap();
        let place = TocPlace {
            offset: TOC_AT,
            len: section.len() as u64,
            raw_len: Some(json.len() as u64),
            format: LayerFormat::ZstdChunked,
        };
        let blob = Digest::of(format!("{slot} {items:?}").as_bytes());
        let path = self.dir.path().join(format!("index-{slot}-{}", blob.hex()));
        let size = TOC_AT + place.len + 64;
        let toc = Some(Digest::of(&section));
        build_index(&section, &place, blob, size, toc, &Limits::default(), &path).unwrap();
        let index = Arc::new(LayerIndex::open(&path, true).unwrap());
        let cache = self.cache.blob(&index).unwrap();
        Arc::new(Layer::new(slot, index, cache, Vec::new()))
    }
}

const TOC_AT: u64 = 400 << 20;

fn entries(items: &[Item]) -> Vec<Value> {
    let mut entries = Vec::new();
    let mut offset = 10;
    for item in items {
        match item {
            Item::File(path, seed, chunks) => {
                let size: u64 = chunks.iter().sum();
                let end = offset + 10 * chunks.len() as u64;
                let mut at = 0;
                for (number, len) in chunks.iter().enumerate() {
                    let digest = Digest::of(&bytes_of(seed, number, *len)).to_string();
                    entries.push(if number == 0 {
                        json!({"name": path, "type": "reg", "mode": 0o644, "size": size, "offset": offset, "endOffset": end,
                            "digest": Digest::of(seed.as_bytes()).to_string(), "chunkSize": len, "chunkDigest": digest})
                    } else {
                        json!({"name": path, "type": "chunk", "offset": offset, "chunkOffset": at, "chunkSize": len,
                            "chunkDigest": digest})
                    });
                    offset += 10;
                    at += len;
                }
            }
            Item::Zeros(path, len) => entries.push(json!({"name": path, "type": "reg", "mode": 0o644, "size": len,
                "offset": offset, "endOffset": offset, "digest": Digest::of(path.as_bytes()).to_string(),
                "chunkSize": len, "chunkType": "zeros"})),
            Item::Link(path, target) => {
                entries.push(json!({"name": path, "type": "symlink", "linkName": target, "mode": 0o777}));
            }
            Item::Opaque(path) => {
                entries.push(json!({"name": format!("{path}/.wh..wh..opq"), "type": "reg"}));
            }
            Item::Landmark => {
                entries.push(json!({"name": ".prefetch.landmark", "type": "reg", "size": 1, "offset": offset,
                    "endOffset": offset + 10, "digest": Digest::of(b"\x0f").to_string(), "chunkSize": 1,
                    "chunkDigest": Digest::of(b"\x0f").to_string()}));
                offset += 10;
            }
            Item::Whiteout(path) => {
                let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
                entries.push(json!({"name": format!("{directory}/.wh.{name}").trim_start_matches('/'), "type": "reg"}));
            }
        }
    }
    entries
}

/// Content of a chunk.
pub(super) fn bytes_of(seed: &str, number: usize, len: u64) -> Vec<u8> {
    let pattern = Digest::of(format!("{seed} {number}").as_bytes());
    pattern
        .as_bytes()
        .iter()
        .copied()
        .cycle()
        .take(usize::try_from(len).unwrap())
        .collect()
}

/// The node at a path.
pub(super) fn node(layer: &Layer, path: &str) -> NodeId {
    layer.index.find(path.as_bytes()).unwrap().unwrap()
}

/// The chunk that holds a byte of a file.
pub(super) fn chunk(layer: &Layer, path: &str, offset: u64) -> u32 {
    layer
        .index
        .chunks_covering(node(layer, path), offset..offset + 1)
        .unwrap()
        .start
}

/// Brings a chunk of a [`Item::File`].
pub(super) fn bring(layer: &Layer, chunk: u32, items: &[Item]) {
    let found = layer.index.chunk(chunk).unwrap().unwrap();
    let path = String::from_utf8(layer.index.path(found.node).unwrap()).unwrap();
    let (seed, first) = items
        .iter()
        .find_map(|item| match item {
            Item::File(name, seed, _) if *name == path => {
                Some((*seed, layer.index.entry(found.node).unwrap()?.chunks.start))
            }
            _ => None,
        })
        .unwrap();
    layer
        .cache
        .commit(
            chunk..chunk + 1,
            &bytes_of(seed, (chunk - first) as usize, found.len),
        )
        .unwrap();
}
