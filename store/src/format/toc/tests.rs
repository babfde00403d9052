//! TOCs of both formats, made by hand, through to the index.

#![expect(clippy::unwrap_used, reason = "tests")]

mod model;
mod refused;

use std::io::Write as _;

use serde_json::{Value, json};

use super::*;
use crate::format::{Kind, LayerFormat, LayerIndex};

/// Where the TOC starts in these blobs.
const TOC_AT: u64 = 400 << 20;

/// A TOC's section and place.
fn section(format: LayerFormat, json: &[u8]) -> (Vec<u8>, TocPlace, u64, Digest) {
    let (bytes, digest, raw_len) = match format {
        LayerFormat::Estargz => {
            let mut header = tar::Header::new_ustar();
            header.set_path(name::TOC_FILE).unwrap();
            header.set_size(json.len() as u64);
            header.set_cksum();
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(header.as_bytes()).unwrap();
            gzip.write_all(json).unwrap();
            gzip.write_all(&[0; 1024]).unwrap();
            (gzip.finish().unwrap(), Digest::of(json), None)
        }
        LayerFormat::ZstdChunked => {
            let bytes = zstd::encode_all(json, 1).unwrap();
            let digest = Digest::of(&bytes);
            (bytes, digest, Some(json.len() as u64))
        }
    };
    let place = TocPlace {
        offset: TOC_AT,
        len: bytes.len() as u64,
        raw_len,
        format,
    };
    let blob_size = TOC_AT + place.len + 51;
    (bytes, place, blob_size, digest)
}

fn build(format: LayerFormat, toc: &Value, limits: &Limits) -> Result<LayerIndex, TocError> {
    let json = serde_json::to_vec(toc).unwrap();
    let (bytes, place, blob_size, digest) = section(format, &json);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index");
    let facts = build_index(
        &bytes,
        &place,
        Digest::of(b"blob"),
        blob_size,
        Some(digest),
        limits,
        &path,
    )?;
    let index = LayerIndex::open(&path, true).unwrap();
    assert_eq!(index.facts(), &facts);
    assert_eq!((facts.toc, facts.bound), (digest, true));
    Ok(index)
}

fn toc(entries: &[Value]) -> Value {
    json!({"version": 1, "entries": entries})
}

fn digest_of(seed: &str) -> String {
    Digest::of(seed.as_bytes()).to_string()
}

fn file(name: &str, size: u64, offset: u64) -> Value {
    json!({"name": name, "type": "reg", "mode": 0o644, "size": size, "offset": offset,
        "endOffset": offset + 10, "digest": digest_of(name), "chunkDigest": digest_of(name)})
}

/// Both formats.
const FORMATS: [LayerFormat; 2] = [LayerFormat::Estargz, LayerFormat::ZstdChunked];

#[test]
fn everything_a_layer_can_hold_is_found_again() {
    let entries = [
        json!({"name": "./", "type": "dir", "mode": 0o755, "uid": 1, "gid": 2, "modtime": "2024-05-06T07:08:09Z"}),
        json!({"name": "bin/", "type": "dir", "mode": 0o1777}),
        json!({"name": "bin/su", "type": "reg", "mode": 0o104755, "size": 10, "offset": 100, "endOffset": 150,
            "digest": digest_of("su"), "chunkDigest": digest_of("su"),
            "xattrs": {"security.capability": "AQAAAg==", "security.selinux": "eA=="}}),
        json!({"name": "bin/big", "type": "reg", "mode": 0o644, "size": 25, "offset": 150, "endOffset": 400,
            "digest": digest_of("big"), "chunkSize": 10, "chunkDigest": digest_of("big0")}),
        json!({"name": "bin/big", "type": "chunk", "offset": 200, "chunkOffset": 10, "chunkSize": 10, "chunkDigest": digest_of("big1")}),
        json!({"name": "bin/big", "type": "chunk", "offset": 300, "chunkOffset": 20, "chunkSize": 5, "chunkDigest": digest_of("big2")}),
        json!({"name": "bin/sh", "type": "symlink", "linkName": "dash", "mode": 0o777}),
        json!({"name": "bin/su2", "type": "hardlink", "linkName": "./bin/su"}),
        json!({"name": "bin/su0", "type": "hardlink", "linkName": "bin/su2"}),
        json!({"name": "dev/null", "type": "char", "mode": 0o666, "devMajor": 1, "devMinor": 3}),
        json!({"name": "dev/loop0", "type": "block", "mode": 0o660, "devMajor": 7, "devMinor": 300}),
        json!({"name": "run/pipe", "type": "fifo", "mode": 0o600}),
        json!({"name": "empty", "type": "reg", "mode": 0o600, "digest": digest_of("")}),
        json!({"name": "etc/.wh.gone", "type": "reg", "uid": 7}),
        json!({"name": "var/.wh..wh..opq", "type": "reg"}),
        json!({"name": ".wh..wh.aufs", "type": "reg"}),
        json!({"name": "stargz.index.json", "type": "reg", "size": 9, "offset": 990}),
        json!({"name": ".prefetch.landmark", "type": "reg", "size": 1, "offset": 300}),
    ];
    for format in FORMATS {
        let index = build(format, &toc(&entries), &Limits::default()).unwrap();
        let at = |path: &str| {
            let id = index.find(path.as_bytes()).unwrap().unwrap();
            // The first name of hard links; the same node by either.
            let path = index.path(id).unwrap();
            assert_eq!(index.find(&path).unwrap(), Some(id));
            index.entry(id).unwrap().unwrap()
        };
        let root = at("");
        assert_eq!((root.id, root.parent, root.kind), (0, 0, Kind::Directory));
        assert_eq!((root.mode, root.uid, root.gid), (0o755, 1, 2));
        assert_eq!((root.mtime, root.nlink), (1_714_979_289, 2 + 5));
        let names: Vec<_> = (0..index.child_count(0).unwrap())
            .map(|n| index.child(0, n).unwrap().unwrap().name.to_vec())
            .collect();
        assert_eq!(
            names,
            [&b"bin"[..], b"dev", b"empty", b"etc", b"run", b"var"]
        );
        assert_eq!(index.child(0, 6).unwrap(), None);

        assert_eq!(at("bin").mode, 0o1777);
        let su = at("bin/su0");
        assert_eq!((su.mode, su.size, su.nlink), (0o4755, 10, 3));
        for other in ["bin/su", "bin/su2"] {
            assert_eq!(index.find(other.as_bytes()).unwrap(), Some(su.id));
        }
        assert_eq!(
            index.xattrs(su.id).unwrap(),
            [(&b"security.capability"[..], &[1_u8, 0, 0, 2][..])]
        );
        assert_eq!(su.content, Some(Digest::of(b"su")));

        let big = at("bin/big");
        assert_eq!(
            (big.chunks.len(), big.content),
            (3, Some(Digest::of(b"big")))
        );
        let chunks: Vec<_> = big
            .chunks
            .clone()
            .map(|n| index.chunk(n).unwrap().unwrap())
            .collect();
        assert_eq!(
            chunks
                .iter()
                .map(|c| (c.file_offset, c.len))
                .collect::<Vec<_>>(),
            [(0, 10), (10, 10), (20, 5)]
        );
        let last_end = match format {
            // Up to the next bytes of the blob, which are those of a file that is not shown.
            LayerFormat::Estargz => 990,
            LayerFormat::ZstdChunked => 400,
        };
        assert_eq!(
            chunks.iter().map(|c| c.span.clone()).collect::<Vec<_>>(),
            [150..200, 200..300, 300..last_end]
        );
        assert_eq!(chunks[2].digest, Digest::of(b"big2"));
        assert!(chunks.iter().all(|c| c.node == big.id));
        let first = big.chunks.start;
        for (bytes, expected) in [
            (0..1, 0..1),
            (9..11, 0..2),
            (10..20, 1..2),
            (24..4096, 2..3),
            (0..25, 0..3),
            (25..30, 0..0),
            (7..7, 0..0),
        ] {
            let found = index.chunks_covering(big.id, bytes.clone()).unwrap();
            assert_eq!(
                found,
                first + expected.start..first + expected.end,
                "{bytes:?}"
            );
        }
        // Decoded bytes lie together, in the order of the blob.
        assert_eq!(index.data_len(), 35);
        assert_eq!(
            index.chunk(su.chunks.start).unwrap().unwrap().data_offset,
            0
        );
        assert_eq!(chunks[0].data_offset, 10);
        assert_eq!(index.chunk(index.chunk_count()).unwrap(), None);

        let sh = at("bin/sh");
        assert_eq!(
            (sh.kind, sh.target, sh.size),
            (Kind::Symlink, &b"dash"[..], 4)
        );
        let null = at("dev/null");
        assert_eq!(
            (null.kind, null.major, null.minor),
            (Kind::CharDevice, 1, 3)
        );
        let disk = at("dev/loop0");
        assert_eq!(
            (disk.kind, disk.major, disk.minor),
            (Kind::BlockDevice, 7, 300)
        );
        assert_eq!(at("run/pipe").kind, Kind::Fifo);
        let empty = at("empty");
        assert_eq!((empty.size, empty.chunks.len()), (0, 0));
        assert_eq!(empty.content, Some(Digest::of(b"")));
        // Parents that no entry describes.
        let etc = at("etc");
        assert_eq!((etc.mode, etc.uid, etc.gid, etc.mtime), (0o755, 0, 0, 0));
        let gone = at("etc/gone");
        assert_eq!(
            (gone.kind, gone.major, gone.minor),
            (Kind::CharDevice, 0, 0)
        );
        assert_eq!(
            index.xattrs(at("var").id).unwrap(),
            [
                (&b"trusted.overlay.opaque"[..], &b"y"[..]),
                (b"user.overlay.opaque", b"y")
            ]
        );
        assert!(index.xattrs(etc.id).unwrap().is_empty());
        assert!(index.needs_xattrs());
        assert_eq!(index.prefetch_end(), Some(300));
        for hidden in [
            "stargz.index.json",
            ".prefetch.landmark",
            ".wh..wh.aufs",
            "etc/.wh.gone",
        ] {
            assert_eq!(index.find(hidden.as_bytes()).unwrap(), None, "{hidden}");
        }
        assert!(index.entry(index.node_count()).unwrap().is_none());
    }
}

#[test]
fn an_empty_layer_is_a_root_as_an_ordinary_pull_makes_it() {
    for format in FORMATS {
        let index = build(format, &toc(&[]), &Limits::default()).unwrap();
        let root = index.entry(0).unwrap().unwrap();
        assert_eq!(
            (root.mode, root.uid, root.gid, root.nlink),
            (0o555, 0, 0, 2)
        );
        assert_eq!(
            (index.node_count(), index.chunk_count(), index.data_len()),
            (1, 0, 0)
        );
        assert_eq!(index.child_count(0).unwrap(), 0);
        assert!(!index.needs_xattrs());
        assert_eq!(index.prefetch_end(), None);
    }
}

#[test]
fn whiteouts_alone_need_no_xattrs() {
    let index = build(
        LayerFormat::Estargz,
        &toc(&[json!({"name": ".wh.a", "type": "reg"})]),
        &Limits::default(),
    )
    .unwrap();
    assert!(!index.needs_xattrs());
}

#[test]
fn runs_of_zeros_are_chunks_without_bytes() {
    let entries = [
        json!({"name": "sparse", "type": "reg", "size": 1_000_010, "offset": 100, "endOffset": 200, "digest": digest_of("x"),
            "chunkSize": 5, "chunkDigest": digest_of("a")}),
        json!({"name": "sparse", "type": "chunk", "offset": 150, "chunkOffset": 5, "chunkSize": 1_000_000, "chunkType": "zeros"}),
        json!({"name": "sparse", "type": "chunk", "offset": 160, "chunkOffset": 1_000_005, "chunkSize": 5, "chunkDigest": digest_of("b")}),
    ];
    let index = build(LayerFormat::ZstdChunked, &toc(&entries), &Limits::default()).unwrap();
    let chunks: Vec<_> = (0..3).map(|n| index.chunk(n).unwrap().unwrap()).collect();
    assert_eq!(
        chunks.iter().map(|c| c.zeros).collect::<Vec<_>>(),
        [false, true, false]
    );
    assert!(chunks[1].span.is_empty());
    assert_eq!(
        (chunks[0].span.clone(), chunks[2].span.clone()),
        (100..150, 160..200)
    );
    assert_eq!(chunks[2].data_offset, 1_000_005);
}

#[test]
fn small_files_of_one_stream_are_told_apart_by_what_lies_before_them() {
    let mut a = file("a", 5, 100);
    let mut b = file("b", 6, 100);
    a["innerOffset"] = 512.into();
    b["innerOffset"] = 1536.into();
    let entries = [a, b, file("c", 7, 300)];
    let index = build(LayerFormat::Estargz, &toc(&entries), &Limits::default()).unwrap();
    let chunks: Vec<_> = (0..3).map(|n| index.chunk(n).unwrap().unwrap()).collect();
    assert_eq!(
        chunks
            .iter()
            .map(|c| (c.span.clone(), c.skip))
            .collect::<Vec<_>>(),
        [(100..300, 512), (100..300, 1536), (300..TOC_AT, 0)]
    );
}

#[test]
fn the_last_entry_of_a_name_wins() {
    let entries = [
        json!({"name": "d", "type": "dir", "mode": 0o700}),
        file("d/f", 5, 100),
        json!({"name": "d/old", "type": "hardlink", "linkName": "d/f"}),
        file("d/f", 7, 200),
        json!({"name": "d/", "type": "dir", "mode": 0o711}),
        json!({"name": "x", "type": "symlink", "linkName": "y"}),
        file("x", 3, 300),
        json!({"name": ".wh.y", "type": "reg"}),
        json!({"name": "y/z", "type": "fifo"}),
        json!({"name": ".wh.y", "type": "reg"}),
    ];
    let index = build(LayerFormat::Estargz, &toc(&entries), &Limits::default()).unwrap();
    let at = |path: &str| {
        let id = index.find(path.as_bytes()).unwrap().unwrap();
        index.entry(id).unwrap().unwrap()
    };
    assert_eq!(at("d").mode, 0o711);
    assert_eq!((at("d/f").size, at("d/f").nlink), (7, 1));
    // As in a tar: the link was made to the file that was there then.
    assert_eq!((at("d/old").size, at("d/old").nlink), (5, 1));
    assert_eq!((at("x").kind, at("x").size), (Kind::File, 3));
    assert_eq!(at("y").kind, Kind::Directory);
    assert_eq!(at("y/z").kind, Kind::Fifo);
}

#[test]
fn hard_links_may_come_before_their_targets() {
    let link =
        |name: &str, target: &str| json!({"name": name, "type": "hardlink", "linkName": target});
    let entries = [
        link("a", "b"),
        link("b", "/d/c"),
        link("e", "a"),
        file("d/c", 5, 100),
    ];
    let index = build(LayerFormat::ZstdChunked, &toc(&entries), &Limits::default()).unwrap();
    let node = index.find(b"d/c").unwrap().unwrap();
    for name in ["a", "b", "e"] {
        assert_eq!(index.find(name.as_bytes()).unwrap(), Some(node));
    }
    assert_eq!(index.entry(node).unwrap().unwrap().nlink, 4);
    assert_eq!(index.node_count(), 3);
}
