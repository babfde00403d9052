//! Profiles of starts that touch 1,500 files: merging two copies, predicting from them, reading and writing the text.
//!
//! `cargo bench -p forelayer-profiler --bench profile`. A node does the first when a profile comes from another node,
//! the second with every pull, the third with every start.

#![allow(clippy::unwrap_used, reason = "benches")]

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use forelayer_profiler::{
    Digest,
    model::{FileTouches, Identity, MAX_RUNS, Profile, Run, RunExec, TouchedRange, predict},
    protocol::{Access, Level},
};

/// Files that every start touches; each touches one in 50 of as many others besides.
const FILES: u64 = 1_500;
const RUNS: u64 = 8;

/// A number that looks like chance and is the same in each run of the bench.
fn noise(seed: u64) -> u64 {
    let mut state = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

/// What the n-th start touches of a file: the same pages at about the same time, and now and then one more.
fn file(run: u64, file: u64) -> FileTouches {
    let path = format!(
        "usr/lib/python3/dist-packages/package{:03}/module_{file}.py",
        file / 20
    );
    let chance = noise(run * 1_000_000 + file);
    let at_us = i64::try_from(file * 700 + chance % 5_000).unwrap();
    let mut ranges: Vec<_> = (0..1 + file % 4)
        .map(|n| TouchedRange {
            page: n * 40 + noise(file + n) % 20,
            pages: 1 + u32::try_from(noise(file * 7 + n) % 16).unwrap(),
            at_us: at_us + i64::try_from(n * 90).unwrap(),
            access: if file.is_multiple_of(3) {
                Access::Map
            } else {
                Access::Read
            },
        })
        .collect();
    if chance.is_multiple_of(10) {
        ranges.push(TouchedRange {
            page: 200 + chance % 50,
            pages: 1,
            at_us: at_us + 1_000,
            access: Access::Map,
        });
    }
    FileTouches {
        content: Some(Digest::of(path.as_bytes())),
        layer: Some(Digest::of(&(file % 6).to_le_bytes())),
        size: 4096 * 300,
        path,
        ranges,
    }
}

fn run(number: u64) -> Run {
    let others = (FILES..2 * FILES).filter(|file| noise(number * 31 + file).is_multiple_of(50));
    let mut run = Run {
        id: format!("{number:032x}"),
        started_ms: 1_700_000_000_000 + number * 60_000,
        level: Level::Tracepoints,
        lost: 0,
        cut: false,
        pinned: false,
        layers: (0..6_u64).map(|n| Digest::of(&n.to_le_bytes())).collect(),
        execs: vec![RunExec {
            at_us: 0,
            path: "/usr/bin/python3".to_owned(),
        }],
        files: (0..FILES).chain(others).map(|n| file(number, n)).collect(),
        found: (0..200)
            .map(|n| format!("usr/lib/python3/dist-packages/package{n:03}"))
            .collect(),
        missing: (0..400)
            .map(|n| format!("usr/lib/python3/dist-packages/none{n:03}.so"))
            .collect(),
        predicted_unused: Vec::new(),
    };
    run.normalise();
    run
}

/// A profile of the starts with these numbers.
fn profile(numbers: impl Iterator<Item = u64>) -> Profile {
    let command = ["python3".to_owned(), "-m".to_owned()];
    let mut profile = Profile::new(Identity::new("registry:5000/python:3", &command, &[]));
    numbers.for_each(|number| profile.add(run(number), MAX_RUNS));
    profile
}

fn bench(criterion: &mut Criterion) {
    // Two nodes that started the workload in turns.
    let ours = profile((0..RUNS).map(|n| 2 * n));
    let theirs = profile((0..RUNS).map(|n| 2 * n + 1));
    let mut group = criterion.benchmark_group("profile of 8 starts, 1,500 files each");
    for keep in [8, MAX_RUNS] {
        group.bench_function(format!("merge with another, keep {keep}"), |bencher| {
            bencher.iter_batched(
                || (ours.clone(), theirs.clone()),
                |(mut ours, theirs)| {
                    ours.merge(theirs, keep).unwrap();
                    ours
                },
                BatchSize::LargeInput,
            );
        });
    }
    // What a node does that has heard nothing new.
    group.bench_function("merge with itself", |bencher| {
        bencher.iter_batched(
            || (ours.clone(), ours.clone()),
            |(mut ours, same)| {
                ours.merge(same, 8).unwrap();
                ours
            },
            BatchSize::LargeInput,
        );
    });
    group.bench_function("predict", |bencher| {
        bencher.iter(|| predict(black_box(std::slice::from_ref(&ours))));
    });
    let both = [ours.clone(), theirs];
    group.bench_function("predict from both copies", |bencher| {
        bencher.iter(|| predict(black_box(&both)));
    });
    let text = ours.to_json();
    group.throughput(Throughput::Bytes(text.len() as u64));
    group.bench_function("from_json", |bencher| {
        bencher.iter(|| Profile::from_json(black_box(text.as_bytes())).unwrap());
    });
    group.bench_function("to_json", |bencher| {
        bencher.iter(|| black_box(&ours).to_json());
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
