//! What must be refused, with a message that names the entry.

use super::*;

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
