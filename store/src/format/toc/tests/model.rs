//! Random trees through TOC and index against a simple model, and random bytes.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

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
