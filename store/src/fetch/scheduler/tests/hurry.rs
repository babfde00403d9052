//! A reader comes for what is on its way: it waits for it, which hurries, or overtakes it.

use super::*;
use Lane::{Demand, Predicted};

/// Two chunks at its start, two three megabytes on, and a long one.
fn far_apart() -> Fake {
    let mut blob = Fake::new("layer", 5);
    blob.spans = vec![0..100, 100..200, 3_000_000..3_000_100, 3_000_100..3_000_200];
    // Requests are as long as what is on its way allows, gaps as long as the link makes cheap.
    blob.spans.push(20_000_000..28_000_000);
    blob
}

/// So long that a request can hold the first four.
fn long_limits() -> Limits {
    Limits {
        max_request_bytes: 4_000_000,
        max_gap_bytes: 4_000_000,
        ..limits()
    }
}

#[test]
fn a_demand_waits_for_what_is_near_in_its_stream_and_overtakes_what_is_far() {
    let mut bench = Bench::new(long_limits(), vec![far_apart()]);
    bench.long_fat_link();
    bench.predict(1, "plan", [4, 0, 1, 2, 3]);
    assert_eq!(
        bench.news(),
        [(Predicted, vec![4]), (Predicted, vec![0, 1, 2, 3])]
    );
    bench.demand(1, 1..2);
    assert_eq!(bench.news(), []);
    bench.demand(2, 3..4);
    assert_eq!(bench.news(), [(Demand, vec![3])]);
    let overtaken = bench.requests[1].id;
    assert_eq!(bench.hurried, [overtaken], "for the near one");
    // The demand's own request comes first, then what is left of the other: each is reported once.
    bench.complete(2);
    assert_eq!(bench.replies, [(2, Ok(()))]);
    bench.complete(1);
    assert_eq!(bench.replies, [(2, Ok(())), (1, Ok(()))]);
    bench.complete(0);
    assert_eq!(bench.brought.len(), 5);
    assert_eq!(bench.finished, [(1, 0)]);
}

#[test]
fn what_was_asked_for_ahead_hurries_when_a_reader_comes_for_it() {
    let mut bench = Bench::one(40);
    bench.predict(1, "plan", [1, 20]);
    assert_eq!(bench.news().len(), 2);
    assert!(bench.hurried.is_empty());
    bench.demand(1, 20..21);
    assert_eq!(bench.hurried, [bench.requests[1].id]);
    // Also when all of its bytes are here and only wait to be decoded.
    let first = bench.requests[0].id;
    let request = bench.requests.remove(0);
    bench.apply([Event::Ended {
        request: first,
        result: Ok(()),
        missing: Vec::new(),
    }]);
    bench.demand(2, 1..2);
    assert_eq!(bench.hurried[1..], [first]);
    assert_eq!(bench.news(), []);
    bench.requests.insert(0, request);
    bench.arrive(0, Ok(()));
    assert_eq!(bench.replies, [(2, Ok(()))]);
}

#[test]
fn nothing_hurries_longer_than_a_reader_waits_for_it() {
    let mut bench = Bench::one(40);
    bench.predict(1, "plan", [1, 2, 3, 4]);
    assert_eq!(bench.news(), [(Predicted, vec![1, 2, 3, 4])]);
    let request = bench.requests[0].id;
    bench.demand(1, 1..2);
    bench.demand(2, 2..3);
    bench.demand(3, 2..3);
    assert_eq!(bench.hurried, [request; 2], "each reader comes once");
    bench.arrive(0, Ok(()));
    assert!(!bench.hurried.is_empty(), "the second still waits");
    bench.arrive(0, Ok(()));
    assert!(bench.hurried.is_empty());
    // Who comes later is a reader like the first.
    bench.demand(4, 4..5);
    assert_eq!(bench.hurried, [request]);
}

#[test]
fn what_a_reader_overtook_hurries_when_overtaking_fails() {
    let mut bench = Bench::new(long_limits(), vec![far_apart()]);
    bench.long_fat_link();
    bench.predict(1, "plan", [4, 0, 1, 2, 3]);
    bench.news();
    bench.demand(1, 3..4);
    assert_eq!(bench.news(), [(Demand, vec![3])]);
    assert!(bench.hurried.is_empty());
    bench.end(2, Err(busy("503")));
    assert_eq!(bench.hurried, [bench.requests[1].id]);
    // A wrong bit in it: nobody waits for the rest.
    bench.requests[1].chunks.reverse();
    bench.arrive(1, Err(ChunkFailure::Wrong("a bit".to_owned())));
    assert!(bench.hurried.is_empty());
}

#[test]
fn what_hurries_again_in_the_same_step_goes_on_hurrying() {
    let mut bench = Bench::new(long_limits(), vec![far_apart()]);
    bench.long_fat_link();
    bench.predict(1, "plan", [4, 0, 1, 2, 3]);
    bench.demand(1, 3..4);
    let ahead = bench.requests[1].id;
    let arrived = Event::Arrived(Arrival {
        request: ahead,
        source: 0,
        layer: 0,
        chunk: 0,
        result: Ok(()),
    });
    bench.requests[1].chunks.remove(0);
    bench.blobs[0].set(0, ChunkState::Present);
    let overtaking = bench.requests.remove(2);
    // One reader comes and is served, another comes back from a request that failed.
    bench.apply([
        Event::Demand {
            id: 2,
            layer: 0,
            chunks: 1..2,
        },
        arrived,
        Event::Arrived(Arrival {
            request: ahead,
            source: 0,
            layer: 0,
            chunk: 1,
            result: Ok(()),
        }),
        Event::Ended {
            request: overtaking.id,
            result: Err(busy("503")),
            missing: vec![3],
        },
    ]);
    assert_eq!(bench.replies, [(2, Ok(()))]);
    assert_eq!(bench.hurried, [ahead]);
}

#[test]
fn who_comes_for_another_chunk_of_a_read_that_was_given_up_is_read_to() {
    let mut bench = Bench::one(40);
    bench.background();
    let request = bench.requests[0].id;
    let chunks: Vec<u32> = bench.requests[0]
        .chunks
        .iter()
        .map(|(chunk, _)| *chunk)
        .collect();
    assert_eq!(chunks[..2], [0, 1]);
    bench.demand(1, 0..2);
    bench.arrive(0, Err(ChunkFailure::Store("full".to_owned())));
    assert!(
        matches!(bench.replies[..], [(1, Err(_))]),
        "{:?}",
        bench.replies
    );
    // The kernel asks again for the page that it needs.
    bench.demand(2, 1..2);
    assert!(!bench.held.contains(&request));
}
