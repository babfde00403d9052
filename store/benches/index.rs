//! A layer of 100,000 entries: first build of its index, opening it again, and the memory that the build takes.
//!
//! `cargo bench -p forelayer --bench index`. The targets (docs/formats.md, "LayerIndex") are 350 ms, 5 ms and 60 MB.

#![allow(clippy::unwrap_used, reason = "benches")]

use std::{fmt::Write as _, hint::black_box, io::Write as _, path::Path, process::Command};

use criterion::{Criterion, criterion_group};
use forelayer::{
    digest::Digest,
    format::{LayerFormat, LayerIndex, footer::TocPlace, limits::Limits, toc::build_index},
};

const ENTRIES: usize = 100_000;
/// Where the TOC starts in the blob.
const TOC_AT: u64 = 500 << 20;
/// Set in the process that builds once and says how much memory it took.
const CHILD: &str = "FORELAYER_BENCH_BUILD";

/// The JSON of a TOC as the reference tool writes it (indented by tabs): one directory for every 20 files, some files
/// of several chunks, some links.
fn json() -> String {
    let mut json = String::from("{\n\t\"version\": 1,\n\t\"entries\": [");
    let mut offset = 1000_u64;
    for n in 0..ENTRIES {
        let dir = format!("usr/lib/python3/dist-packages/package{:05}/", n / 20);
        let mut put = |fields: &str| {
            let comma = if n == 0 { "" } else { "," };
            write!(json, "{comma}\n\t\t{{{fields}\n\t\t}}").unwrap();
        };
        let common = "\n\t\t\t\"modtime\": \"2024-05-06T07:08:09Z\",\n\t\t\t\"mode\": 420,\n\t\t\t\"NumLink\": 0";
        match n % 20 {
            0 => put(&format!(
                "\n\t\t\t\"name\": \"{dir}\",\n\t\t\t\"type\": \"dir\",{common}"
            )),
            1 => put(&format!(
                "\n\t\t\t\"name\": \"{dir}link\",\n\t\t\t\"type\": \"symlink\",\n\t\t\t\"linkName\": \"module_2.py\",{common}"
            )),
            k => {
                let digest = Digest::of(&n.to_le_bytes());
                offset += 2000 + (n as u64 * 7919) % 5000;
                put(&format!(
                    "\n\t\t\t\"name\": \"{dir}module_{k}.py\",\n\t\t\t\"type\": \"reg\",\n\t\t\t\"size\": {},{common},\n\t\t\t\"offset\": {offset},\n\t\t\t\"digest\": \"{digest}\",\n\t\t\t\"chunkDigest\": \"{digest}\"",
                    5000 + n % 9000
                ));
            }
        }
    }
    json.push_str("\n\t]\n}");
    json
}

/// The compressed TOC and where it lies.
fn section(format: LayerFormat, json: &str) -> (Vec<u8>, TocPlace) {
    let bytes = match format {
        LayerFormat::Estargz => {
            let mut header = tar::Header::new_ustar();
            header.set_path("stargz.index.json").unwrap();
            header.set_size(json.len() as u64);
            header.set_cksum();
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            gzip.write_all(header.as_bytes()).unwrap();
            gzip.write_all(json.as_bytes()).unwrap();
            gzip.finish().unwrap()
        }
        LayerFormat::ZstdChunked => zstd::encode_all(json.as_bytes(), 3).unwrap(),
    };
    let place = TocPlace {
        offset: TOC_AT,
        len: bytes.len() as u64,
        raw_len: (format == LayerFormat::ZstdChunked).then_some(json.len() as u64),
        format,
    };
    (bytes, place)
}

fn build(section: &[u8], place: &TocPlace, dest: &Path) {
    let blob_size = TOC_AT + place.len + 100;
    let blob = Digest::of(b"blob");
    build_index(
        section,
        place,
        blob,
        blob_size,
        None,
        &Limits::default(),
        dest,
    )
    .unwrap();
}

fn bench(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let json = json();
    let mut group = criterion.benchmark_group("index of 100,000 entries");
    group.sample_size(10);
    for format in [LayerFormat::Estargz, LayerFormat::ZstdChunked] {
        let (bytes, place) = section(format, &json);
        let dest = dir.path().join("index");
        group.bench_function(format!("first build, {format:?}"), |bencher| {
            bencher.iter(|| build(black_box(&bytes), &place, &dest));
        });
        println!(
            "{format:?}: JSON {} KiB, compressed {} KiB, index {} KiB, peak resident {} KiB",
            json.len() >> 10,
            bytes.len() >> 10,
            std::fs::metadata(&dest).unwrap().len() >> 10,
            peak(&bytes, format, json.len(), dir.path()),
        );
    }
    let path = dir.path().join("index");
    group.bench_function("open again", |bencher| {
        bencher.iter(|| LayerIndex::open(black_box(&path), false).unwrap());
    });
    group.bench_function("open again after an unclean stop", |bencher| {
        bencher.iter(|| LayerIndex::open(black_box(&path), true).unwrap());
    });
    let index = LayerIndex::open(&path, false).unwrap();
    group.bench_function("find a path", |bencher| {
        let path = b"usr/lib/python3/dist-packages/package02500/module_9.py";
        bencher.iter(|| index.find(black_box(path)).unwrap().unwrap());
    });
    group.finish();
}

/// Builds once in a process of its own and answers the most memory it had (VmHWM, KiB), the compressed TOC included.
fn peak(section: &[u8], format: LayerFormat, raw_len: usize, dir: &Path) -> u64 {
    let path = dir.join("section");
    std::fs::write(&path, section).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .env(
            CHILD,
            format!("{}:{raw_len}", format == LayerFormat::ZstdChunked),
        )
        .arg(&path)
        .output()
        .unwrap();
    String::from_utf8(output.stdout)
        .unwrap()
        .trim()
        .parse()
        .unwrap()
}

/// What the process of [`peak`] does.
fn child(what: &str) {
    let path = std::env::args().nth(1).unwrap();
    let section = std::fs::read(&path).unwrap();
    let (zstd, raw_len) = what.split_once(':').unwrap();
    let zstd: bool = zstd.parse().unwrap();
    let place = TocPlace {
        offset: TOC_AT,
        len: section.len() as u64,
        raw_len: zstd.then(|| raw_len.parse().unwrap()),
        format: if zstd {
            LayerFormat::ZstdChunked
        } else {
            LayerFormat::Estargz
        },
    };
    build(&section, &place, &Path::new(&path).with_file_name("again"));
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    println!("{}", line.split_whitespace().nth(1).unwrap());
}

criterion_group!(benches, bench);

fn main() {
    if let Ok(what) = std::env::var(CHILD) {
        child(&what);
        return;
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
}
