//! What the fuzz targets run, and what must hold whatever the bytes are. The test `fuzz_corpus` runs the same on the
//! kept corpus.

use std::{collections::BTreeMap, io::Write as _, path::Path};

use forelayer::{
    config::load,
    digest::Digest,
    format::{
        LayerFormat, LayerIndex, annotated,
        footer::{self, TocPlace},
        limits::Limits,
        toc::build_index,
    },
    image::manifest::{self, Document},
    registry::Reference,
};
use forelayer_profiler::model::{Profile, predict};

/// Where the TOC starts in the blobs of these TOCs.
const TOC_AT: u64 = 1 << 20;

/// Limits that let a run reach all of them.
fn limits() -> Limits {
    Limits {
        max_entries: 10_000,
        max_toc_bytes: 4 << 20,
        max_path_bytes: 1024,
        max_depth: 32,
        max_xattr_bytes: 4096,
        max_chunk_bytes: 1 << 20,
        max_data_bytes: 1 << 40,
    }
}

/// The JSON of a TOC, in both formats.
pub fn toc(json: &[u8]) {
    let packed = zstd::encode_all(json, 1).expect("compressing into memory");
    accept(&packed, LayerFormat::ZstdChunked, Some(json.len() as u64));
    let mut header = tar::Header::new_ustar();
    header.set_path("stargz.index.json").expect("a short name");
    header.set_size(json.len() as u64);
    header.set_cksum();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    for part in [header.as_bytes(), json] {
        gzip.write_all(part).expect("compressing into memory");
    }
    let packed = gzip.finish().expect("compressing into memory");
    accept(&packed, LayerFormat::Estargz, None);
}

/// The compressed TOC of zstd:chunked as it stands in a blob.
pub fn zstd_manifest(section: &[u8]) {
    accept(section, LayerFormat::ZstdChunked, None);
}

/// Builds an index; if that succeeds, everything in it must be sound.
fn accept(section: &[u8], format: LayerFormat, raw_len: Option<u64>) {
    let place = TocPlace {
        offset: TOC_AT,
        len: section.len() as u64,
        raw_len,
        format,
    };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("index");
    let blob = Digest::of(b"blob");
    let size = TOC_AT + place.len;
    if build_index(section, &place, blob, size, None, &limits(), &path).is_err() {
        let left = std::fs::read_dir(dir.path()).expect("a directory").count();
        assert_eq!(left, 0, "a refused TOC leaves nothing behind");
        return;
    }
    let index = LayerIndex::open(&path, true).expect("what was written can be opened");
    let mut covered = 0;
    for id in 0..index.node_count() {
        let entry = index.entry(id).expect("sound").expect("a node");
        assert!(id == 0 || entry.parent < id);
        let names = index.path(id).expect("sound");
        assert_eq!(index.find(&names).expect("sound"), Some(id));
        index.xattrs(id).expect("sound");
        let mut at = 0;
        for chunk in entry.chunks.clone() {
            let chunk = index.chunk(chunk).expect("sound").expect("a chunk");
            assert_eq!((chunk.node, chunk.file_offset), (id, at));
            assert!(chunk.span.end <= TOC_AT);
            assert!(chunk.zeros || chunk.len <= limits().max_chunk_bytes);
            at += chunk.len;
        }
        if !entry.chunks.is_empty() {
            assert_eq!(at, entry.size);
            let all = index.chunks_covering(id, 0..entry.size).expect("sound");
            assert_eq!(all, entry.chunks);
        }
        covered += at;
        for n in 0..index.child_count(id).expect("sound") {
            let child = index.child(id, n).expect("sound").expect("a child");
            assert_eq!(
                index.lookup(id, child.name).expect("sound"),
                Some(child.node)
            );
        }
    }
    assert_eq!(covered, index.data_len());
}

/// The end of a blob: 8 bytes of blob size, then its last bytes.
pub fn footer(data: &[u8]) {
    let Some((size, tail)) = data.split_first_chunk::<8>() else {
        return;
    };
    let size = u64::from_le_bytes(*size);
    if let Ok(place) = footer::parse(tail, size) {
        assert!(
            place.len > 0
                && place
                    .offset
                    .checked_add(place.len)
                    .is_some_and(|end| end <= size)
        );
    }
}

/// Annotations as lines `name=value`; the first line is the blob's size.
pub fn annotations(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut lines = text.lines();
    let size = lines.next().and_then(|line| line.parse().ok()).unwrap_or(0);
    let map: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    if let Ok(Some(found)) = annotated(&map, size)
        && let Some(place) = found.place
    {
        assert_eq!(place.format, found.format);
        assert!(
            place.len > 0
                && place
                    .offset
                    .checked_add(place.len)
                    .is_some_and(|end| end <= size)
        );
    }
}

/// The answer to a question for a manifest: its media type as the first line, then the body. The body is read as a
/// config, too.
pub fn manifest(data: &[u8]) {
    let split = data.iter().position(|byte| *byte == b'\n');
    let (media_type, body) = split.map_or((&[][..], data), |at| (&data[..at], &data[at + 1..]));
    if let Ok(Document::Manifest(found)) =
        manifest::parse(&String::from_utf8_lossy(media_type), body)
    {
        assert!(found.repeated().len() <= found.layers.len());
        for layer in &found.layers {
            // A refusal is an answer; a panic is none.
            let _ = annotated(&layer.annotations, layer.size);
        }
    }
    let _ = manifest::diff_ids(body);
}

/// An image's name as an engine puts it into a path.
pub fn reference(data: &[u8]) {
    let Ok(reference) = String::from_utf8_lossy(data).parse::<Reference>() else {
        return;
    };
    assert!(!reference.repository.host.is_empty() && !reference.repository.name.is_empty());
    assert!(
        !reference
            .repository
            .name
            .split('/')
            .any(|part| part.is_empty() || part == "..")
    );
    assert!(reference.tag.is_some() || reference.digest.is_some());
}

/// A configuration file.
pub fn config(data: &[u8]) {
    let path = Path::new("config.toml");
    if let Ok(config) = load::parse(&String::from_utf8_lossy(data), path) {
        assert!(config.state_dir.is_absolute() && config.run_dir.is_absolute());
    }
}

/// A profile file, which may come from anybody.
pub fn profile(data: &[u8]) {
    let Ok(profile) = Profile::from_json(data) else {
        return;
    };
    let text = profile.to_json();
    let again = Profile::from_json(text.as_bytes()).expect("what was written can be read");
    assert_eq!(again.to_json(), text);
    for file in predict(&[profile]).files {
        for range in file.ranges {
            assert!(range.pages > 0 && range.page.checked_add(range.pages.into()).is_some());
        }
    }
}
