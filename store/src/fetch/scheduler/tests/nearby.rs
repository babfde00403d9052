//! Windows behind misses: what lies nearby.

use super::*;
use Lane::{Demand, Nearby};

/// Limits with windows of up to 64 chunks.
pub(super) fn nearby() -> Limits {
    Limits {
        nearby_bytes: 64 * 1100,
        ..limits()
    }
}

#[test]
fn a_miss_brings_what_lies_behind_it_and_each_further_one_twice_as_much() {
    let mut bench = Bench::new(nearby(), vec![Fake::new("layer", 1000)]);
    bench.blobs[0].set(102, ChunkState::Present);
    let mut windows = Vec::new();
    for chunk in [100, 200, 300, 400] {
        let id = u64::from(chunk);
        bench.demand(id, chunk..chunk + 1);
        let news = bench.news();
        assert_eq!(news[0], (Demand, vec![chunk]));
        let near: Vec<u32> = news[1..]
            .iter()
            .flat_map(|(lane, chunks)| {
                assert_eq!(*lane, Nearby);
                chunks.clone()
            })
            .collect();
        windows.push(near);
        while !bench.requests.is_empty() {
            bench.complete(0);
        }
    }
    assert_eq!(windows[0], [101]);
    assert_eq!(windows[1], [201, 202]);
    assert_eq!(windows[2], [301, 302, 303, 304]);
    assert_eq!(windows[3].len(), 8);
    // What was brought is counted by why it was.
    assert!(bench.brought.contains(&(201, Nearby, false)));

    // Later it begins anew, and passes over what is here.
    bench.wait(Duration::from_secs(60));
    bench.demand(1, 101..102);
    bench.demand(2, 99..100);
    assert_eq!(bench.news(), [(Demand, vec![99]), (Nearby, vec![103])]);
}

#[test]
fn nothing_nearby_is_asked_for_while_a_plan_is_followed_or_for_what_it_will_bring() {
    let mut bench = Bench::new(nearby(), vec![Fake::new("layer", 1000)]);
    bench.predict(1, "plan", [500, 101]);
    bench.news();
    bench.demand(1, 300..301);
    bench.demand(2, 100..101);
    assert_eq!(bench.news(), [(Demand, vec![300]), (Demand, vec![100])]);
    bench.complete(2);
    bench.complete(2);
    bench.complete(0);
    assert_eq!(bench.news(), []);
    bench.complete(0);
    assert_eq!(bench.finished, [(1, 0)]);
    // The last miss's window, of two chunks, once the link is free.
    assert_eq!(bench.news(), [(Nearby, vec![102, 103])]);
}

#[test]
fn what_is_nearby_yields_while_a_reader_s_bytes_come_and_only_then() {
    let mut bench = Bench::new(nearby(), vec![Fake::new("layer", 1000)]);
    bench.demand(1, 0..1);
    bench.demand(2, 500..501);
    let first = bench.requests[0].id;
    let near: Vec<_> = (bench.requests.iter())
        .filter(|request| request.lane == Nearby)
        .map(|request| request.id)
        .collect();
    assert!(!near.is_empty() && bench.held.is_empty());
    bench.apply([Event::Flowing { request: first }]);
    assert_eq!(bench.held, near);
    bench.arrive(0, Ok(()));
    assert!(bench.held.is_empty());
}

#[test]
fn a_failure_nearby_is_nobody_s() {
    let mut bench = Bench::new(nearby(), vec![Fake::new("layer", 1000)]);
    bench.demand(1, 0..1);
    let near = (bench.requests.iter()).position(|request| request.lane == Nearby);
    bench.end(near.unwrap(), Err(busy("broken")));
    assert_eq!(bench.replies, []);
    bench.complete(0);
    assert_eq!(bench.replies, [(1, Ok(()))]);
    assert!(bench.requests.is_empty());
    // Whoever wants it then asks for it.
    bench.news();
    bench.demand(2, 1..2);
    assert_eq!(bench.news()[0], (Demand, vec![1]));
}

#[test]
fn a_reader_may_wait_for_what_is_nearby() {
    let mut bench = Bench::new(nearby(), vec![Fake::new("layer", 1000)]);
    bench.demand(1, 0..1);
    bench.news();
    bench.demand(2, 1..2);
    assert_eq!(bench.news(), []);
    let near = (bench.requests.iter()).position(|request| request.lane == Nearby);
    bench.complete(near.unwrap());
    assert_eq!(bench.replies, [(2, Ok(()))]);
    assert_eq!(bench.brought, [(1, Nearby, false)]);
}

#[test]
fn who_follows_a_window_finds_the_next_one_on_its_way() {
    let mut bench = Bench::new(nearby(), vec![Fake::new("layer", 1000)]);
    bench.demand(1, 0..1);
    assert_eq!(bench.news(), [(Demand, vec![0]), (Nearby, vec![1])]);
    // Told once, and of the mark only.
    assert_eq!(bench.mark, Some(1));
    bench.reached(7);
    assert_eq!(bench.news(), []);
    bench.reached(1);
    assert_eq!(bench.news(), [(Nearby, (2..10).collect())]);
    bench.reached(1);
    assert_eq!(bench.news(), []);
    // Each window eight times the one before, up to the largest.
    assert_eq!(bench.mark, Some(2));
    while !bench.requests.is_empty() {
        bench.complete(0);
    }
    bench.reached(2);
    assert_eq!(bench.mark, Some(10));
    while !bench.requests.is_empty() {
        bench.complete(0);
    }
    let chunks: Vec<u32> = (bench.news().into_iter())
        .flat_map(|(_, chunks)| chunks)
        .collect();
    assert_eq!(chunks, (10..74).collect::<Vec<_>>());
}

#[test]
fn a_miss_elsewhere_moves_the_mark_there() {
    let mut bench = Bench::new(nearby(), vec![Fake::new("layer", 1000)]);
    bench.demand(1, 0..1);
    bench.demand(2, 500..501);
    bench.news();
    assert_eq!(bench.mark, Some(501));
    bench.reached(1);
    assert_eq!(bench.news(), [], "that window is not followed any more");
    bench.reached(501);
    assert_eq!(bench.news()[0].1[0], 503);
}

#[test]
fn a_window_at_the_end_of_a_layer_asks_for_nothing() {
    let mut bench = Bench::new(nearby(), vec![Fake::new("layer", 3)]);
    bench.demand(1, 1..2);
    assert_eq!(bench.news(), [(Demand, vec![1]), (Nearby, vec![2])]);
    bench.reached(2);
    assert_eq!(bench.news(), []);
    bench.complete(0);
    bench.complete(0);
    assert!(bench.requests.is_empty());
}

#[test]
fn a_window_holds_a_chunk_as_large_as_the_one_that_was_missed() {
    // The first window alone would be of a hundred bytes.
    let limits = Limits {
        nearby_bytes: 6400,
        ..limits()
    };
    let mut bench = Bench::new(limits, vec![Fake::new("layer", 1000)]);
    bench.demand(1, 0..1);
    assert_eq!(bench.news(), [(Demand, vec![0]), (Nearby, vec![1])]);
}

#[test]
fn a_reader_of_many_chunks_misses_once() {
    let mut bench = Bench::new(nearby(), vec![Fake::new("layer", 1000)]);
    bench.demand(1, 0..8);
    let news = bench.news();
    assert_eq!(news[0], (Demand, (0..8).collect()));
    assert_eq!(news[1..], [(Nearby, vec![8])]);
}

#[test]
fn what_was_held_when_its_answer_began_does_not_count_as_flowing_for_ever() {
    let mut bench = Bench::new(nearby(), vec![Fake::new("layer", 1000)]);
    bench.demand(1, 0..1);
    let [demand, near] = [0, 1].map(|n| bench.requests[n].id);
    let flowing = |bench: &Bench| bench.scheduler.pace.flowing("one");
    bench.apply([Event::Flowing { request: demand }]);
    assert_eq!(bench.held, [near]);
    bench.apply([Event::Flowing { request: near }]);
    assert_eq!(flowing(&bench), 1, "it is not read");
    bench.complete(0);
    assert_eq!(flowing(&bench), 1, "it goes on");
    bench.complete(0);
    assert_eq!(flowing(&bench), 0);
}
