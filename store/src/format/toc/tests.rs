//! TOCs of both formats, made by hand, through to the index.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{collections::BTreeMap, io::Write as _};

use proptest::prelude::*;
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

/// Builds in one format and answers the refusal and the entry's name.
fn refused(format: LayerFormat, entries: &[Value], limits: &Limits) -> (String, Refusal) {
    match build(format, &toc(entries), limits) {
        Err(TocError::Entry { name, why, .. }) => (name, why),
        other => panic!("{entries:?}: {other:?}"),
    }
}

#[test]
fn what_the_rules_refuse_is_refused_and_named() {
    let with = |mut entry: Value, changes: Value| {
        for (key, value) in changes.as_object().unwrap() {
            entry[key] = value.clone();
        }
        entry
    };
    let link =
        |name: &str, target: &str| json!({"name": name, "type": "hardlink", "linkName": target});
    let chunk = |offset: u64, at: u64, size: u64| json!({"name": "f", "type": "chunk", "offset": offset, "chunkOffset": at, "chunkSize": size, "chunkDigest": digest_of("c")});
    let first = with(
        file("f", 20, 100),
        json!({"chunkSize": 10, "endOffset": 300}),
    );
    let f = |changes: Value| vec![with(file("f", 20, 100), changes)];
    let big = u64::MAX / 2 + 1;
    type Row = (&'static str, Vec<Value>, fn(&Refusal) -> bool);
    let table: Vec<Row> = vec![
        ("../f", vec![file("../f", 1, 1)], |r| {
            *r == Refusal::NameDotDot
        }),
        ("a\0", vec![file("a\0", 1, 1)], |r| *r == Refusal::NameNul),
        ("", vec![file("", 1, 1)], |r| *r == Refusal::NameEmpty),
        ("./", vec![link("./", "x")], |r| *r == Refusal::NameEmpty),
        ("f/g", vec![file("f", 1, 1), file("f/g", 1, 9)], |r| {
            matches!(r, Refusal::ParentNotDirectory(_))
        }),
        (
            "l/g",
            vec![
                json!({"name": "l", "type": "symlink", "linkName": "x"}),
                file("l/g", 1, 9),
            ],
            |r| matches!(r, Refusal::ParentNotDirectory(_)),
        ),
        ("d", vec![file("d/g", 1, 1), file("d", 1, 9)], |r| {
            *r == Refusal::ReplacesDirectory
        }),
        (
            "d",
            vec![file("d/g", 1, 1), file("x", 1, 3), link("d", "x")],
            |r| *r == Refusal::ReplacesDirectory,
        ),
        ("a", vec![link("a", "missing")], |r| {
            matches!(r, Refusal::LinkMissing(_))
        }),
        (
            "a",
            vec![json!({"name": ".wh.b", "type": "reg"}), link("a", "b")],
            |r| matches!(r, Refusal::LinkMissing(_)),
        ),
        (
            "a",
            vec![json!({"name": "d", "type": "dir"}), link("a", "d")],
            |r| matches!(r, Refusal::LinkNotFile(_)),
        ),
        (
            "a",
            vec![link("a", "d"), json!({"name": "d", "type": "fifo"})],
            |r| matches!(r, Refusal::LinkNotFile(_)),
        ),
        ("a", vec![link("a", "/")], |r| {
            matches!(r, Refusal::LinkNotFile(_))
        }),
        ("a", vec![link("a", "../b")], |r| *r == Refusal::NameDotDot),
        ("a", vec![link("a", "")], |r| *r == Refusal::LinkEmpty),
        ("a", vec![link("a", "b"), link("b", "a")], |r| {
            matches!(r, Refusal::LinkCycle(_))
        }),
        ("a", vec![link("a", "a")], |r| {
            matches!(r, Refusal::LinkCycle(_))
        }),
        ("a", vec![file("a", 1, 1), link("a", "a")], |r| {
            matches!(r, Refusal::LinkCycle(_))
        }),
        ("s", vec![json!({"name": "s", "type": "symlink"})], |r| {
            *r == Refusal::LinkEmpty
        }),
        (
            "s",
            vec![json!({"name": "s", "type": "symlink", "linkName": "a\0b"})],
            |r| *r == Refusal::LinkNul,
        ),
        (
            "s",
            vec![json!({"name": "s", "type": "symlink", "linkName": "x".repeat(4096)})],
            |r| matches!(r, Refusal::LinkLength { .. }),
        ),
        ("t", vec![json!({"name": "t", "type": "socket"})], |r| {
            matches!(r, Refusal::Type(_))
        }),
        ("t", vec![json!({"name": "t"})], |r| {
            matches!(r, Refusal::Type(_))
        }),
        (
            "t",
            vec![json!({"name": "t", "type": "char", "devMajor": 4096})],
            |r| matches!(r, Refusal::Device { .. }),
        ),
        (
            "t",
            vec![json!({"name": "t", "type": "block", "devMinor": 1 << 20})],
            |r| matches!(r, Refusal::Device { .. }),
        ),
        (
            "t",
            vec![json!({"name": "t", "type": "fifo", "modtime": "now"})],
            |r| matches!(r, Refusal::Time(_)),
        ),
        (
            "t",
            vec![json!({"name": "t", "type": "fifo", "mode": -1})],
            |r| matches!(r, Refusal::Fields(_)),
        ),
        (
            "t",
            vec![json!({"name": "t", "type": "fifo", "xattrs": {"user.a": "%"}})],
            |r| matches!(r, Refusal::Xattr { .. }),
        ),
        (
            "t",
            vec![json!({"name": "t", "type": "fifo", "xattrs": {"": "YQ=="}})],
            |r| matches!(r, Refusal::Xattr { .. }),
        ),
        (
            "t",
            vec![
                json!({"name": "t", "type": "dir", "xattrs": {"trusted.overlay.redirect": "Lw=="}}),
            ],
            |r| matches!(r, Refusal::Xattr { .. }),
        ),
        (
            "t",
            vec![json!({"name": "t", "type": "fifo", "xattrs": {"user.a": "YWFh".repeat(30_000)}})],
            |r| matches!(r, Refusal::XattrLimit(_)),
        ),
        ("f", f(json!({"size": -5})), |r| {
            matches!(r, Refusal::Fields(_))
        }),
        ("f", f(json!({"size": big})), |r| {
            matches!(r, Refusal::Number { field: "size", .. })
        }),
        ("f", f(json!({"offset": big})), |r| {
            matches!(
                r,
                Refusal::Number {
                    field: "offset",
                    ..
                }
            )
        }),
        ("f", f(json!({"size": 1e300})), |r| {
            matches!(r, Refusal::Fields(_))
        }),
        ("f", f(json!({"digest": "md5:00"})), |r| {
            matches!(
                r,
                Refusal::Digest {
                    field: "digest",
                    ..
                }
            )
        }),
        ("f", f(json!({"chunkDigest": "sha256:0"})), |r| {
            matches!(
                r,
                Refusal::Digest {
                    field: "chunkDigest",
                    ..
                }
            )
        }),
        ("f", f(json!({"digest": null, "chunkDigest": null})), |r| {
            matches!(r, Refusal::ChunkDigest(0))
        }),
        ("f", f(json!({"offset": 0})), |r| {
            matches!(r, Refusal::ChunkPlace(0))
        }),
        ("f", f(json!({"chunkOffset": 1})), |r| {
            matches!(
                r,
                Refusal::ChunkOrder {
                    expected: 0,
                    found: 1
                }
            )
        }),
        ("f", f(json!({"chunkSize": 10})), |r| {
            matches!(
                r,
                Refusal::ChunkCover {
                    size: 20,
                    found: 10
                }
            )
        }),
        ("f", f(json!({"chunkSize": 30})), |r| {
            matches!(r, Refusal::ChunkCover { .. })
        }),
        ("f", f(json!({"chunkType": "holes"})), |r| {
            matches!(r, Refusal::Type(_))
        }),
        ("f", f(json!({"size": 300 << 20, "chunkSize": 0})), |r| {
            matches!(r, Refusal::ChunkLimit { .. })
        }),
        ("f", f(json!({"innerOffset": 300 << 20})), |r| {
            matches!(r, Refusal::ChunkLimit { .. })
        }),
        ("f", f(json!({"offset": TOC_AT, "endOffset": 0})), |r| {
            matches!(r, Refusal::SpanOutside { .. })
        }),
        ("f", vec![first.clone(), chunk(200, 5, 10)], |r| {
            matches!(
                r,
                Refusal::ChunkOrder {
                    expected: 10,
                    found: 5
                }
            )
        }),
        ("f", vec![first.clone(), chunk(200, 12, 8)], |r| {
            matches!(r, Refusal::ChunkOrder { .. })
        }),
        ("f", vec![first.clone(), chunk(200, 10, 9)], |r| {
            matches!(r, Refusal::ChunkCover { .. })
        }),
        (
            "f",
            vec![first.clone(), chunk(200, 10, 10), chunk(210, 20, 10)],
            |r| matches!(r, Refusal::ChunkCover { .. }),
        ),
        (
            "f",
            vec![first.clone(), chunk(200, 10, u64::MAX / 2)],
            |r| matches!(r, Refusal::ChunkCover { .. }),
        ),
        (
            "f",
            vec![
                first.clone(),
                with(chunk(200, 10, 10), json!({"chunkDigest": ""})),
            ],
            |r| matches!(r, Refusal::ChunkDigest(10)),
        ),
        ("f", vec![chunk(200, 0, 10)], |r| *r == Refusal::ChunkAlone),
        ("f", vec![file("g", 20, 1), chunk(200, 0, 10)], |r| {
            matches!(r, Refusal::ChunkElsewhere(_))
        }),
        (
            "e",
            vec![
                json!({"name": "e", "type": "reg"}),
                with(chunk(200, 0, 10), json!({"name": "e"})),
            ],
            |r| matches!(r, Refusal::ChunkCover { .. }),
        ),
        (".wh.", vec![json!({"name": ".wh.", "type": "reg"})], |r| {
            *r == Refusal::WhiteoutName
        }),
    ];
    for format in FORMATS {
        for (name, entries, expected) in &table {
            let (found, why) = refused(format, entries, &Limits::default());
            assert_eq!(&found, name, "{format:?} {entries:?}: {why}");
            assert!(expected(&why), "{format:?} {entries:?}: {why:?}");
        }
    }
    // What only the format with ends of its own can say.
    for entries in [
        f(json!({"offset": 100, "endOffset": 90})),
        f(json!({"offset": 100, "endOffset": TOC_AT + 1})),
        vec![first, chunk(99, 10, 10)],
    ] {
        let (_, why) = refused(LayerFormat::ZstdChunked, &entries, &Limits::default());
        assert!(matches!(why, Refusal::SpanOutside { .. }), "{why}");
    }
}

#[test]
fn limits_are_kept() {
    let limits = Limits {
        max_entries: 3,
        max_toc_bytes: 2000,
        max_data_bytes: 100,
        max_depth: 10,
        ..Limits::default()
    };
    let fifo = |name: &str| json!({"name": name, "type": "fifo"});
    for format in FORMATS {
        let three = [fifo("a"), fifo("b"), fifo("c")];
        assert!(build(format, &toc(&three), &limits).is_ok());
        let four = [fifo("a"), fifo("b"), fifo("c"), fifo("d")];
        assert!(matches!(
            build(format, &toc(&four), &limits),
            Err(TocError::Entries(3))
        ));
        // Directories that a path implies count.
        let (name, why) = refused(format, &[fifo("1/2/3/4")], &limits);
        assert_eq!((&*name, why), ("1/2/3/4", Refusal::Count(3)));
        let (_, why) = refused(format, &[fifo("1/2/3/4/5/6/7/8/9/10/11/12")], &limits);
        assert_eq!(why, Refusal::Depth(10));
        let (name, why) = refused(format, &[file("a", 60, 10), file("b", 60, 20)], &limits);
        assert_eq!((&*name, why), ("b", Refusal::DataLimit(100)));
        let small = Limits {
            max_chunk_bytes: 1000,
            ..Limits::default()
        };
        let mut far = file("a", 60, 10);
        far["endOffset"] = 3000.into();
        let (name, why) = refused(format, &[far], &small);
        assert_eq!(&*name, "a");
        assert!(
            matches!(
                why,
                Refusal::ChunkLimit {
                    what: "compressed chunk",
                    limit: 2000,
                    ..
                }
            ),
            "{why}"
        );
        let long = json!({"version": 1, "entries": [], "x": "y".repeat(2000)});
        assert!(matches!(
            build(format, &long, &limits),
            Err(TocError::Size { .. })
        ));
    }
}

/// `section` with a digest that is expected.
fn raw(
    format: LayerFormat,
    json: &[u8],
    change: impl FnOnce(&mut Vec<u8>, &mut TocPlace, &mut Digest),
) -> TocError {
    let (mut bytes, mut place, blob_size, mut digest) = section(format, json);
    change(&mut bytes, &mut place, &mut digest);
    check(&bytes, &place, blob_size, Some(digest), &Limits::default()).unwrap_err()
}

#[test]
fn a_toc_with_another_digest_is_refused_whatever_else_is_wrong_with_it() {
    let good = br#"{"version":1,"entries":[]}"#;
    for format in FORMATS {
        for json in [&good[..], b"no json", br#"{"version":2,"entries":[]}"#] {
            let error = raw(format, json, |_, _, digest| *digest = Digest::of(b"other"));
            assert!(
                matches!(error, TocError::Digest { expected, .. } if expected == Digest::of(b"other")),
                "{error}"
            );
        }
    }
}

#[test]
fn sections_that_are_none_are_refused() {
    let good = br#"{"version":1,"entries":[]}"#;
    for format in FORMATS {
        let error = raw(format, good, |bytes, _, _| bytes.truncate(10));
        assert!(matches!(error, TocError::Place(_)), "{error}");
        let error = raw(format, good, |_, place, _| place.offset = u64::MAX);
        assert!(matches!(error, TocError::Place(_)), "{error}");
        let error = raw(format, good, |bytes, place, digest| {
            *bytes = b"<html>404</html>".to_vec();
            place.len = bytes.len() as u64;
            *digest = Digest::of(bytes);
        });
        assert!(matches!(error, TocError::Unpack(_)), "{error}");
        let error = raw(format, good, |bytes, place, digest| {
            bytes.truncate(bytes.len() / 3);
            place.len = bytes.len() as u64;
            if format == LayerFormat::ZstdChunked {
                *digest = Digest::of(bytes);
            }
        });
        assert!(
            matches!(error, TocError::Unpack(_)),
            "{format:?}: {error:?}"
        );
    }
    for wrong in [25, 27] {
        let error = raw(LayerFormat::ZstdChunked, good, |_, place, _| {
            place.raw_len = Some(wrong);
        });
        assert!(
            matches!(error, TocError::Place(_) | TocError::Size { .. }),
            "{error}"
        );
    }
    let other_name = {
        let mut header = tar::Header::new_ustar();
        header.set_path("other.json").unwrap();
        header.set_size(good.len() as u64);
        header.set_cksum();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(header.as_bytes()).unwrap();
        gzip.write_all(good).unwrap();
        gzip.finish().unwrap()
    };
    let error = raw(LayerFormat::Estargz, good, |bytes, place, _| {
        place.len = other_name.len() as u64;
        *bytes = other_name;
    });
    assert!(matches!(error, TocError::Archive(_)), "{error}");
}

#[test]
fn an_unbound_toc_is_marked() {
    let (bytes, place, blob_size, digest) =
        section(LayerFormat::Estargz, br#"{"version":1,"entries":[]}"#);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index");
    let facts = build_index(
        &bytes,
        &place,
        Digest::of(b"blob"),
        blob_size,
        None,
        &Limits::default(),
        &path,
    )
    .unwrap();
    assert_eq!((facts.bound, facts.toc), (false, digest));
    assert!(!LayerIndex::open(&path, true).unwrap().facts().bound);
    // Nothing but the index is left behind.
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_refused_toc_leaves_no_file() {
    let (bytes, place, blob_size, _) =
        section(LayerFormat::Estargz, br#"{"version":1,"entries":[]}"#);
    let dir = tempfile::tempdir().unwrap();
    let result = build_index(
        &bytes,
        &place,
        Digest::of(b"blob"),
        blob_size,
        Some(Digest::of(b"x")),
        &Limits::default(),
        &dir.path().join("index"),
    );
    assert!(matches!(result, Err(TocError::Digest { .. })));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// What a random tree holds at a path.
#[derive(Debug, Clone)]
enum Model {
    Dir(u16),
    File(u16, Vec<u64>),
    Link(String),
    Fifo,
}

fn model() -> impl Strategy<Value = BTreeMap<String, Model>> {
    let name = prop_oneof!["[a-c]", "[a-zé☃ ]{1,12}", "\\PC{1,40}"]
        .prop_map(|name| name.replace('/', "_"))
        .prop_filter("names of the format", |name| {
            !matches!(name.as_str(), "." | "..") && !name.starts_with(".wh.") && name.len() < 256
        });
    let what = prop_oneof![
        (0_u16..0o10000).prop_map(Model::Dir),
        (
            0_u16..0o10000,
            proptest::collection::vec(1_u64..5_000_000, 0..5)
        )
            .prop_map(|(mode, chunks)| Model::File(mode, chunks)),
        "[^\0]{1,50}".prop_map(Model::Link),
        Just(Model::Fifo),
    ];
    proptest::collection::vec((proptest::collection::vec(name, 1..5), what), 0..60).prop_map(
        |items| {
            let mut tree: BTreeMap<String, Model> = BTreeMap::new();
            for (path, what) in items {
                // Keep what fits a tree: every prefix is free or a directory, the path itself is free.
                let fits = (1..path.len())
                    .all(|n| matches!(tree.get(&path[..n].join("/")), None | Some(Model::Dir(_))));
                let full = path.join("/");
                let below = format!("{full}/");
                if fits
                    && !tree
                        .keys()
                        .any(|key| *key == full || key.starts_with(&below))
                {
                    for n in 1..path.len() {
                        tree.entry(path[..n].join("/")).or_insert(Model::Dir(0o755));
                    }
                    tree.insert(full, what);
                }
            }
            tree
        },
    )
}

/// The entries of a model's TOC; `prefix` is put before each name.
fn entries(tree: &BTreeMap<String, Model>, prefix: &str) -> Vec<Value> {
    let mut out = Vec::new();
    let mut at = 600_u64;
    for (path, what) in tree {
        let name = format!("{prefix}{path}");
        match what {
            Model::Dir(mode) => {
                out.push(json!({"name": format!("{name}/"), "type": "dir", "mode": mode}));
            }
            Model::Fifo => out.push(json!({"name": name, "type": "fifo"})),
            Model::Link(target) => {
                out.push(json!({"name": name, "type": "symlink", "linkName": target}));
            }
            Model::File(mode, chunks) => {
                let size: u64 = chunks.iter().sum();
                let end = at + 7 * chunks.len() as u64;
                let mut entry = json!({"name": name, "type": "reg", "mode": mode, "size": size, "digest": digest_of(path)});
                let mut done = 0;
                for (n, len) in chunks.iter().enumerate() {
                    let digest = digest_of(&format!("{path} {n}"));
                    if n > 0 {
                        out.push(entry);
                        entry = json!({"name": name, "type": "chunk", "chunkOffset": done});
                    }
                    entry["offset"] = at.into();
                    entry["chunkDigest"] = digest.into();
                    if n == 0 {
                        entry["endOffset"] = end.into();
                    }
                    if chunks.len() > 1 {
                        entry["chunkSize"] = (*len).into();
                    }
                    at += 7;
                    done += len;
                }
                out.push(entry);
            }
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_tree_survives_toc_and_index(tree in model(), zstd: bool, dotted: bool) {
        let format = FORMATS[usize::from(zstd)];
        let entries = entries(&tree, if dotted { "./" } else { "" });
        let index = build(format, &toc(&entries), &Limits::default()).unwrap();
        prop_assert_eq!(index.node_count() as usize, tree.len() + 1);
        let mut subdirs: BTreeMap<&str, u32> = BTreeMap::new();
        let mut sizes: BTreeMap<&str, u32> = BTreeMap::new();
        for (path, what) in &tree {
            let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
            *sizes.entry(dir).or_default() += 1;
            if matches!(what, Model::Dir(_)) {
                *subdirs.entry(dir).or_default() += 1;
            }
        }
        let mut data = 0;
        for (path, what) in &tree {
            let id = index.find(path.as_bytes()).unwrap().unwrap();
            prop_assert_eq!(index.path(id).unwrap(), path.as_bytes());
            let entry = index.entry(id).unwrap().unwrap();
            prop_assert!(entry.parent < id);
            match what {
                Model::Dir(mode) => {
                    prop_assert_eq!((entry.kind, entry.mode), (Kind::Directory, *mode));
                    prop_assert_eq!(entry.nlink, 2 + subdirs.get(path.as_str()).copied().unwrap_or(0));
                    prop_assert_eq!(index.child_count(id).unwrap(), sizes.get(path.as_str()).copied().unwrap_or(0));
                }
                Model::Fifo => prop_assert_eq!(entry.kind, Kind::Fifo),
                Model::Link(target) => {
                    prop_assert_eq!((entry.kind, entry.target), (Kind::Symlink, target.as_bytes()));
                }
                Model::File(mode, lens) => {
                    prop_assert_eq!((entry.kind, entry.mode, entry.nlink), (Kind::File, *mode, 1));
                    prop_assert_eq!(entry.size, lens.iter().sum::<u64>());
                    prop_assert_eq!(entry.chunks.len(), lens.len());
                    let mut offset = 0;
                    for (n, (id, len)) in entry.chunks.clone().zip(lens).enumerate() {
                        let chunk = index.chunk(id).unwrap().unwrap();
                        prop_assert_eq!((chunk.file_offset, chunk.len), (offset, *len));
                        prop_assert_eq!(chunk.data_offset, data);
                        prop_assert_eq!(chunk.digest, Digest::of(format!("{path} {n}").as_bytes()));
                        prop_assert_eq!(index.chunks_covering(entry.id, offset..offset + len).unwrap(), id..id + 1);
                        offset += len;
                        data += len;
                    }
                    prop_assert_eq!(entry.content, Some(Digest::of(path.as_bytes())));
                }
            }
        }
        prop_assert_eq!(index.data_len(), data);
        for n in 1..index.child_count(0).unwrap() {
            prop_assert!(index.child(0, n - 1).unwrap().unwrap().name < index.child(0, n).unwrap().unwrap().name);
        }
    }

    #[test]
    fn any_json_is_answered(json in "\\PC{0,200}", zstd: bool) {
        let (bytes, place, blob_size, _) = section(FORMATS[usize::from(zstd)], json.as_bytes());
        let _ = check(&bytes, &place, blob_size, None, &Limits::default());
    }

    #[test]
    fn any_section_is_answered(bytes: Vec<u8>, zstd: bool, offset: u64, blob_size: u64) {
        let place = TocPlace { offset, len: bytes.len() as u64, raw_len: None, format: FORMATS[usize::from(zstd)] };
        let _ = check(&bytes, &place, blob_size, None, &Limits::default());
    }

    #[test]
    fn a_damaged_index_gives_errors_and_no_crash(tree in model(), flips in proptest::collection::vec((any::<prop::sample::Index>(), 0..8_u32), 1..20), fix: bool) {
        let json = serde_json::to_vec(&toc(&entries(&tree, ""))).unwrap();
        let (section, place, blob_size, digest) = section(LayerFormat::Estargz, &json);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("index");
        build_index(&section, &place, digest, blob_size, None, &Limits::default(), &path).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        for (at, bit) in flips {
            // Mostly behind the header, whose checksum is always looked at.
            let at = if fix { 256 + at.index(bytes.len() - 256) } else { at.index(bytes.len()) };
            bytes[at] ^= 1 << bit;
        }
        std::fs::write(&path, &bytes).unwrap();
        let checked = LayerIndex::open(&path, true);
        if let Ok(index) = LayerIndex::open(&path, false) {
            walk(&index);
        }
        if let Ok(index) = checked {
            walk(&index);
        }
    }

    #[test]
    fn any_file_is_answered(bytes: Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("index");
        std::fs::write(&path, &bytes).unwrap();
        prop_assert!(LayerIndex::open(&path, false).is_err());
    }
}

/// Asks an index everything; errors are fine.
fn walk(index: &LayerIndex) {
    for id in 0..index.node_count().min(1000) {
        let _ = index.path(id);
        let _ = index.xattrs(id);
        let _ = index.lookup(id, b"a");
        let _ = index.child(id, 0);
        let _ = index.child(id, u32::MAX);
        let _ = index.chunks_covering(id, 0..u64::MAX);
        let _ = index.chunks_covering(id, 5..7);
        let _ = index.entry(id);
    }
    for id in 0..index.chunk_count().min(1000) {
        let _ = index.chunk(id);
    }
    let _ = index.find(b"a/b/c");
}
