//! Properties that hold whatever happens, in whatever order.

use std::collections::{BTreeSet, HashSet};

use proptest::prelude::*;

use super::bench::{Bench, Made, host, pages};
use crate::{
    recorder::{Action, Bounds, Input},
    witness::{Event, Watched},
};

/// One thing that can happen.
#[derive(Debug, Clone)]
enum Step {
    Mount(Vec<u32>),
    Touch(u32, u32, u64, u32),
    HostTouch(u32, u64),
    Exec(u32),
    Open(u32, bool),
    Fork(u32),
    Exit(u32),
    Identify(Option<u32>),
    Wait(u64),
    Finish,
}

fn step() -> impl Strategy<Value = Step> {
    let container = 1u32..5;
    prop_oneof![
        3 => proptest::collection::vec(1u32..4, 1..3).prop_map(Step::Mount),
        8 => (container.clone(), 1u32..4, 0u64..50, 1u32..9).prop_map(|(c, s, p, n)| Step::Touch(c, s, p, n)),
        2 => (1u32..4, 0u64..50).prop_map(|(s, p)| Step::HostTouch(s, p)),
        4 => container.clone().prop_map(Step::Exec),
        2 => (container.clone(), any::<bool>()).prop_map(|(c, f)| Step::Open(c, f)),
        1 => container.clone().prop_map(Step::Fork),
        1 => container.clone().prop_map(Step::Exit),
        4 => proptest::option::of(container).prop_map(Step::Identify),
        2 => (0u64..20_000).prop_map(Step::Wait),
        1 => Just(Step::Finish),
    ]
}

proptest! {
    /// Whatever comes, in whatever order: windows open and close in turn, traces are in order and within bounds, and
    /// in the end nothing is left.
    #[test]
    fn any_order_of_events_ends_well(steps in proptest::collection::vec(step(), 0..120)) {
        let mut bench = Bench::with(Bounds { touches: 20, opens: 2, execs: 2, pending: 10, ..Bounds::default() });
        let made: Vec<Made> = (1..5)
            .map(|n| if n % 2 == 0 { Made::new(n, &[1, n % 3 + 1]) } else { Made::bare(n, &[n % 3 + 1]) })
            .collect();
        for step in steps {
            bench.now_ms += 1;
            let at = bench.now_ms;
            let of = |n: u32| &made[n as usize - 1];
            match step {
                Step::Mount(slots) => bench.mount(&slots),
                Step::Touch(c, slot, page, count) => bench.touch(of(c).origin(of(c).pid(), at), slot, page, count),
                Step::HostTouch(slot, page) => bench.touch(host(2, at), slot, page, 1),
                Step::Exec(c) => {
                    bench.show(of(c).pid(), of(c).view());
                    bench.exec(of(c).origin(of(c).pid(), at), "/bin/x");
                }
                Step::Open(c, found) => bench.open(of(c).origin(of(c).pid(), at), "x", -100, if found { 3 } else { -2 }),
                Step::Fork(c) => bench.apply(Input::Seen(Event::Fork { origin: of(c).origin(of(c).pid(), at), child: 7 })),
                Step::Exit(c) => bench.exit(of(c).origin(of(c).pid(), at)),
                Step::Identify(who) => {
                    if let Some(candidate) = bench.candidates.pop() {
                        let identity = who.map(|n| of(n).identity());
                        bench.apply(Input::Identified { candidate: candidate.id, identity });
                    }
                }
                Step::Wait(ms) => bench.tick(at + ms),
                Step::Finish => bench.apply(Input::Finish),
            }
            prop_assert_eq!(bench.attached(), bench.recorder.is_open());
        }
        for _ in 0..4 {
            bench.tick(bench.now_ms + 700_000);
        }
        prop_assert!(!bench.attached());
        prop_assert_eq!(bench.recorder.recording(), 0);
        let mut watched = HashSet::new();
        for action in &bench.actions {
            match action {
                Action::Watch(who) => prop_assert!(watched.insert(*who)),
                Action::Unwatch(who) => prop_assert!(watched.remove(who)),
                Action::Forget(groups) => {
                    for (_, mnt_ns) in groups {
                        watched.remove(&Watched::MountNamespace(*mnt_ns));
                    }
                }
                _ => {}
            }
        }
        prop_assert!(watched.is_empty(), "still watched: {watched:?}");
        for trace in &bench.traces {
            prop_assert!(trace.touches.is_sorted_by_key(|t| t.at_us));
            prop_assert!(trace.touches.len() <= 20 && trace.opens.len() <= 2 && trace.execs.len() <= 2);
            let unique: BTreeSet<_> = pages(trace);
            let all: u64 = trace.touches.iter().map(|t| u64::from(t.pages)).sum();
            prop_assert_eq!(unique.len() as u64, all, "a page twice");
        }
    }

    /// However the touches of two containers mix, each trace has exactly its own.
    #[test]
    fn each_trace_has_exactly_its_own_touches(
        touches in proptest::collection::vec((any::<bool>(), 0u64..300, 1u32..20), 0..80),
        late in 0usize..80,
    ) {
        let mut bench = Bench::new();
        let pair = [Made::new(1, &[5]), Made::new(2, &[5])];
        bench.mount(&[5]);
        bench.mount(&[5]);
        let mut wanted = [BTreeSet::new(), BTreeSet::new()];
        bench.start(&pair[0], 1001);
        let mut started = false;
        for (index, (second, page, count)) in touches.into_iter().enumerate() {
            if index >= late && !started {
                started = true;
                bench.now_ms += 1;
                bench.start(&pair[1], bench.now_ms);
            }
            bench.now_ms += 1;
            let made = &pair[usize::from(second)];
            bench.touch(made.origin(made.pid(), bench.now_ms), 5, page, count);
            wanted[usize::from(second)].extend((page..page + u64::from(count)).map(|p| (5, p)));
        }
        if !started {
            bench.start(&pair[1], bench.now_ms + 1);
        }
        bench.tick(bench.now_ms + 100_000);
        prop_assert_eq!(bench.traces.len(), 2);
        for trace in &bench.traces {
            let index = usize::from(trace.container.image == "image2");
            let got = pages(trace);
            // What the second touched before its first exec may be the first's runtime's: it is in both only then.
            prop_assert!(wanted[index].is_subset(&got));
            prop_assert!(index == 0 || got == wanted[1]);
            if index == 0 {
                prop_assert!(got.is_subset(&wanted[0]));
            }
        }
    }

    /// However the questions of two different images mix, both starts are recorded, each with its own touches.
    #[test]
    fn two_different_images_mounted_together_give_two_traces(
        order in Just(vec![1u32, 2, 3, 4]).prop_shuffle(),
        second_first in any::<bool>(),
        touches in proptest::collection::vec((any::<bool>(), 0u64..300), 0..40),
    ) {
        let mut bench = Bench::new();
        let mut pair = vec![Made::new(1, &[1, 2]), Made::new(2, &[3, 4])];
        for slot in order {
            bench.now_ms += 1;
            bench.mount(&[slot]);
        }
        if second_first {
            pair.reverse();
        }
        for made in &pair {
            bench.now_ms += 1;
            bench.start(made, bench.now_ms);
        }
        let mut wanted = [BTreeSet::new(), BTreeSet::new()];
        for (second, page) in touches {
            bench.now_ms += 1;
            let made = &pair[usize::from(second)];
            bench.touch(made.origin(made.pid(), bench.now_ms), made.slots[0], page, 1);
            wanted[usize::from(second)].insert((u64::from(made.slots[0]), page));
        }
        bench.tick(bench.now_ms + 100_000);
        prop_assert_eq!(bench.traces.len(), 2);
        for (made, wanted) in pair.iter().zip(&wanted) {
            let image = made.identity().container.image;
            let got = bench.traces.iter().find(|trace| trace.container.image == image).map(pages);
            prop_assert_eq!(got.as_ref(), Some(wanted));
        }
    }
}
