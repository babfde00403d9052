//! What must hold of every start.

use super::{
    LEAD, LINKS, Outcome, Pace, Quality, RECORDED, Simple, Trace, config,
    link::Link,
    quiet, real, simple,
    trace::{Dice, Nanos},
};

/// Made-up starts, each over a link of its own.
const CASES: u64 = 1500;

/// A link, as likely in each order of magnitude from 0.2 to 200 ms and from 10 Mbit/s to 10 Gbit/s.
fn any_link(seed: u64) -> Link {
    let mut dice = Dice::new(seed);
    let ms = dice.spread(200, 200_000) as f64 / 1e3;
    let mbit = dice.spread(10, 10_000) as f64;
    Link {
        slow_start: dice.within(0, 1) == 1,
        at_once: match dice.within(0, 3) {
            0 => dice.within(4, 32) as usize,
            _ => 1000,
        },
        ..Link::new(ms, mbit)
    }
}

/// What a start over a link may take, where a simpler policy takes `other`: a tenth for other orders of equal worth, and
/// two answers' time, since the scheduler asks for little until it knows the link.
fn allowed(other: Nanos, link: &Link) -> Nanos {
    other + other / 10 + 2 * link.first_byte()
}

/// How the scheduler did beside one simpler policy.
#[derive(Debug, Default)]
struct Beside {
    cases: u32,
    /// Above what is allowed.
    above: u32,
    /// The most, in parts of the other's time.
    worst: f64,
    /// Sum of the logarithms of own / other.
    log: f64,
}

impl Beside {
    fn add(&mut self, own: Nanos, other: Nanos, link: &Link) {
        self.cases += 1;
        self.above += u32::from(own > allowed(other, link));
        let over = own.saturating_sub(2 * link.first_byte());
        self.worst = self.worst.max(over as f64 / other as f64);
        self.log += (own as f64 / other as f64).ln();
    }
    /// The geometric mean of own / other.
    fn mean(&self) -> f64 {
        (self.log / f64::from(self.cases)).exp()
    }
}

/// Made-up starts with plans of one quality, beside each simpler policy.
fn beside(quality: Quality) -> Vec<(Simple, Beside)> {
    let kinds = [
        Simple::DemandOnly,
        Simple::OneByOne(24),
        Simple::Runs(24),
        Simple::Whole,
    ];
    let mut all: Vec<_> = kinds.map(|kind| (kind, Beside::default())).into();
    for seed in (0..CASES).filter(|seed| Quality::ALL[(seed % 5) as usize] == quality) {
        let (trace, link) = (Trace::made_up(seed), any_link(seed + 1_000_000));
        let plan = trace.plan(quality, seed);
        // Half of them over a link that an earlier start has used.
        let mut pace = Pace::default();
        if seed % 2 == 0 {
            let before = Trace::made_up(seed + 2_000_000);
            pace = real(&before, &link, &before.touches, &quiet(), pace).1;
        }
        let (own, _) = real(&trace, &link, &plan, &quiet(), pace);
        assert!(own.finished && own.errors == 0, "case {seed}");
        for (kind, beside) in &mut all {
            let other = simple(&trace, &link, &plan, *kind);
            beside.add(own.ready, other.ready, &link);
        }
    }
    for (kind, beside) in &all {
        println!(
            "{quality:?} {kind:?}: {beside:?}, mean {:.3}",
            beside.mean()
        );
    }
    all
}

#[test]
fn a_right_plan_is_followed_no_slower_than_by_any_simpler_policy() {
    for quality in [Quality::Right, Quality::Shuffled] {
        for (kind, beside) in beside(quality) {
            let which = format!("{quality:?} {kind:?} {beside:?}");
            assert!(beside.above * 50 <= beside.cases, "{which}");
            assert!(beside.worst < 1.6, "{which}");
            assert!(beside.mean() < 1.0, "{which}");
        }
    }
}

#[test]
fn a_wrong_plan_or_none_costs_less_than_it_brings() {
    for quality in [Quality::Partly, Quality::Stale, Quality::None] {
        for (kind, beside) in beside(quality) {
            // The rest of an image, which a full pull has by then, is the background's to bring; it is off here.
            let most = if kind == Simple::Whole { 1.2 } else { 1.0 };
            assert!(beside.mean() < most, "{quality:?} {kind:?} {beside:?}");
        }
    }
}

/// Recorded starts with right plans over known and unknown links.
#[test]
fn a_recorded_start_comes_near_the_limit() {
    for (name, text) in RECORDED {
        let trace = Trace::parse(text, LEAD);
        for (ms, mbit) in LINKS {
            let link = Link::new(ms, mbit);
            let limit = trace.limit(link.first_byte(), link.rate);
            let plan = trace.plan(Quality::Right, 1);
            let (first, pace) = real(&trace, &link, &plan, &quiet(), Pace::default());
            let (second, _) = real(&trace, &link, &plan, &quiet(), pace);
            for own in [first, second] {
                let most = limit + limit / 4 + link.first_byte();
                assert!(
                    own.ready <= most,
                    "{name} {ms} ms {mbit} Mbit/s: {own:?} {limit}"
                );
            }
            for kind in [Simple::OneByOne(24), Simple::Runs(24), Simple::Whole] {
                let other = simple(&trace, &link, &plan, kind);
                assert!(
                    first.ready <= allowed(other.ready, &link),
                    "{name} {ms} ms {mbit} Mbit/s {kind:?}: {first:?} {other:?}"
                );
            }
        }
    }
}

/// With refusals, broken and stalled bodies, few places at the host and everything else going on.
#[test]
fn whatever_goes_wrong_every_lane_comes_to_its_end() {
    for seed in 0..CASES / 4 {
        let (trace, mut link) = (Trace::made_up(seed), any_link(seed + 3_000_000));
        link.faults = [0, 50, 10][(seed % 3) as usize];
        let plan = trace.plan(Quality::ALL[(seed % 5) as usize], seed);
        let config = config::Fetch::default();
        let (own, _): (Outcome, _) = real(&trace, &link, &plan, &config, Pace::default());
        assert!(own.finished, "case {seed}: the plan never ends");
        assert!(link.faults > 0 || own.errors == 0, "case {seed}: {own:?}");
    }
}
