#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use super::*;
use crate::prefetch::testing::{Item, Place, chunk, small};

const MIB: u64 = 1 << 20;

fn step(layer: &Arc<crate::image::Layer>, path: &str, at_us: i64) -> PlanStep {
    PlanStep {
        layer: Arc::clone(layer),
        chunk: chunk(layer, path, 0),
        at_us,
    }
}

fn metadata() -> Metadata {
    Metadata {
        keys: vec![Digest::of(b"layer")],
        ranges: vec![BlobRange {
            blob: Digest::of(b"config"),
            size: 700,
            start: 0,
            end: 700,
        }],
    }
}

fn content(count: u64, bytes: u64) -> Vec<BlobRange> {
    (0..count)
        .map(|n| BlobRange {
            blob: Digest::of(b"layer"),
            size: u64::MAX,
            start: n * 1000 * MIB,
            end: n * 1000 * MIB + bytes,
        })
        .collect()
}

#[test]
fn what_is_needed_first_is_asked_for_first_and_neighbours_share_a_range() {
    let place = Place::new();
    // Ten compressed bytes each, one behind the other, from 10 on; 70 KiB of them in `wide`.
    let wide = vec![1; 7 * 1024];
    let items = [
        small("a"),
        small("b"),
        Item::File("wide", "wide", wide),
        small("c"),
    ];
    let layer = place.layer(1, &items);
    let zeros = place.layer(2, &[Item::Zeros("nothing", MIB)]);
    let steps = [
        step(&layer, "c", 1),
        step(&zeros, "nothing", 2),
        step(&layer, "b", 3),
        step(&layer, "a", 4),
    ];
    let early = EarlyRequests::new("h/i:1", metadata(), &steps, MIB).unwrap();
    let ranges: Vec<_> = early.content.iter().map(|r| (r.start, r.end)).collect();
    let c = 30 + 70 * 1024;
    assert_eq!(ranges, [(c, c + 10), (10, 30)]);
    let little = EarlyRequests::new("h/i:1", metadata(), &steps, 15).unwrap();
    assert_eq!(little.content.len(), 1, "no more than the budget");
}

#[test]
fn small_content_goes_with_the_metadata_and_the_rest_follows() {
    let all = |content| EarlyRequests::of("h/i:1", metadata(), content).requests(4);
    let with_it = |requests: Vec<Early>| requests.iter().filter(|early| !early.later).count();
    assert_eq!(with_it(all(Vec::new())), 1);
    assert_eq!(with_it(all(content(10, 1000))), 4, "as many as go at once");
    assert_eq!(with_it(all(content(10, SMALL + 1))), 1, "nothing large");
    let requests = all(content(2, 1000));
    assert_eq!(requests[0].lane, Lane::Metadata);
    assert_eq!(requests[1].lane, Lane::Predicted);
    let many = EarlyRequests::of("h/i:1", metadata(), content(100, SMALL)).requests(100);
    let bytes: u64 = (many
        .iter()
        .filter(|early| !early.later && early.lane == Lane::Predicted))
    .map(|early| early.range.end - early.range.start)
    .sum();
    assert!(bytes <= SMALL_ALL, "{bytes}");
}

#[test]
fn layers_that_are_there_are_not_asked_for_again() {
    let mut early = EarlyRequests::of("h/i:1", metadata(), content(3, 1000));
    early.leave_out(&HashSet::from([Digest::of(b"another")]));
    assert_eq!(early.requests(8).len(), 4);
    early.leave_out(&HashSet::from([Digest::of(b"layer")]));
    assert_eq!(early.requests(8).len(), 1, "only the config");
}

#[test]
fn a_large_toc_is_asked_for_in_parts_without_a_gap() {
    let end = 5 << 20;
    let mut metadata = metadata();
    metadata.ranges.truncate(1);
    metadata.ranges[0] = BlobRange {
        size: end,
        start: 7,
        end,
        ..metadata.ranges[0].clone()
    };
    let early = EarlyRequests::of("h/i:1", metadata, Vec::new());
    let requests = early.requests(24);
    assert_eq!(requests.len(), 8);
    assert_eq!(requests[0].range.start, 7);
    assert_eq!(requests[7].range.end, end);
    for pair in requests.windows(2) {
        assert_eq!(pair[0].range.end, pair[1].range.start);
    }
}

#[test]
fn what_was_kept_of_an_image_is_found_again_and_of_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let early = EarlyRequests::of("h/i:1", metadata(), content(3, 10));
    assert_eq!(EarlyRequests::load(dir.path(), "h/i:1").unwrap(), None);
    early.store(dir.path()).unwrap();
    assert_eq!(
        EarlyRequests::load(dir.path(), "h/i:1").unwrap(),
        Some(early)
    );
    assert_eq!(EarlyRequests::load(dir.path(), "h/i:2").unwrap(), None);
    for _ in 0..2 {
        EarlyRequests::forget(dir.path(), "h/i:1").unwrap();
        assert_eq!(EarlyRequests::load(dir.path(), "h/i:1").unwrap(), None);
    }
}

#[test]
fn what_is_kept_can_be_read_and_what_cannot_is_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let most = MAX_RANGES as u64 - 1;
    let largest = EarlyRequests::of("h/i:1", metadata(), content(most, 10));
    largest.store(dir.path()).unwrap();
    assert_eq!(
        EarlyRequests::load(dir.path(), "h/i:1").unwrap(),
        Some(largest)
    );
    let more = EarlyRequests::of("h/i:2", metadata(), content(most + 1, 10));
    assert!(more.store(dir.path()).is_err());
    assert_eq!(EarlyRequests::load(dir.path(), "h/i:2").unwrap(), None);
}

#[test]
fn a_document_that_is_wrong_is_refused_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let good = serde_json::to_string(&EarlyRequests::of("h/i:1", metadata(), content(1, 10)));
    let good = good.unwrap();
    let file = path(dir.path(), "h/i:1");
    let huge = format!("\"end\":{}", MAX_METADATA + 1);
    for (what, bad) in [
        ("no json", "{".to_owned()),
        ("schema", good.replace("\"schema\":1", "\"schema\":2")),
        ("another image", good.replace("h/i:1", "h/i:2")),
        ("empty range", good.replace("\"end\":10", "\"end\":0")),
        ("behind the end", good.replace("\"end\":700", "\"end\":701")),
        (
            "too much",
            good.replace("\"size\":700", "\"size\":99999999999")
                .replace("\"end\":700", &huge),
        ),
    ] {
        assert_ne!(bad, good, "{what}");
        fs::write(&file, bad).unwrap();
        let error = EarlyRequests::load(dir.path(), "h/i:1").unwrap_err();
        assert!(
            error.to_string().contains(&file.display().to_string()),
            "{what}: {error}"
        );
    }
}
