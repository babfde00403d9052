//! One test a rule.

use super::*;
use Lane::{Background, Demand, Predicted};

#[test]
fn neighbours_share_a_request_and_small_gaps_are_bridged() {
    let mut bench = Bench::one(40);
    bench.blobs[0].set(3, ChunkState::Present);
    bench.demand(1, 2..6);
    // 2 and 4 lie 1200 bytes apart with 3 between them: two requests.
    assert_eq!(bench.news(), [(Demand, vec![2]), (Demand, vec![4, 5])]);
    assert_eq!(bench.requests[1].range, 4400..6500);
    bench.complete(0);
    bench.complete(0);
    assert_eq!(bench.replies, [(1, Ok(()))]);
}

#[test]
fn what_was_asked_for_early_is_taken_alone_and_what_was_not_beside_it() {
    let mut bench = Bench::one(40);
    // Chunks 1 to 3 and, in another range, 4 and 5.
    *bench.blobs[0].early.lock() = vec![1100..4300, 4400..6500];
    bench.predict(1, "plan", [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(
        bench.news(),
        [
            (Predicted, vec![0]),
            (Predicted, vec![1, 2, 3]),
            (Predicted, vec![4, 5]),
            (Predicted, vec![6]),
        ]
    );
    for range in [1100..4300, 4400..6500] {
        let held = bench.requests.iter().any(|request| request.range == range);
        assert!(held, "no request stays within {range:?}");
    }
}

#[test]
fn a_long_range_is_split_and_asked_for_in_parallel() {
    let mut bench = Bench::one(40);
    bench.demand(1, 0..20);
    let lengths: Vec<_> = bench
        .news()
        .iter()
        .map(|(_, chunks)| chunks.len())
        .collect();
    assert_eq!(lengths, [9, 9, 2]);
}

#[test]
fn who_asks_for_what_is_here_is_answered_at_once() {
    let mut bench = Bench::one(4);
    for chunk in 0..4 {
        bench.blobs[0].set(chunk, ChunkState::Present);
    }
    bench.demand(1, 0..4);
    assert_eq!(bench.replies, [(1, Ok(()))]);
    bench.predict(2, "plan", 0..4);
    assert_eq!(bench.finished, [(2, 0)]);
    assert_eq!(bench.news(), []);
}

#[test]
fn two_who_want_a_chunk_share_its_request() {
    let mut bench = Bench::one(4);
    bench.demand(1, 1..2);
    bench.demand(2, 1..2);
    bench.predict(3, "plan", [1]);
    assert_eq!(bench.news(), [(Demand, vec![1])]);
    bench.complete(0);
    assert_eq!(bench.replies, [(1, Ok(())), (2, Ok(()))]);
    assert_eq!(bench.finished, [(3, 0)]);
    assert_eq!(bench.brought, [(1, Demand, false)]);
}

#[test]
fn a_chunk_past_the_end_is_an_error_and_nothing_is_asked() {
    let mut bench = Bench::one(4);
    bench.demand(1, 4..5);
    assert!(bench.replies[0].1.is_err());
    bench.predict(2, "plan", [9]);
    assert_eq!(bench.finished, [(2, 1)]);
    assert_eq!(bench.news(), []);
}

#[test]
fn a_plan_is_followed_in_its_order_with_neighbours_taken_along() {
    let mut bench = Bench::one(400);
    bench.predict(1, "plan", [300, 100, 301, 200, 50, 99]);
    assert_eq!(
        bench.news(),
        [
            (Predicted, vec![300, 301]),
            (Predicted, vec![99, 100]),
            (Predicted, vec![200]),
            (Predicted, vec![50]),
        ]
    );
    while !bench.requests.is_empty() {
        bench.complete(0);
    }
    assert_eq!(bench.finished, [(1, 0)]);
}

#[test]
fn only_a_window_of_a_plan_is_looked_at() {
    let mut bench = Bench::one(10_000);
    // Every second: no neighbours.
    bench.predict(1, "plan", (0..10_000).step_by(2));
    assert_eq!(bench.requests.len(), 4);
    let wants = bench.scheduler.layers[0].wants.len();
    assert!(wants <= super::super::plans::WINDOW + 4, "{wants}");
    let status = &bench.scheduler.snapshot().plans[0];
    assert_eq!((status.steps, status.left), (5000, 5000));
}

#[test]
fn demands_have_places_of_their_own() {
    let mut bench = Bench::one(100);
    bench.predict(1, "plan", (0..60).step_by(4));
    assert_eq!(bench.requests.len(), 4);
    bench.demand(1, 99..100);
    bench.demand(2, 95..96);
    bench.demand(3, 90..91);
    assert_eq!(bench.requests.len(), 6);
    bench.complete(0);
    // The first place that is free goes to the demand that waits.
    assert_eq!(bench.news().last().unwrap(), &(Demand, vec![90]));
}

#[test]
fn a_demanded_prediction_goes_first_and_is_late() {
    let mut bench = Bench::one(100);
    bench.predict(1, "plan", (0..60).step_by(4));
    bench.news();
    bench.demand(7, 40..41);
    assert_eq!(bench.news(), [(Demand, vec![40])]);
    bench.complete(4);
    assert_eq!(bench.replies, [(7, Ok(()))]);
    // It was the plan that asked first; the reader had to wait all the same.
    assert_eq!(bench.brought, [(40, Predicted, true)]);
}

#[test]
fn a_demand_for_what_a_plan_has_not_come_to_is_late_too() {
    let mut bench = Bench::one(10_000);
    bench.predict(1, "plan", (0..10_000).step_by(2));
    bench.demand(7, 9000..9001);
    bench.demand(8, 9001..9002);
    bench.complete(4);
    bench.complete(4);
    assert_eq!(
        bench.brought,
        [(9000, Predicted, true), (9001, Demand, false)]
    );
}

#[test]
fn the_background_goes_in_file_order_and_waits_for_everybody() {
    let mut bench = Bench::one(40);
    bench.background();
    let order: Vec<_> = bench
        .news()
        .into_iter()
        .flat_map(|(_, chunks)| chunks)
        .collect();
    assert_eq!(order, (0..36).collect::<Vec<_>>());

    // A reader comes: bodies are not read any more, and nothing new is started.
    bench.demand(1, 39..40);
    assert_eq!(bench.news(), [(Demand, vec![39])]);
    assert_eq!(bench.held, [0, 1, 2, 3]);
    // What it waits for in a background request is read.
    bench.demand(2, 1..2);
    assert_eq!(bench.held, [1, 2, 3]);
    bench.arrive(0, Ok(()));
    bench.arrive(0, Ok(()));
    assert_eq!(bench.held, [1, 2, 3, 0]);
    bench.complete(0);
    assert_eq!(bench.news(), []);
    bench.complete(3);
    assert!(bench.held.is_empty());
    assert_eq!(bench.news(), [(Background, vec![36, 37, 38])]);

    // A plan comes: what is under way goes on.
    bench.complete(0);
    bench.predict(1, "plan", [39]);
    assert_eq!(bench.finished, [(1, 0)]);
    assert!(bench.brought.contains(&(1, Background, false)));
    while !bench.requests.is_empty() {
        bench.complete(0);
    }
    assert_eq!(bench.brought.len(), 40);
}

#[test]
fn a_plan_keeps_the_background_from_starting() {
    let mut bench = Bench::one(100);
    bench.predict(1, "plan", [50]);
    bench.background();
    assert_eq!(bench.news(), [(Predicted, vec![50])]);
    bench.complete(0);
    // The start has the processors for a while ...
    assert_eq!(bench.news(), []);
    bench.wait_for_deadline();
    assert_eq!(bench.news()[0].0, Background);

    // ... unless it needs what nobody foresaw.
    let mut bench = Bench::one(100);
    bench.predict(1, "plan", [50]);
    bench.background();
    bench.complete(0);
    bench.demand(1, 7..8);
    bench.news();
    bench.complete(0);
    assert_eq!(bench.news()[0].0, Background);
}

#[test]
fn a_few_misses_beside_a_long_plan_leave_the_background_waiting() {
    let mut bench = Bench::one(1000);
    bench.predict(1, "plan", 0..200);
    while !bench.requests.is_empty() {
        bench.complete(0);
    }
    assert_eq!(bench.finished, [(1, 0)]);
    bench.background();
    bench.news();
    // A fiftieth of the plan, and it is still the start that was planned for.
    for chunk in [300, 400, 500, 600] {
        bench.demand(u64::from(chunk), chunk..chunk + 1);
        bench.complete(0);
        assert_eq!(bench.news(), [(Demand, vec![chunk])]);
    }
    bench.demand(700, 700..701);
    let begun = |bench: &mut Bench| bench.news().iter().any(|(lane, _)| *lane == Background);
    bench.complete(0);
    assert!(
        begun(&mut bench),
        "another start than the one that was planned for"
    );
}

#[test]
fn a_paused_background_starts_nothing() {
    let mut bench = Bench::one(10);
    bench.apply([Event::Pause(true)]);
    bench.background();
    assert_eq!(bench.news(), []);
    bench.apply([Event::Pause(false)]);
    assert_eq!(bench.news().len(), 2);
}

#[test]
fn the_background_keeps_its_rate() {
    let limits = Limits {
        background_rate: 2200,
        ..limits()
    };
    let mut bench = Bench::new(limits, vec![Fake::new("layer", 10)]);
    bench.background();
    for chunk in 0..10 {
        assert_eq!(bench.news(), [(Background, vec![chunk])]);
        bench.complete(0);
        assert_eq!(bench.news(), []);
        let before = bench.now;
        if chunk < 9 {
            bench.wait_for_deadline();
            assert_eq!((bench.now - before).as_millis(), 1000 * 1000 / 2200);
        }
    }
}

#[test]
fn a_demand_is_retried_after_pauses_until_its_budget_is_spent() {
    let mut bench = Bench::one(4);
    bench.demand(1, 1..2);
    for attempt in 1..=5 {
        assert_eq!(bench.news(), [(Demand, vec![1])], "attempt {attempt}");
        assert_eq!(bench.replies, []);
        bench.end(0, Err(busy("503")));
        assert_eq!(bench.news(), []);
        if attempt < 5 {
            bench.wait_for_deadline();
        }
    }
    let (_, result) = &bench.replies[0];
    let given = result.as_ref().unwrap_err();
    assert_eq!((given.why.as_str(), given.host.as_str()), ("503", "one"));
    // Nothing is remembered: the next reader tries again.
    bench.demand(2, 1..2);
    assert_eq!(bench.news(), [(Demand, vec![1])]);
    bench.complete(0);
    assert_eq!(bench.replies[1], (2, Ok(())));
}

#[test]
fn a_host_that_says_when_is_not_asked_before() {
    let mut bench = Bench::one(4);
    bench.demand(1, 1..2);
    let told = Refusal {
        why: "429".to_owned(),
        retry: Some(Duration::from_secs(7)),
    };
    bench.end(0, Err(told));
    bench.news();
    bench.wait(Duration::from_millis(6999));
    assert_eq!(bench.news(), []);
    bench.wait(Duration::from_millis(1));
    assert_eq!(bench.news(), [(Demand, vec![1])]);
}

#[test]
fn a_demand_does_not_wait_for_the_pause_of_a_prediction() {
    let mut bench = Bench::one(4);
    bench.predict(1, "plan", [1]);
    bench.end(0, Err(busy("reset")));
    bench.news();
    bench.demand(1, 1..2);
    assert_eq!(bench.news(), [(Demand, vec![1])]);
}

#[test]
fn a_prediction_gives_up_sooner_and_the_plan_still_ends() {
    let mut bench = Bench::one(10);
    bench.predict(1, "plan", [1, 5]);
    assert_eq!(bench.requests.len(), 2);
    bench.complete(1);
    for _ in 0..3 {
        bench.end(0, Err(busy("reset")));
        if bench.finished.is_empty() {
            bench.wait_for_deadline();
        }
    }
    assert_eq!(bench.finished, [(1, 1)]);
}

#[test]
fn a_wrong_chunk_is_asked_for_once_more_then_given_up() {
    let mut bench = Bench::one(4);
    bench.demand(1, 1..3);
    let wrong = || Err(ChunkFailure::Wrong("hash".to_owned()));
    bench.arrive(0, wrong());
    assert_eq!(bench.news()[1], (Demand, vec![1]));
    bench.arrive(0, Ok(()));
    bench.end(0, Ok(()));
    assert_eq!(bench.replies, []);
    bench.arrive(0, wrong());
    assert_eq!(bench.replies[0].1.as_ref().unwrap_err().why, "hash");
    bench.end(0, Ok(()));
    assert_eq!(bench.brought, [(2, Demand, false)]);
}

#[test]
fn a_wrong_chunk_is_asked_for_elsewhere() {
    let mut bench = Bench::one(4);
    *bench.blobs[0].hosts.lock() = vec!["one".to_owned(), "two".to_owned()];
    bench.demand(1, 1..2);
    bench.arrive(0, Err(ChunkFailure::Wrong("hash".to_owned())));
    assert_eq!(bench.requests[1].host, "two");
    bench.complete(1);
    assert_eq!(bench.replies, [(1, Ok(()))]);
}

#[test]
fn every_host_is_asked_before_a_chunk_is_refused() {
    let mut bench = Bench::one(4);
    *bench.blobs[0].hosts.lock() = vec!["one".to_owned(), "two".to_owned()];
    bench.demand(1, 1..2);
    let gone = || Refusal {
        why: "404".to_owned(),
        retry: None,
    };
    assert_eq!(bench.requests[0].host, "one");
    bench.end(0, Err(gone()));
    assert_eq!(bench.requests[0].host, "two");
    bench.end(0, Err(gone()));
    assert_eq!(bench.replies[0].1.as_ref().unwrap_err().host, "two");
    assert!(bench.requests.is_empty());
}

#[test]
fn a_full_disk_is_told_at_once_and_stops_the_background() {
    let mut bench = Bench::one(100);
    bench.background();
    bench.news();
    bench.arrive(0, Err(ChunkFailure::Store("no space".to_owned())));
    for _ in 0..4 {
        bench.complete(0);
    }
    assert_eq!(bench.news(), []);
    bench.demand(1, 0..1);
    bench.arrive(0, Err(ChunkFailure::Store("no space".to_owned())));
    assert_eq!(bench.replies[0].1.as_ref().unwrap_err().why, "no space");
    bench.end(0, Ok(()));
    bench.news();
    bench.wait_for_deadline();
    assert_eq!(bench.news()[0].0, Background);
}

#[test]
fn the_background_comes_back_for_what_it_could_not_get() {
    let mut bench = Bench::one(3);
    bench.background();
    for _ in 0..3 {
        bench.arrive(0, Ok(()));
        bench.end(0, Err(busy("reset")));
        while bench.requests.is_empty() && bench.brought.len() < 3 && bench.now.as_secs() < 59 {
            bench.wait_for_deadline();
        }
    }
    while bench.brought.len() < 3 {
        if bench.requests.is_empty() {
            bench.wait_for_deadline();
        } else {
            bench.complete(0);
        }
    }
    assert_eq!(bench.scheduler.layers[0].cursor, super::super::Cursor::Done);
}

#[test]
fn a_broken_host_is_left_alone_except_by_demands() {
    let mut bench = Bench::one(100);
    bench.predict(1, "plan", (0..100).step_by(4));
    for _ in 0..4 {
        bench.end(0, Err(busy("refused")));
    }
    bench.news();
    assert!(bench.requests.len() < 4, "{:?}", bench.requests);
    while !bench.requests.is_empty() {
        bench.end(0, Err(busy("refused")));
    }
    bench.news();
    bench.demand(1, 99..100);
    assert_eq!(bench.news(), [(Demand, vec![99])]);
    bench.end(0, Err(busy("refused")));
    // One at a time looks whether it is well again.
    while bench.requests.is_empty() {
        bench.wait_for_deadline();
    }
    let ahead = bench.news();
    let ahead = ahead.iter().filter(|(lane, _)| *lane == Predicted);
    assert!(ahead.count() <= 1);
    while bench.finished.is_empty() || bench.replies.is_empty() {
        if bench.requests.is_empty() {
            bench.wait_for_deadline();
        } else {
            bench.complete(0);
        }
    }
    assert_eq!(bench.replies, [(1, Ok(()))]);
}

#[test]
fn unproven_chunks_are_hashed_before_they_are_fetched() {
    let mut bench = Bench::one(4);
    bench.blobs[0].set(1, ChunkState::Unproven);
    bench.blobs[0].set(2, ChunkState::Unproven);
    bench.demand(1, 1..3);
    assert_eq!(bench.local, [(0, 1), (0, 2)]);
    assert_eq!(bench.news(), []);
    bench.finish_local(0, Ok(true));
    bench.finish_local(0, Ok(false));
    assert_eq!(bench.news(), [(Demand, vec![2])]);
    bench.complete(0);
    assert_eq!(bench.replies, [(1, Ok(()))]);
    // What was here already was not brought.
    assert_eq!(bench.brought, [(2, Demand, false)]);
}

#[test]
fn zeros_need_no_network() {
    let mut blob = Fake::new("layer", 10);
    blob.zeros = 2;
    let mut bench = Bench::new(limits(), vec![blob]);
    bench.demand(1, 1..2);
    assert_eq!(bench.local, [(0, 1)]);
    bench.finish_local(0, Ok(true));
    assert_eq!(bench.replies, [(1, Ok(()))]);
    bench.demand(2, 3..4);
    bench.finish_local(0, Err("no space".to_owned()));
    assert!(bench.replies[1].1.is_err());
    bench.background();
    while !bench.local.is_empty() || !bench.requests.is_empty() {
        if bench.local.is_empty() {
            bench.complete(0);
        } else {
            bench.finish_local(0, Ok(true));
        }
    }
    assert!((0..10).all(|chunk| bench.blobs[0].state(chunk) == ChunkState::Present));
    assert_eq!(bench.scheduler.background.local, 0);
}

#[test]
fn a_plan_of_the_same_name_takes_over() {
    let mut bench = Bench::one(10_000);
    bench.predict(1, "image", (0..10_000).step_by(2));
    bench.predict(2, "image", [9001]);
    while bench.finished.len() < 2 {
        bench.complete(0);
    }
    // The first plan's window was brought, what it had not come to was not.
    assert!(bench.brought.len() <= super::super::plans::WINDOW + 5);
    assert!(bench.brought.iter().any(|(chunk, ..)| *chunk == 9001));
    bench.demand(1, 9000..9001);
    bench.complete(0);
    assert_eq!(bench.brought.last().unwrap(), &(9000, Demand, false));
}

#[test]
fn plans_of_containers_that_start_together_take_turns() {
    let mut bench = Bench::one(10_000);
    bench.predict(1, "one", (0..4000).step_by(4));
    bench.predict(2, "two", (5000..9000).step_by(4));
    bench.news();
    for _ in 0..20 {
        bench.complete(0);
    }
    let second = bench.news();
    let second = second
        .iter()
        .filter(|(_, chunks)| chunks[0] >= 5000)
        .count();
    assert_eq!(second, 10);
}

#[test]
fn the_background_waits_for_the_plan_of_the_image_it_belongs_to() {
    let mut bench = Bench::one(100);
    bench.apply([Event::Background { layer: 0 }]);
    assert_eq!(bench.news(), []);
    bench.predict(1, "plan", [50]);
    assert_eq!(bench.news(), [(Predicted, vec![50])]);
    // Where none comes it begins all the same.
    let mut bench = Bench::one(100);
    bench.apply([Event::Background { layer: 0 }]);
    bench.wait_for_deadline();
    assert_eq!(bench.news()[0].0, Background);
}

#[test]
fn after_a_plan_the_background_waits_as_long_as_the_start_took_within_bounds() {
    let after = |lasts: u64| {
        let mut bench = Bench::one(100);
        bench.apply([Event::Predict {
            id: 1,
            name: "plan".to_owned(),
            steps: vec![(0, 50)],
            lasts: Duration::from_secs(lasts),
        }]);
        bench.background();
        bench.complete(0);
        bench.news();
        let ended = bench.now;
        bench.wait_for_deadline();
        assert_eq!(bench.news()[0].0, Background);
        (bench.now - ended).as_millis()
    };
    assert_eq!([0, 5, 300].map(after), [2000, 5500, 10_000]);
}

#[test]
fn the_background_does_not_wait_for_a_plan_that_is_not_made() {
    // Told before or after: two threads say it.
    for told_first in [true, false] {
        let mut bench = Bench::one(100);
        let (none, all) = (
            || Event::Unplanned { layer: 0 },
            || Event::Background { layer: 0 },
        );
        match told_first {
            true => bench.apply([none(), all()]),
            false => {
                bench.apply([all()]);
                assert_eq!(bench.news(), []);
                bench.apply([none()]);
            }
        }
        assert_eq!(bench.news()[0].0, Background, "told first: {told_first}");
    }
    // Another layer's plan may still come.
    let mut bench = Bench::new(limits(), vec![Fake::new("a", 100), Fake::new("b", 100)]);
    bench.apply([0, 1].map(|layer| Event::Background { layer }));
    bench.apply([Event::Unplanned { layer: 0 }]);
    assert_eq!(bench.news(), []);
    bench.wait_for_deadline();
    assert_eq!(bench.news()[0].0, Background);
}

#[test]
fn a_refusal_counts_although_the_request_was_held_before_it() {
    let mut bench = Bench::one(1000);
    bench.background();
    bench.news();
    bench.demand(1, 900..901);
    assert!(!bench.held.is_empty());
    // The registry wants to be left alone; its answer had not begun.
    let asked = Refusal {
        why: "429".to_owned(),
        retry: Some(Duration::from_secs(7)),
    };
    bench.end(0, Err(asked));
    let last = bench.requests.len() - 1;
    bench.complete(last);
    bench.news();
    while !bench.requests.is_empty() {
        bench.complete(0);
    }
    assert_eq!(bench.news(), [], "nothing ahead for seven seconds");
    bench.wait(Duration::from_secs(8));
    assert!(!bench.news().is_empty());
}

#[test]
fn what_a_reader_waits_for_is_not_hashed_behind_what_is_decoded_ahead() {
    let mut bench = Bench::one(10);
    bench.blobs[0].set(1, ChunkState::Unproven);
    bench.predict(1, "plan", [1]);
    assert_eq!(
        (bench.local.as_slice(), bench.urgent.len()),
        (&[(0, 1)][..], 0)
    );
    bench.demand(1, 1..2);
    assert_eq!(bench.urgent, [(0, 1)]);
    bench.demand(2, 1..2);
    assert_eq!(bench.urgent, [(0, 1)], "once is enough");
    bench.finish_local(1, Ok(false));
    assert_eq!(bench.news(), [(Demand, vec![1])]);
    // The first is done as well, later: nothing is asked for again.
    bench.finish_local(0, Ok(true));
    assert_eq!(bench.news(), []);
    assert_eq!(bench.replies, []);
    bench.complete(0);
    assert_eq!(bench.replies, [(1, Ok(())), (2, Ok(()))]);
    assert_eq!(bench.finished, [(1, 0)]);
}

#[test]
fn what_the_background_asks_for_again_keeps_its_rate_and_its_place_behind_plans() {
    // Half a kilobyte a second: a chunk takes two seconds.
    let limits = Limits {
        background_rate: 550,
        ..limits()
    };
    let mut bench = Bench::new(limits, vec![Fake::new("layer", 10)]);
    bench.background();
    assert_eq!(bench.news(), [(Background, vec![0])]);
    bench.end(0, Err(busy("503")));
    // The pause after a failure is shorter than what the rate asks for.
    bench.wait(Duration::from_millis(1500));
    assert_eq!(bench.news(), []);
    bench.wait(Duration::from_millis(500));
    assert_eq!(bench.news(), [(Background, vec![0])]);
    // It cost as much as the first time.
    bench.complete(0);
    bench.wait(Duration::from_millis(1500));
    assert_eq!(bench.news(), []);

    let mut bench = registries::two(super::limits());
    bench.apply([Event::Pause(true)]);
    bench.background();
    bench.apply([Event::Pause(false)]);
    while !bench.requests.is_empty() {
        bench.end(0, Err(busy("503")));
    }
    bench.apply([Event::Predict {
        id: 1,
        name: "plan".to_owned(),
        steps: vec![(1, 5)],
        lasts: Duration::ZERO,
    }]);
    bench.news();
    // Neither beside the plan, nor in the time after it that belongs to the start.
    bench.wait(Duration::from_secs(40));
    assert_eq!(bench.news(), []);
    bench.complete(0);
    assert_eq!(bench.news(), []);
    bench.wait_for_deadline();
    assert_eq!(bench.news()[0].0, Background);
}
