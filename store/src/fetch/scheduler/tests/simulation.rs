//! The scheduler against a link and a program, in virtual time: recorded and made-up starts over many links, beside
//! simpler policies and beside the limit T* (docs/benchmarks.md, "What the scheduler's simulation shows").
//!
//! Nothing here waits or asks the clock, so every figure is the same in every run and on every machine.

#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "times and bytes of a simulation are far below 2^53 and never negative"
)]

mod cases;
mod link;
mod policy;
mod record;
mod start;
mod trace;

use link::Link;
use policy::{Real, Simple, Simpleton, Stored};
use start::{Outcome, start};
use trace::{MS, Quality, Touch, Trace};

use super::super::pace::Pace;
use crate::config;

/// Recorded starts (`record.rs` says how).
const RECORDED: [(&str, &str); 4] = [
    ("python", include_str!("traces/python-zstd.txt")),
    ("postgres", include_str!("traces/postgres-zstd.txt")),
    ("node", include_str!("traces/node-estargz.txt")),
    ("jvm", include_str!("traces/jvm-estargz.txt")),
];
/// From a plan to the program's start: what an engine takes to make a container.
const LEAD: u64 = 150 * MS;
/// Milliseconds and megabits a second.
const LINKS: [(f64, f64); 10] = [
    (0.2, 10_000.0),
    (1.0, 1_000.0),
    (5.0, 10_000.0),
    (10.0, 200.0),
    (20.0, 50.0),
    (50.0, 1_000.0),
    (50.0, 100.0),
    (50.0, 10.0),
    (100.0, 300.0),
    (200.0, 10_000.0),
];

/// Without the background lane: the start alone.
fn quiet() -> config::Fetch {
    config::Fetch {
        background: false,
        ..config::Fetch::default()
    }
}

/// The scheduler's start, and what it knows of the link then. `pace`: what it knew before.
fn real(
    trace: &Trace,
    link: &Link,
    plan: &[Touch],
    config: &config::Fetch,
    pace: Pace,
) -> (Outcome, Pace) {
    let layers = Stored::all(trace);
    let mut policy = Real::new(config, &layers);
    policy.0.pace = pace;
    let outcome = start(trace, link, plan, config.background, &mut policy, &layers);
    let all = |layer: &std::sync::Arc<Stored>| layer.has_all();
    assert!(
        !config.background || layers.iter().all(all),
        "the background did not end"
    );
    (outcome, policy.0.pace)
}

fn simple(trace: &Trace, link: &Link, plan: &[Touch], kind: Simple) -> Outcome {
    let layers = Stored::all(trace);
    let mut policy = Simpleton::new(kind, &layers);
    if kind != Simple::Whole {
        return start(trace, link, plan, false, &mut policy, &layers);
    }
    // Pull, then run.
    let idle = Trace {
        touches: Vec::new(),
        ..trace.clone()
    };
    let mut outcome = start(&idle, link, &[], true, &mut policy, &layers);
    outcome.ready = outcome.over.max(trace.lead) + trace.ready;
    outcome
}

/// T / T* by trace and link, of a scheduler that has not seen the link before.
/// `cargo test -p forelayer --lib -- --nocapture --include-ignored fetch::scheduler::tests::simulation::table`
#[test]
#[ignore = "asserts nothing: for people"]
fn table() {
    for (name, text) in RECORDED {
        let trace = Trace::parse(text, LEAD);
        println!("{name}: T* in s, then T / T*");
        for slow_start in [false, true] {
            for (ms, mbit) in LINKS {
                let link = Link {
                    slow_start,
                    ..Link::new(ms, mbit)
                };
                row(&trace, &link);
            }
        }
    }
}

fn row(trace: &Trace, link: &Link) {
    let limit = trace.limit(link.first_byte(), link.rate) as f64;
    let to = |outcome: Outcome| outcome.ready as f64 / limit;
    let (ms, mbit) = (link.latency as f64 / 1e6, link.rate / 125e3);
    let slow = if link.slow_start { " slow start" } else { "" };
    print!("  {ms} ms {mbit} Mbit/s{slow}: {:.2}", limit / 1e9);
    for quality in Quality::ALL {
        let plan = trace.plan(quality, 1);
        let (own, pace) = real(trace, link, &plan, &quiet(), Pace::default());
        let (again, _) = real(trace, link, &plan, &quiet(), pace);
        let runs = simple(trace, link, &plan, Simple::Runs(24));
        print!(
            "; {quality:?} {:.3} ({} requests, {:.1} MB), known link {:.3}, runs {:.3}",
            to(own),
            own.requests,
            own.bytes as f64 / 1e6,
            to(again),
            to(runs)
        );
    }
    println!();
}
