#![expect(clippy::unwrap_used, reason = "tests")]

use forelayer_profiler::{
    model::{PAGE, PredictedFile, PredictedRange},
    protocol::Access,
};
use proptest::prelude::*;

use super::*;
use crate::{
    digest::Digest,
    prefetch::testing::{Item, Place as Kept, bring, chunk, small},
};

const MIB: u64 = 1 << 20;

fn range(page: u64, pages: u32, at_us: i64) -> PredictedRange {
    PredictedRange {
        page,
        pages,
        at_us,
        access: Access::Map,
        probability: 1.0,
    }
}

fn file(path: &str, content: &str, size: u64, ranges: Vec<PredictedRange>) -> PredictedFile {
    PredictedFile {
        path: path.to_owned(),
        content: Some(Digest::of(content.as_bytes())),
        layer: None,
        size,
        ranges,
    }
}

/// A plan by the image's own profiles.
fn own(prediction: &Prediction, layers: &[Arc<Layer>]) -> Planned {
    plan("image", prediction, Kin::Own, &Locator::new(layers)).unwrap()
}

/// A plan by another image's.
fn sister(prediction: &Prediction, layers: &[Arc<Layer>]) -> Planned {
    plan("image", prediction, Kin::Sister, &Locator::new(layers)).unwrap()
}

fn of(files: Vec<PredictedFile>) -> Prediction {
    Prediction {
        files,
        ..Prediction::default()
    }
}

/// Slots and chunks of a plan's steps.
fn steps(planned: &Planned) -> Vec<ChunkKey> {
    planned
        .plan
        .steps
        .iter()
        .map(|step| (step.layer.slot, step.chunk))
        .collect()
}

#[test]
fn chunks_come_in_the_order_of_need_over_all_layers() {
    let place = Kept::new();
    let top = place.layer(
        1,
        &[small("app"), Item::File("lib", "lib", vec![MIB, MIB, MIB])],
    );
    let base = place.layer(2, &[small("sh"), small("unused")]);
    let prediction = of(vec![
        file("app", "app", 4096, vec![range(0, 1, 500)]),
        // The second page of the last chunk, and the first of all.
        file(
            "lib",
            "lib",
            3 * MIB,
            vec![range(0, 1, 900), range(2 * MIB / PAGE + 100, 1, -7)],
        ),
        file("sh", "sh", 4096, vec![range(0, 1, 0)]),
    ]);
    let layers = [Arc::clone(&top), Arc::clone(&base)];
    let planned = own(&prediction, &layers);
    assert_eq!(
        steps(&planned),
        [
            (1, chunk(&top, "lib", 2 * MIB)),
            (2, chunk(&base, "sh", 0)),
            (1, chunk(&top, "app", 0)),
            (1, chunk(&top, "lib", 0))
        ]
    );
    assert_eq!(planned.bytes.values().sum::<u64>(), 2 * MIB + 2 * 4096);
    let pages: Vec<_> = planned
        .pages
        .iter()
        .map(|pages| (pages.layer.slot, pages.bytes.clone()))
        .collect();
    let from = 2 * MIB + 100 * PAGE;
    assert_eq!(
        pages,
        [
            (1, from..from + 4096),
            (2, 0..4096),
            (1, 0..4096),
            (1, 0..4096)
        ]
    );
    assert_eq!(planned.paths, ["/app", "/lib", "/sh"]);
}

#[test]
fn the_read_window_of_a_page_is_planned_with_it() {
    let place = Kept::new();
    let chunks = vec![64 << 10; 10];
    let layer = place.layer(1, &[Item::File("lib", "lib", chunks)]);
    // Page 80 is the first of chunk 5; its READ is 64..96 centred, or 80..112 for executable mappings.
    let prediction = of(vec![file("lib", "lib", 640 << 10, vec![range(80, 1, 0)])]);
    let planned = own(&prediction, &[Arc::clone(&layer)]);
    let first = chunk(&layer, "lib", 0);
    let got: Vec<u32> = steps(&planned)
        .iter()
        .map(|(_, chunk)| chunk - first)
        .collect();
    assert_eq!(got, [4, 5, 6, 7]);
}

#[test]
fn what_is_here_is_not_planned_and_zeros_are_not_fetched() {
    let place = Kept::new();
    let items = [small("here"), small("gone"), Item::Zeros("zeros", 8192)];
    let layer = place.layer(1, &items);
    bring(&layer, chunk(&layer, "here", 0), &items);
    let prediction = of(vec![
        file("here", "here", 4096, vec![range(0, 1, 0)]),
        file("gone", "gone", 4096, vec![range(0, 1, 0)]),
        file("zeros", "zeros", 8192, vec![range(0, 2, 0)]),
    ]);
    let planned = own(&prediction, &[Arc::clone(&layer)]);
    let gone = (1, chunk(&layer, "gone", 0));
    let zeros = (1, chunk(&layer, "zeros", 0));
    let mut got = steps(&planned);
    got.sort_unstable();
    let mut expected = [gone, zeros];
    expected.sort_unstable();
    assert_eq!(got, expected);
    assert_eq!(planned.bytes, HashMap::from([(gone, 4096)]));
    assert_eq!(
        planned.pages.len(),
        3,
        "pages are warmed wherever they come from"
    );
}

#[test]
fn files_are_found_where_they_were_moved_to_and_where_they_were_rebuilt() {
    let place = Kept::new();
    let top = place.layer(
        1,
        &[
            Item::File("new/name", "moved", vec![4096]),
            Item::File("rebuilt", "second build", vec![4096, 4096]),
        ],
    );
    let base = place.layer(2, &[Item::File("rebuilt", "older build", vec![4096])]);
    let prediction = of(vec![
        file("old/name", "moved", 4096, vec![range(0, 1, 1)]),
        file(
            "rebuilt",
            "first build",
            99 * 4096,
            vec![range(0, 1, 2), range(50, 9, 3)],
        ),
        file("vanished", "vanished", 4096, vec![range(0, 1, 3)]),
    ]);
    let layers = [Arc::clone(&top), Arc::clone(&base)];
    let planned = own(&prediction, &layers);
    let mut got = steps(&planned);
    got.sort_unstable();
    // The window of the first page holds both chunks; pages behind the new end are cut.
    let mut expected = vec![
        (1, chunk(&top, "new/name", 0)),
        (1, chunk(&top, "rebuilt", 0)),
        (1, chunk(&top, "rebuilt", 4096)),
    ];
    expected.sort_unstable();
    assert_eq!(got, expected);
    assert_eq!(planned.pages.len(), 2);
    assert_eq!(planned.paths, ["/new/name", "/rebuilt", "/vanished"]);
}

#[test]
fn of_another_image_s_profile_only_the_same_files_count() {
    let place = Kept::new();
    let base = place.layer(1, &[small("base"), small("lib/libc")]);
    let top = place.layer(
        2,
        &[
            Item::File("moved/app", "app", vec![4096]),
            Item::File("etc/conf", "this image's", vec![4096]),
        ],
    );
    let layers = [Arc::clone(&top), Arc::clone(&base)];
    let in_base = |path: &str, content: Option<Digest>| PredictedFile {
        content,
        layer: Some(*base.blob()),
        ..file(path, path, 4096, vec![range(0, 1, 0)])
    };
    let prediction = Prediction {
        files: vec![
            // The same layer, with a digest and without; the same content elsewhere.
            in_base("base", None),
            in_base("lib/libc", Some(Digest::of(b"lib/libc"))),
            file("usr/bin/app", "app", 4096, vec![range(0, 1, 1)]),
            // The same path with another content; the same path and size in a layer that is not here.
            file("etc/conf", "the sister's", 4096, vec![range(0, 1, 2)]),
            PredictedFile {
                content: None,
                ..file("etc/conf", "", 4096, vec![range(0, 1, 3)])
            },
            file("vanished", "vanished", 4096, vec![range(0, 1, 4)]),
        ],
        found: vec!["/etc".to_owned()],
        missing: vec!["/none".to_owned()],
    };
    let planned = sister(&prediction, &layers);
    let mut got = steps(&planned);
    got.sort_unstable();
    let expected = [
        (1, chunk(&base, "base", 0)),
        (1, chunk(&base, "lib/libc", 0)),
        (2, chunk(&top, "moved/app", 0)),
    ];
    assert_eq!(got, expected);
    assert_eq!(planned.paths, ["/base", "/lib/libc", "/moved/app"]);
    // Its own profile may guess.
    assert_eq!(steps(&own(&prediction, &layers)).len(), 4);
}

#[test]
fn a_wrong_profile_of_another_image_costs_so_much_and_no_more() {
    let place = Kept::new();
    let chunks = vec![64 * MIB; 6];
    let base = place.layer(1, &[Item::File("data", "data", chunks)]);
    let pages = u32::try_from(6 * 64 * MIB / PAGE).unwrap();
    let everything = of(vec![file(
        "data",
        "data",
        6 * 64 * MIB,
        vec![range(0, pages, 0)],
    )]);
    let planned = sister(&everything, &[Arc::clone(&base)]);
    assert_eq!(planned.bytes.values().sum::<u64>(), UNPROVEN_BYTES);
    assert_eq!(planned.plan.steps.len(), 4);
    assert_eq!(own(&everything, &[base]).plan.steps.len(), 6);
}

#[test]
fn a_rebuilt_file_that_a_profile_knows_is_not_guessed() {
    let place = Kept::new();
    let layer = place.layer(1, &[Item::File("lib", "second", vec![MIB, MIB, MIB])]);
    let last = 3 * MIB / PAGE - 1;
    let prediction = of(vec![
        file("lib", "first", 3 * MIB, vec![range(0, 1, 0)]),
        file("lib", "second", 3 * MIB, vec![range(last, 1, 0)]),
    ]);
    let planned = own(&prediction, &[Arc::clone(&layer)]);
    assert_eq!(steps(&planned), [(1, chunk(&layer, "lib", 2 * MIB))]);
}

#[test]
fn hostile_ranges_plan_nothing_outside_the_file() {
    let place = Kept::new();
    let layer = place.layer(1, &[small("lib"), Item::Link("link", "lib")]);
    let far = PredictedRange {
        page: (1 << 51) - 1,
        ..range(0, 1, 0)
    };
    let prediction = of(vec![
        file("lib", "lib", u64::MAX, vec![far]),
        file("link", "link", 1, vec![range(0, u32::MAX, 0)]),
        file("../../etc/passwd", "x", 1, vec![range(0, 1, 0)]),
        file("", "x", 1, vec![range(0, 1, 0)]),
    ]);
    let planned = own(&prediction, &[layer]);
    assert!(planned.plan.steps.is_empty() && planned.pages.is_empty());
}

#[test]
fn everything_is_what_is_predicted_first_and_then_the_rest() {
    let place = Kept::new();
    let items = [small("a"), small("b"), small("c")];
    let layer = place.layer(1, &items);
    bring(&layer, chunk(&layer, "a", 0), &items);
    let layers = [Arc::clone(&layer)];
    let first = own(
        &of(vec![file("c", "c", 4096, vec![range(0, 1, 9)])]),
        &layers,
    );
    let all = everything(first.plan, &layers).unwrap();
    let got: Vec<u32> = all.steps.iter().map(|step| step.chunk).collect();
    assert_eq!(got, [chunk(&layer, "c", 0), chunk(&layer, "b", 0)]);
}

#[test]
fn what_may_be_needed_does_not_hold_up_what_is() {
    let place = Kept::new();
    let layer = place.layer(1, &[small("maybe"), small("surely"), small("later")]);
    let maybe = PredictedRange {
        probability: 0.4,
        ..range(0, 1, 0)
    };
    let prediction = of(vec![
        file("maybe", "maybe", 4096, vec![maybe]),
        file("surely", "surely", 4096, vec![range(0, 1, 150_000)]),
        file("later", "later", 4096, vec![range(0, 1, 900_000)]),
    ]);
    let planned = own(&prediction, &[Arc::clone(&layer)]);
    let expected = ["surely", "maybe", "later"].map(|path| (1, chunk(&layer, path, 0)));
    assert_eq!(steps(&planned), expected);
}

const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn the_order_is_that_of_need_and_the_unlikely_waits(
        needs in proptest::collection::vec((-300_000..600_000_i64, 25..=100_u8), NAMES.len()),
        turn in 0..NAMES.len(),
    ) {
        let place = Kept::new();
        let layer = place.layer(1, &NAMES.map(small));
        let mut files: Vec<PredictedFile> = (NAMES.iter().zip(&needs))
            .map(|(name, (at_us, percent))| {
                let probability = f64::from(*percent) / 100.0;
                file(name, name, 4096, vec![PredictedRange { probability, ..range(0, 1, *at_us) }])
            })
            .collect();
        let planned = own(&of(files.clone()), &[Arc::clone(&layer)]);
        files.rotate_left(turn);
        let again = own(&of(files), &[Arc::clone(&layer)]);
        prop_assert_eq!(steps(&planned), steps(&again), "the order of the files says nothing");
        let order: Vec<(i64, u8)> = (steps(&planned).iter())
            .map(|step| {
                let at = NAMES.iter().position(|name| (1, chunk(&layer, name, 0)) == *step).unwrap();
                needs[at]
            })
            .collect();
        prop_assert_eq!(order.len(), NAMES.len(), "nothing is left out");
        for (at, first) in order.iter().enumerate() {
            for then in &order[at + 1..] {
                let likely = |need: &(i64, u8)| need.1 >= 50;
                match (likely(first), likely(then)) {
                    (true, true) | (false, false) => prop_assert!(first.0 <= then.0),
                    (false, true) => prop_assert!(first.0 + 200_000 <= then.0),
                    (true, false) => prop_assert!(first.0 <= then.0 + 200_000),
                }
            }
        }
    }
}
