//! The processor's part of fetching: decoding and verifying a chunk, and the scheduler's work for a plan.
//!
//! `cargo bench -p forelayer --bench fetch`. Decoding is given in decoded bytes, its codecs made once as in the pool's
//! threads; the scheduler in chunks of the plan, answers coming at once and each alone.

#![allow(clippy::unwrap_used, reason = "benches")]

use std::{hint::black_box, io::Write as _};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use forelayer::{
    digest::Digest,
    fetch::bench::{Decoding, Following},
    format::{Chunk, LayerFormat},
};

/// Chunks of the plan: about what the biggest of the images of `cargo xtask bench` need to start.
const PLAN: u32 = 10_000;

/// Text like a program's: words that come again, numbers that do not. It becomes a third to a fourth.
fn text(len: usize) -> Vec<u8> {
    const WORDS: [&str; 12] = [
        "def ", "return ", "self.", "import ", "    ", "\n", "value", "index", "(", ")", " = ",
        "None",
    ];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut text = Vec::with_capacity(len + 32);
    while text.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        text.extend_from_slice(WORDS[(state % 12) as usize].as_bytes());
        if state.is_multiple_of(5) {
            write!(text, "{:x}", state >> 40).unwrap();
        }
    }
    text.truncate(len);
    text
}

/// The chunk as a writer of this format leaves it: a gzip member or a zstd frame of its own.
fn compressed(format: LayerFormat, content: &[u8]) -> Vec<u8> {
    match format {
        LayerFormat::Estargz => {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            gzip.write_all(content).unwrap();
            gzip.finish().unwrap()
        }
        LayerFormat::ZstdChunked => zstd::bulk::compress(content, 3).unwrap(),
    }
}

fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode and verify");
    let mut decoding = Decoding::new().unwrap();
    for format in [LayerFormat::ZstdChunked, LayerFormat::Estargz] {
        for kib in [4, 64, 1024] {
            let content = text(kib << 10);
            let span = compressed(format, &content);
            let chunk = Chunk {
                id: 0,
                node: 1,
                file_offset: 0,
                len: content.len() as u64,
                data_offset: 0,
                span: 0..span.len() as u64,
                skip: 0,
                digest: Digest::of(&content),
                zeros: false,
            };
            group.throughput(Throughput::Bytes(chunk.len));
            group.bench_function(format!("{format:?}, {kib} KiB"), |bencher| {
                bencher.iter(|| assert!(decoding.decode(format, black_box(&span), &chunk)));
            });
        }
    }
    // What of the above is the digest.
    let content = text(1 << 20);
    group.throughput(Throughput::Bytes(content.len() as u64));
    group.bench_function("the digest alone, 1024 KiB", |bencher| {
        bencher.iter(|| Digest::of(black_box(&content)));
    });
    group.finish();
}

fn schedule(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("a plan of 10,000 chunks");
    group.sample_size(20);
    group.throughput(Throughput::Elements(u64::from(PLAN)));
    for demands in [0, 1, 100] {
        group.bench_function(format!("{demands} demands meanwhile"), |bencher| {
            bencher.iter_batched(
                || Following::new(PLAN),
                |following| {
                    let (brought, met) = following.to_the_end(demands).unwrap();
                    assert!(
                        brought >= PLAN && met == demands,
                        "{brought} brought, {met} met"
                    );
                },
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, decode, schedule);
criterion_main!(benches);
