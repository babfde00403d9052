//! Several registries: what one of them does is not felt where another is asked.

use super::*;
use Lane::{Background, Demand, Nearby, Predicted};

/// A plan for the first of two layers, whose registry fails until it is left alone.
fn with_a_broken_registry(limits: Limits) -> Bench {
    let mut bench = two(limits);
    bench.predict(1, "broken", 0..500);
    for _ in 0..3 {
        bench.end(0, Err(busy("broken")));
    }
    bench.news();
    bench
}

/// Two layers, each with a registry of its own.
pub(super) fn two(limits: Limits) -> Bench {
    let blobs = vec![Fake::new("a", 1000), Fake::new("b", 1000)];
    *blobs[1].hosts.lock() = vec!["two".to_owned()];
    Bench::new(limits, blobs)
}

fn demand_of(layer: LayerKey, chunk: u32) -> Event {
    Event::Demand {
        id: DemandId::from(chunk),
        layer,
        chunks: chunk..chunk + 1,
    }
}

#[test]
fn a_plan_whose_registry_fails_keeps_nothing_from_the_others() {
    let mut bench = with_a_broken_registry(nearby::nearby());
    bench.apply([demand_of(1, 0)]);
    assert_eq!(bench.news(), [(Demand, vec![0]), (Nearby, vec![1])]);

    // A plan that needs both goes on with the one that works.
    let mut bench = with_a_broken_registry(limits());
    bench.apply([Event::Predict {
        id: 2,
        name: "both".to_owned(),
        steps: vec![(0, 700), (1, 7)],
        lasts: Duration::ZERO,
    }]);
    assert_eq!(bench.news(), [(Predicted, vec![7])]);
}

#[test]
fn windows_of_one_registry_take_nothing_from_those_of_another() {
    // A window of one chunk is the largest here.
    let limits = Limits {
        nearby_bytes: 1000,
        ..limits()
    };
    let mut bench = two(limits);
    bench.apply([demand_of(0, 0)]);
    assert_eq!(bench.news(), [(Demand, vec![0]), (Nearby, vec![1])]);
    bench.apply([demand_of(0, 500)]);
    assert_eq!(bench.news(), [(Demand, vec![500])], "one window at a time");
    bench.apply([demand_of(1, 7)]);
    assert_eq!(bench.news(), [(Demand, vec![7]), (Nearby, vec![8])]);
}

#[test]
fn a_reader_of_one_registry_holds_nothing_nearby_of_another() {
    let mut bench = two(nearby::nearby());
    bench.apply([demand_of(0, 0), demand_of(1, 500)]);
    let near_of_first: Vec<_> = (bench.requests.iter())
        .filter(|request| request.lane == Nearby && request.layer == 0)
        .map(|request| request.id)
        .collect();
    let first = bench.requests[0].id;
    bench.apply([Event::Flowing { request: first }]);
    assert_eq!(bench.held, near_of_first);
}

#[test]
fn a_registry_that_answers_nothing_takes_nobody_elses_places() {
    let mut bench = two(limits());
    // More readers than one registry has places, and none of them hears anything.
    for chunk in 0..8 {
        bench.demand(DemandId::from(chunk), chunk * 10..chunk * 10 + 1);
    }
    assert_eq!(bench.news().len(), 6);
    bench.apply([demand_of(1, 5)]);
    assert_eq!(bench.news(), [(Demand, vec![5])]);
    // The same ahead of need.
    let mut bench = two(limits());
    bench.predict(1, "silent", (0..100).map(|chunk| chunk * 10));
    assert_eq!(bench.news().len(), 4);
    let steps = vec![(0, 5), (1, 5), (1, 15)];
    bench.apply([Event::Predict {
        id: 2,
        name: "both".to_owned(),
        steps,
        lasts: Duration::ZERO,
    }]);
    assert_eq!(bench.news(), [(Predicted, vec![5]), (Predicted, vec![15])]);
    // Whose place becomes free takes the next.
    bench.complete(0);
    assert_eq!(bench.news().len(), 1);
}

#[test]
fn the_background_of_a_silent_registry_leaves_the_others_theirs() {
    let many = Limits {
        max_requests: 32,
        max_ahead_requests: 24,
        ..limits()
    };
    let mut bench = two(many);
    for layer in 0..2 {
        bench.apply([Event::Background { layer }]);
    }
    bench.wait(super::super::start::BEFORE_PLAN);
    let of = |bench: &Bench, layer| {
        let requests = bench.requests.iter();
        requests.filter(|request| request.layer == layer).count()
    };
    assert_eq!((of(&bench, 0), of(&bench, 1)), (8, 8));
}

#[test]
fn a_reader_that_gets_no_answer_lets_the_background_go_on() {
    // The host may work at no more requests at once than stand still.
    let mut bench = Bench::one(40);
    bench.background();
    bench.demand(1, 39..40);
    assert_eq!(bench.held, [0, 1, 2, 3]);
    bench.wait_for_deadline();
    assert!(bench.held.is_empty());
    let request = bench.requests[4].id;
    bench.apply([Event::Flowing { request }]);
    assert_eq!(bench.held, [0, 1, 2, 3]);
}

#[test]
fn a_registry_that_answers_no_reader_holds_nothing_of_its_own_and_frees_nothing_of_others() {
    let mut bench = two(limits());
    for layer in 0..2 {
        bench.apply([Event::Background { layer }]);
    }
    bench.wait(super::super::start::BEFORE_PLAN);
    let background = |bench: &Bench, layer| -> Vec<RequestId> {
        let requests = bench.requests.iter();
        let requests = requests.filter(|request| request.layer == layer);
        (requests.filter(|request| request.lane == Background))
            .map(|request| request.id)
            .collect()
    };
    let (first, second) = (background(&bench, 0), background(&bench, 1));
    assert!(!first.is_empty() && !second.is_empty());
    bench.apply([demand_of(0, 900), demand_of(1, 901)]);
    assert_eq!(bench.held.len(), first.len() + second.len());
    // The second registry answers its reader, the first does not.
    let answered = bench.requests.iter().rev();
    let answered = answered
        .filter(|request| request.layer == 1)
        .map(|request| request.id);
    let request = answered.max().unwrap();
    bench.apply([Event::Flowing { request }]);
    bench.wait_for_deadline();
    assert_eq!(bench.held, second);
    // Nobody is left to hold anything for.
    let place = bench.requests.iter().position(|of| of.id == request);
    bench.complete(place.unwrap());
    assert!(bench.held.is_empty());
}

#[test]
fn a_plan_goes_on_with_the_registry_that_has_room() {
    // Two chunks are more than may be on their way ahead from a registry so near.
    let mut near = Fake::new("a", 100);
    near.spans = (0..100)
        .map(|n| n * 400_000..n * 400_000 + 300_000)
        .collect();
    let far = Fake::new("b", 100);
    *far.hosts.lock() = vec!["two".to_owned()];
    let mut bench = Bench::new(limits(), vec![near, far]);
    let pace = &mut bench.scheduler.pace;
    pace.answered("one", Duration::ZERO, Duration::from_millis(1));
    bench.apply([Event::Predict {
        id: 1,
        name: "both".to_owned(),
        steps: vec![(0, 5), (0, 15), (0, 25), (1, 5)],
        lasts: Duration::ZERO,
    }]);
    assert_eq!(bench.news(), [(Predicted, vec![5]), (Predicted, vec![5])]);
    bench.complete(0);
    assert_eq!(bench.news(), [(Predicted, vec![15])]);
}

#[test]
fn a_reader_in_a_pause_that_its_registry_asked_for_holds_up_no_background() {
    let mut bench = two(limits());
    bench.apply([Event::Background { layer: 1 }]);
    bench.wait(super::super::start::BEFORE_PLAN);
    let background: Vec<_> = bench.requests.iter().map(|request| request.id).collect();
    assert!(!background.is_empty());
    bench.demand(1, 0..1);
    assert_eq!(bench.held, background);
    let of_reader = bench.requests.len() - 1;
    let later = Refusal {
        why: "429".to_owned(),
        retry: Some(Duration::from_secs(120)),
    };
    bench.end(of_reader, Err(later));
    assert!(bench.held.is_empty(), "the pause is the reader's own");
    bench.news();
    bench.complete(0);
    assert_eq!(bench.news().len(), 1, "and the background goes on");
    // At its end the reader comes first again.
    bench.wait(Duration::from_secs(121));
    assert_eq!(bench.news()[0], (Demand, vec![0]));
    assert!(!bench.held.is_empty());
}
