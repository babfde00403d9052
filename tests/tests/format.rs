//! Layers written by the fixtures, read by the store's format room: tree, attributes and every byte.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{io::Read as _, path::Path};

use anyhow::{Context as _, Result};
use forelayer::{
    digest::Digest,
    format::{
        Chunk, Kind as NodeKind, LayerFormat, LayerIndex, annotated,
        footer::{self, TocPlace},
        limits::Limits,
        toc::build_index,
    },
};
use forelayer_tests::fixtures::{
    Entry, HostTree, Image, ImageConfig, Kind, Landmark, Layer, Lazy, ZstdNames,
};
use proptest::prelude::*;

/// All ways to write a lazy layer.
fn formats() -> Vec<Lazy> {
    vec![
        Lazy::estargz(),
        Lazy::Estargz {
            chunk_size: 1000,
            landmark: Landmark::None,
        },
        Lazy::zstd_chunked(),
        Lazy::ZstdChunked {
            chunk_size: 1000,
            names: ZstdNames::Old,
        },
    ]
}

/// Where the TOC is, by the footer and, where they say it, by the annotations.
fn place(layer: &Layer) -> Result<TocPlace> {
    let size = layer.blob.len() as u64;
    let tail = &layer.blob[layer
        .blob
        .len()
        .saturating_sub(footer::MAX_FOOTER_LEN as usize)..];
    let place = footer::parse(tail, size)?;
    if let Some(found) = annotated(&layer.annotations, size)? {
        assert_eq!(found.toc.to_string(), layer.toc_digest);
        assert_eq!(found.format, place.format);
        if let Some(annotated) = found.place {
            assert_eq!(annotated, place);
        }
    }
    Ok(place)
}

fn index(layer: &Layer, dir: &Path) -> Result<LayerIndex> {
    let place = place(layer)?;
    let section = &layer.blob[place.offset as usize..(place.offset + place.len) as usize];
    let path = dir.join("index");
    let facts = build_index(
        section,
        &place,
        layer.digest.parse()?,
        layer.blob.len() as u64,
        Some(layer.toc_digest.parse()?),
        &Limits::default(),
        &path,
    )?;
    assert!(facts.bound);
    Ok(LayerIndex::open(&path, true)?)
}

/// Decodes a chunk from the blob as a fetch would, and checks its digest.
fn decode(blob: &[u8], format: LayerFormat, chunk: &Chunk) -> Result<Vec<u8>> {
    if chunk.zeros {
        return Ok(vec![0; chunk.len as usize]);
    }
    let span = &blob[chunk.span.start as usize..chunk.span.end as usize];
    let mut bytes = Vec::new();
    match format {
        LayerFormat::Estargz => {
            flate2::bufread::GzDecoder::new(span)
                .take(chunk.skip + chunk.len)
                .read_to_end(&mut bytes)?;
            bytes.drain(..chunk.skip as usize);
        }
        LayerFormat::ZstdChunked => bytes = zstd::decode_all(span)?,
    }
    anyhow::ensure!(
        bytes.len() as u64 == chunk.len,
        "chunk {} has {} bytes",
        chunk.id,
        bytes.len()
    );
    anyhow::ensure!(
        Digest::of(&bytes) == chunk.digest,
        "chunk {} has another digest",
        chunk.id
    );
    Ok(bytes)
}

/// Compares an index with the entries it was made of.
fn compare(layer: &Layer, entries: &[Entry]) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let index = index(layer, dir.path())?;
    let format = index.facts().format;
    let mut names = 0;
    for entry in entries {
        let path = entry.path.trim_end_matches('/');
        let id = index
            .find(path.as_bytes())?
            .with_context(|| format!("{path} is missing"))?;
        let found = index.entry(id)?.context("an entry")?;
        names += u32::from(!path.is_empty());
        if let Kind::Hardlink(target) = &entry.kind {
            assert_eq!(index.find(target.as_bytes())?, Some(id), "{path}");
            assert!(found.nlink > 1);
            continue;
        }
        assert_eq!(u32::from(found.mode), entry.mode, "{path}");
        assert_eq!(
            (found.uid, found.gid, found.mtime),
            (entry.uid, entry.gid, entry.mtime),
            "{path}"
        );
        let xattrs: Vec<_> = entry
            .xattrs
            .iter()
            .map(|(n, v)| (n.as_bytes(), v.as_slice()))
            .collect();
        assert_eq!(index.xattrs(id)?, xattrs, "{path}");
        match &entry.kind {
            Kind::Dir => assert_eq!(found.kind, NodeKind::Directory),
            Kind::Symlink(target) => assert_eq!(
                (found.kind, found.target),
                (NodeKind::Symlink, target.as_bytes())
            ),
            Kind::Char(a, b) => assert_eq!(
                (found.kind, found.major, found.minor),
                (NodeKind::CharDevice, *a, *b)
            ),
            Kind::Block(a, b) => assert_eq!(
                (found.kind, found.major, found.minor),
                (NodeKind::BlockDevice, *a, *b)
            ),
            Kind::Fifo => assert_eq!(found.kind, NodeKind::Fifo),
            Kind::Hardlink(_) => unreachable!("handled above"),
            Kind::File(content) => {
                assert_eq!(
                    (found.kind, found.size),
                    (NodeKind::File, content.len() as u64),
                    "{path}"
                );
                assert_eq!(found.content, Some(Digest::of(content)), "{path}");
                let mut bytes = Vec::new();
                for id in found.chunks {
                    let chunk = index.chunk(id)?.context("a chunk")?;
                    assert_eq!(chunk.file_offset, bytes.len() as u64);
                    bytes.extend(decode(&layer.blob, format, &chunk)?);
                }
                assert!(bytes == *content, "the content of {path} differs");
            }
        }
    }
    let mut found = 0;
    for id in 0..index.node_count() {
        found += index.child_count(id)?;
    }
    assert_eq!(found, names, "names beyond those of the entries");
    Ok(())
}

/// Content that compresses somewhat.
fn content(seed: u32, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state % 23) as u8 + 1
        })
        .collect()
}

#[test]
fn a_layer_with_everything_reads_back_in_every_format() -> Result<()> {
    let mut sparse = content(1, 3000);
    sparse.extend(vec![0; 70_000]);
    sparse.extend(content(2, 5));
    let long = format!(
        "{}/{}/{}",
        "d".repeat(255),
        "e".repeat(255),
        "f".repeat(255)
    );
    let parents: Vec<_> = long
        .match_indices('/')
        .map(|(at, _)| Entry::dir(&long[..at]))
        .collect();
    let mut entries = vec![
        Entry::dir("").mode(0o755).owner(1, 2),
        Entry::dir("bin").mode(0o1777),
        Entry::file("bin/su", content(3, 2500))
            .mode(0o4755)
            .xattr("security.capability", &[1, 0, 0, 2, 0, 4, 0, 0]),
        Entry::hardlink("bin/su2", "bin/su"),
        Entry::symlink("bin/sh", "su"),
        Entry::file("empty", ""),
        Entry::file("sparse", sparse),
        Entry::file("zeros", vec![0; 10_000]),
        Entry::file("1023", content(4, 1000)),
        Entry::char_device("null", 1, 3).mode(0o666),
        Entry::block_device("loop", 7, 300),
        Entry::fifo("pipe").owner(70_000, 4_000_000_000).mtime(1),
        Entry::file("ünïcödé ☃ <&>\"\\", "x"),
    ];
    entries.extend(parents);
    entries.push(Entry::file(&long, content(5, 10)));
    for lazy in formats() {
        let layer = Layer::build(&entries, &lazy)?;
        compare(&layer, &entries).with_context(|| format!("{lazy:?}"))?;
    }
    Ok(())
}

#[test]
fn a_blob_is_an_ordinary_compressed_tar_too() -> Result<()> {
    let entries = [
        Entry::dir("d"),
        Entry::file("d/f", content(1, 5000)),
        Entry::file("g", ""),
    ];
    for lazy in formats().into_iter().chain([Lazy::No]) {
        let layer = Layer::build(&entries, &lazy)?;
        let tar = match &lazy {
            Lazy::ZstdChunked { .. } => zstd::decode_all(&layer.blob[..])?,
            _ => {
                let mut tar = Vec::new();
                flate2::bufread::MultiGzDecoder::new(&layer.blob[..]).read_to_end(&mut tar)?;
                tar
            }
        };
        assert_eq!(Digest::of(&tar).to_string(), layer.diff_id, "{lazy:?}");
        assert_eq!(tar.len() as u64, layer.diff_size);
        assert_eq!(Digest::of(&layer.blob).to_string(), layer.digest);
        let mut archive = tar::Archive::new(&tar[..]);
        let mut paths = Vec::new();
        for entry in archive.entries()? {
            paths.push(entry?.path()?.to_string_lossy().into_owned());
        }
        for path in ["d/", "d/f", "g"] {
            assert!(
                paths.iter().any(|found| found == path),
                "{lazy:?}: {paths:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn whiteouts_and_prefetched_files_are_read() -> Result<()> {
    let entries = [
        Entry::dir("etc"),
        Entry::whiteout("etc/gone"),
        Entry::opaque("etc"),
        Entry::file("etc/late", content(1, 300)),
        Entry::file("etc/first", content(2, 300)),
    ];
    let dir = tempfile::tempdir()?;
    for lazy in [
        Lazy::zstd_chunked(),
        Lazy::Estargz {
            chunk_size: 1 << 20,
            landmark: Landmark::Prefetch(vec!["etc/first".to_owned()]),
        },
    ] {
        let layer = Layer::build(&entries, &lazy)?;
        let index = index(&layer, dir.path())?;
        let gone = index
            .entry(index.find(b"etc/gone")?.context("a whiteout")?)?
            .context("an entry")?;
        assert_eq!(
            (gone.kind, gone.major, gone.minor),
            (NodeKind::CharDevice, 0, 0)
        );
        assert!(index.needs_xattrs());
        let chunk = |path: &[u8]| -> Result<Chunk> {
            let id = index.find(path)?.context("a file")?;
            let entry = index.entry(id)?.context("an entry")?;
            index.chunk(entry.chunks.start)?.context("a chunk")
        };
        if index.facts().format == LayerFormat::Estargz {
            let end = index.prefetch_end().context("a landmark")?;
            assert!(chunk(b"etc/first")?.span.start < end && end < chunk(b"etc/late")?.span.start);
            assert_eq!(chunk(b"etc/first")?.id, 0);
        }
    }
    Ok(())
}

#[test]
fn an_empty_layer_reads_in_every_format() -> Result<()> {
    for lazy in formats() {
        compare(&Layer::build(&[], &lazy)?, &[])?;
    }
    Ok(())
}

#[test]
fn a_changed_toc_is_refused() -> Result<()> {
    let entries = [Entry::file("f", content(1, 300))];
    let dir = tempfile::tempdir()?;
    for lazy in formats() {
        let mut layer = Layer::build(&entries, &lazy)?;
        layer.toc_digest = Digest::of(b"another").to_string();
        layer.annotations.clear();
        let error = index(&layer, dir.path()).unwrap_err();
        assert!(error.to_string().contains("hashes to"), "{error}");
    }
    Ok(())
}

#[test]
fn host_files_become_entries() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir(at("sub"))?;
    std::fs::write(at("sub/a"), "content")?;
    std::fs::hard_link(at("sub/a"), at("b"))?;
    std::os::unix::fs::symlink("sub/a", at("link"))?;
    let mut tree = HostTree::new();
    tree.dir(dir.path(), "opt")?;
    let entries = tree.entries();
    assert_eq!(entries.len(), 5);
    assert_eq!(tree.bytes(), 7);
    let links: Vec<_> = entries
        .iter()
        .filter(|e| matches!(e.kind, Kind::Hardlink(_)))
        .collect();
    assert_eq!(links.len(), 1);
    // A path through a link brings the link and what it leads to.
    let mut tree = HostTree::new();
    tree.file(&at("link"))?;
    let root = dir.path().strip_prefix("/")?.to_str().context("a name")?;
    let paths: Vec<_> = tree.entries().into_iter().map(|e| e.path).collect();
    for path in ["link", "sub", "sub/a"] {
        assert!(paths.contains(&format!("{root}/{path}")), "{paths:?}");
    }
    let layer = Layer::build(&entries, &Lazy::estargz())?;
    compare(
        &layer,
        &[
            &[Entry {
                path: "opt".to_owned(),
                ..entries[0].clone()
            }],
            &entries[1..],
        ]
        .concat(),
    )
}

#[test]
fn an_index_lists_its_images() -> Result<()> {
    let layer = Layer::build(&[Entry::dir("d")], &Lazy::zstd_chunked())?;
    let image = |architecture: &str| {
        Image::new(
            std::slice::from_ref(&layer),
            &ImageConfig {
                architecture: architecture.to_owned(),
                ..ImageConfig::default()
            },
        )
    };
    let all = Image::index(&[image("amd64")?, image("arm64")?])?;
    assert_eq!((all.manifests.len(), all.blobs.len()), (3, 3));
    let index: serde_json::Value = serde_json::from_slice(&all.root().bytes)?;
    for (n, manifest) in all.manifests[..2].iter().enumerate() {
        assert_eq!(index["manifests"][n]["digest"], manifest.digest.as_str());
        let parsed: serde_json::Value = serde_json::from_slice(&manifest.bytes)?;
        assert_eq!(
            parsed["layers"][0]["annotations"],
            serde_json::json!(layer.annotations)
        );
        assert_eq!(Digest::of(&manifest.bytes).to_string(), manifest.digest);
    }
    Ok(())
}

/// A tree of files and directories in which no name is both.
fn tree() -> impl Strategy<Value = Vec<Entry>> {
    let file = (
        0_u16..0o10000,
        0..9000_usize,
        any::<u32>(),
        0..3_usize,
        0..60_000_u32,
        -9..2_000_000_000_i64,
    );
    proptest::collection::btree_map(("[a-d]", "[a-zé ☃]{1,20}"), file, 0..30).prop_map(|files| {
        let mut entries = Vec::new();
        let mut dirs = std::collections::BTreeSet::new();
        for ((dir, name), (mode, len, seed, zeros, id, mtime)) in files {
            if dirs.insert(dir.clone()) {
                entries.push(Entry::dir(&dir).mode(u32::from(mode)));
            }
            let mut bytes = content(seed, len);
            if zeros > 0 && len > 0 {
                bytes.splice(len / 2..len / 2, vec![0; zeros * 1500]);
            }
            let path = format!("{dir}/{name}");
            entries.push(
                Entry::file(&path, bytes)
                    .mode(u32::from(mode))
                    .owner(id, id / 2)
                    .mtime(mtime),
            );
            if seed % 5 == 0 {
                entries.push(Entry::hardlink(format!("{path}.link"), path));
            }
        }
        entries
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_reads_back_in_every_format(entries in tree()) {
        for lazy in formats() {
            let layer = Layer::build(&entries, &lazy).unwrap();
            compare(&layer, &entries).unwrap();
        }
    }
}
