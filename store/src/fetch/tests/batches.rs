//! What comes together is stored together, and none of it is worse off for its neighbours.

use super::{
    whole::{Store, wanted},
    *,
};

/// Small ones that follow each other, and one that is larger than what is collected.
const LENGTHS: [usize; 6] = [100, 4096, 20_000, 400_000, 70_000, 333];

#[tokio::test]
async fn a_reader_that_comes_to_the_mark_has_the_next_window_brought() {
    let store = Store::with(&crate::config::Fetch {
        nearby_bytes: 40_000,
        ..crate::config::Fetch::default()
    });
    let layer = Memory::new(LayerFormat::ZstdChunked, &[5000; 40]);
    store.demand(&layer, 0..1).await.unwrap();
    let marked = || layer.mark.lock().take();
    let mark = loop {
        match marked() {
            Some(mark) => break mark,
            None => tokio::task::yield_now().await,
        }
    };
    assert_eq!(mark, 1);
    let reached = crate::fetch::executor::Command::Reached(wanted(&layer), mark);
    store.fetcher.commands.send(reached).unwrap();
    // The next window begins where this one ends, and has a mark of its own.
    let next = loop {
        match marked() {
            Some(mark) => break mark,
            None => tokio::task::yield_now().await,
        }
    };
    assert!(next > mark, "{next}");
}

async fn predict(store: &Store, layer: &Arc<Memory>) -> u32 {
    let chunks = 0..layer.chunk_count();
    let steps = chunks.map(|chunk| (wanted(layer), chunk)).collect();
    let outcome = store
        .fetcher
        .predict_of("plan".to_owned(), steps, Duration::ZERO)
        .await;
    outcome.failed
}

#[tokio::test]
async fn chunks_that_follow_each_other_are_stored_by_one_write() {
    for format in [LayerFormat::Estargz, LayerFormat::ZstdChunked] {
        let (store, layer) = (Store::start(), Memory::new(format, &LENGTHS));
        assert_eq!(predict(&store, &layer).await, 0);
        layer.assert_holds(0..6);
        let mut commits = layer.commits.lock().clone();
        commits.sort_by_key(|commit| commit.start);
        assert_eq!(commits, [0..3, 3..4, 4..6]);
    }
}

#[tokio::test]
async fn what_is_here_already_is_not_written_again() {
    let layer = Memory::new(LayerFormat::ZstdChunked, &[5000; 9]);
    let store = Store::start();
    store.demand(&layer, 4..5).await.unwrap();
    layer.commits.lock().clear();
    assert_eq!(predict(&store, &layer).await, 0);
    layer.assert_holds(0..9);
    let commits = layer.commits.lock().clone();
    assert!(
        commits.iter().all(|commit| !commit.contains(&4)),
        "{commits:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_wrong_chunk_takes_nothing_from_those_around_it() {
    for format in [LayerFormat::Estargz, LayerFormat::ZstdChunked] {
        // The byte in the middle of the blob lies in the third.
        let layer = Memory::new(format, &[5000; 5]);
        let store = Store::start();
        layer.answer([Answer::Flipped]);
        assert_eq!(predict(&store, &layer).await, 0);
        layer.assert_holds(0..5);
        assert_eq!(store.metrics.verify_failures.get(), 1);
        assert_eq!(layer.requests(), 2);
        let again = layer.ranges.lock()[1].clone();
        let wrong = &layer.chunks[2].span;
        assert!(
            again.start >= wrong.start && again.end <= layer.chunks[3].span.start,
            "{again:?}"
        );
        // The wrong one may come again before what follows it is stored.
        let mut commits = layer.commits.lock().clone();
        commits.sort_by_key(|commit| commit.start);
        assert_eq!(commits, [0..2, 2..3, 3..5]);
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_full_disk_does_not_take_counts_as_failed_all_of_it() {
    let layer = Memory::new(LayerFormat::ZstdChunked, &[5000; 5]);
    let store = Store::start();
    layer.full.store(1, Ordering::Relaxed);
    assert_eq!(predict(&store, &layer).await, 5);
    layer.assert_holds([]);
    assert_eq!(predict(&store, &layer).await, 0);
    layer.assert_holds(0..5);
}

#[tokio::test(start_paused = true)]
async fn what_came_of_an_answer_that_broke_off_is_stored() {
    let layer = Memory::new(LayerFormat::ZstdChunked, &[5000; 8]);
    let store = Store::start();
    layer.answer([Answer::Half]);
    assert_eq!(predict(&store, &layer).await, 0);
    layer.assert_holds(0..8);
    let ranges = layer.ranges.lock().clone();
    assert_eq!(ranges.len(), 2);
    assert!(ranges[1].start > layer.chunks[2].span.start, "{ranges:?}");
}
