//! Demands, plans and the background, from the handle to the stored bytes.

use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    config,
    fetch::{FetchError, Fetcher, executor::Wanted},
    metrics::{ByLane, Lane, Metrics},
};

pub(super) struct Store {
    pub(super) fetcher: Fetcher,
    pub(super) metrics: Arc<Metrics>,
    stop: CancellationToken,
}

impl Store {
    pub(super) fn start() -> Self {
        // What lies nearby has a test of its own.
        Self::with(&config::Fetch {
            nearby_bytes: 0,
            ..config::Fetch::default()
        })
    }
    pub(super) fn with(config: &config::Fetch) -> Self {
        let metrics = Arc::new(Metrics::new());
        let stop = CancellationToken::new();
        let config = config::Fetch {
            decode_threads: 2,
            ..config.clone()
        };
        let fetcher =
            Fetcher::start_without_client(&config, Arc::clone(&metrics), stop.clone()).unwrap();
        Self {
            fetcher,
            metrics,
            stop,
        }
    }
    pub(super) async fn demand(
        &self,
        layer: &Arc<Memory>,
        chunks: Range<u32>,
    ) -> Result<(), FetchError> {
        self.fetcher.demand_of(wanted(layer), chunks).await
    }
    fn bytes(&self, lane: Lane) -> u64 {
        let bytes = &self.metrics.fetched_bytes;
        bytes.get_or_create(&ByLane { lane }).get()
    }
    fn requests(&self, lane: Lane) -> u64 {
        let requests = &self.metrics.requests;
        requests.get_or_create(&ByLane { lane }).get()
    }
    fn chunks(&self, lane: Lane) -> u64 {
        self.metrics.chunks.get_or_create(&ByLane { lane }).get()
    }
    fn background(&self, layer: &Arc<Memory>) {
        let command = crate::fetch::executor::Command::Background(wanted(layer));
        self.fetcher.commands.send(command).unwrap();
    }
}

pub(super) fn wanted(layer: &Arc<Memory>) -> Wanted {
    let origin: Arc<dyn Origin> = Arc::clone(layer) as Arc<dyn Origin>;
    Wanted {
        digest: layer.digest(),
        identity: Arc::as_ptr(layer).addr(),
        origin,
    }
}

const FORMATS: [LayerFormat; 2] = [LayerFormat::Estargz, LayerFormat::ZstdChunked];
const LENGTHS: [usize; 6] = [100, 4096, 20_000, 1, 70_000, 333];

#[tokio::test]
async fn a_demand_brings_its_chunks_in_one_request() {
    for format in FORMATS {
        let (store, layer) = (Store::start(), Memory::new(format, &LENGTHS));
        store.demand(&layer, 1..4).await.unwrap();
        layer.assert_holds(1..4);
        assert_eq!(layer.requests(), 1);
        assert_eq!(
            (store.requests(Lane::Demand), store.chunks(Lane::Demand)),
            (1, 3)
        );
        let spans: u64 = layer.chunks[1..4]
            .iter()
            .map(|chunk| chunk.span.end - chunk.span.start)
            .sum();
        assert_eq!(store.bytes(Lane::Demand), spans);
        let range = layer.ranges.lock()[0].clone();
        assert_eq!(store.bytes(Lane::Gap), range.end - range.start - spans);
        store.demand(&layer, 1..4).await.unwrap();
        assert_eq!(layer.requests(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn wrong_bytes_never_get_into_the_cache() {
    for format in FORMATS {
        let (store, layer) = (Store::start(), Memory::new(format, &LENGTHS));
        // Once wrong: asked again, and then it is right.
        layer.answer([Answer::Flipped]);
        store.demand(&layer, 2..3).await.unwrap();
        layer.assert_holds([2]);
        assert_eq!(store.metrics.verify_failures.get(), 1);
        // Twice wrong: an error that says which layer, file, chunk and host.
        layer.answer([Answer::Flipped, Answer::Flipped]);
        let error = store.demand(&layer, 4..5).await.unwrap_err().to_string();
        for part in [
            &layer.digest().to_string(),
            "/file-4",
            "chunk 4",
            "registry.test",
        ] {
            assert!(error.contains(part), "{error}");
        }
        layer.assert_holds([2]);
        assert_eq!(store.metrics.verify_failures.get(), 3);
        // The registry is sane again.
        store.demand(&layer, 4..5).await.unwrap();
        layer.assert_holds([2, 4]);
    }
}

#[tokio::test(start_paused = true)]
async fn what_came_before_a_connection_broke_is_kept() {
    let (store, layer) = (Store::start(), Memory::new(LayerFormat::Estargz, &LENGTHS));
    layer.answer([Answer::Half, Answer::Busy]);
    store.demand(&layer, 0..6).await.unwrap();
    layer.assert_holds(0..6);
    let ranges = layer.ranges.lock().clone();
    assert_eq!(ranges.len(), 3);
    // The second and third request ask for the rest only.
    assert_eq!(ranges[1].start, layer.chunks[4].span.start);
    assert_eq!(ranges[1], ranges[2]);
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_stays_away_is_an_error_until_it_is_back() {
    let (store, layer) = (Store::start(), Memory::new(LayerFormat::Estargz, &LENGTHS));
    layer.answer([Answer::Busy; 5]);
    let error = store.demand(&layer, 0..1).await.unwrap_err();
    assert!(error.to_string().contains("503"), "{error}");
    layer.answer([Answer::Gone]);
    let error = store.demand(&layer, 0..1).await.unwrap_err();
    assert!(error.to_string().contains("404"), "{error}");
    assert_eq!(layer.requests(), 6);
    store.demand(&layer, 0..1).await.unwrap();
    layer.assert_holds([0]);
}

#[tokio::test]
async fn a_full_disk_is_an_error_and_nothing_is_kept() {
    let (store, layer) = (Store::start(), Memory::new(LayerFormat::Estargz, &LENGTHS));
    layer.full.store(1, Ordering::Relaxed);
    let error = store.demand(&layer, 0..1).await.unwrap_err();
    assert!(error.to_string().contains("no storage space"), "{error}");
    layer.assert_holds([]);
    store.demand(&layer, 0..1).await.unwrap();
    layer.assert_holds([0]);
}

#[tokio::test]
async fn a_plan_is_brought_and_its_chunks_are_known_as_predicted() {
    let (store, layer) = (
        Store::start(),
        Memory::new(LayerFormat::ZstdChunked, &LENGTHS),
    );
    let steps = [5, 0, 2].map(|chunk| (wanted(&layer), chunk)).to_vec();
    let outcome = store
        .fetcher
        .predict_of("plan".to_owned(), steps, Duration::ZERO)
        .await;
    assert_eq!(outcome.failed, 0);
    layer.assert_holds([0, 2, 5]);
    store.demand(&layer, 0..2).await.unwrap();
    let arrivals = store.fetcher.arrivals.of(&layer.digest());
    let lanes: Vec<_> = arrivals
        .iter()
        .map(|arrival| (arrival.chunk, arrival.lane))
        .collect();
    assert_eq!(
        lanes,
        [
            (0, Lane::Predicted),
            (1, Lane::Demand),
            (2, Lane::Predicted),
            (5, Lane::Predicted)
        ]
    );
    let snapshot = store.fetcher.snapshot().await;
    assert_eq!(snapshot.layers[0].brought.predicted, 3);
    assert!(snapshot.plans.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_plan_that_fails_in_part_says_so_and_brings_the_rest() {
    let (store, layer) = (
        Store::start(),
        Memory::new(LayerFormat::ZstdChunked, &LENGTHS),
    );
    layer.answer([Answer::Gone]);
    let steps = vec![(wanted(&layer), 0), (wanted(&layer), 99)];
    let outcome = store
        .fetcher
        .predict_of("plan".to_owned(), steps, Duration::ZERO)
        .await;
    assert_eq!(outcome.failed, 2);
    assert!(outcome.error.is_some());
    layer.assert_holds([]);
}

#[tokio::test]
async fn a_demand_is_served_while_everything_else_stands_still() {
    // The background has memory for one chunk, which never comes: a demand still gets through.
    let store = Store::with(&config::Fetch {
        max_bytes_in_flight: 4 << 10,
        max_gap_bytes: 0,
        nearby_bytes: 0,
        ..config::Fetch::default()
    });
    let layer = Memory::new(LayerFormat::ZstdChunked, &[4000; 200]);
    layer.answer([Answer::Stall]);
    store.background(&layer);
    while layer.requests() == 0 {
        tokio::task::yield_now().await;
    }
    store.demand(&layer, 150..153).await.unwrap();
    layer.assert_holds(150..153);
    // Once they move again, the background brings the rest.
    layer.gate.add_permits(100);
    while store.chunks(Lane::Background) < 197 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    layer.assert_holds(0..200);
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_drips_is_given_up() {
    let store = Store::start();
    let layer = Memory::new(LayerFormat::ZstdChunked, &[4000]);
    layer.answer([Answer::Drip]);
    store.demand(&layer, 0..1).await.unwrap();
    assert_eq!(layer.requests(), 2);
}

#[tokio::test]
async fn who_waits_when_the_store_stops_is_told() {
    let (store, layer) = (Store::start(), Memory::new(LayerFormat::Estargz, &LENGTHS));
    layer.answer([Answer::Stall]);
    let waits = store.demand(&layer, 0..1);
    let stops = async {
        while layer.requests() == 0 {
            tokio::task::yield_now().await;
        }
        store.stop.cancel();
        store.fetcher.stopped().await;
    };
    let (waited, ()) = tokio::join!(waits, stops);
    assert!(matches!(waited, Err(FetchError::Stopping)));
    assert!(matches!(
        store.demand(&layer, 0..1).await,
        Err(FetchError::Stopping)
    ));
    let outcome = store
        .fetcher
        .predict_of("plan".to_owned(), Vec::new(), Duration::ZERO)
        .await;
    assert!(outcome.error.is_some());
    assert_eq!(store.fetcher.snapshot().await.layers.len(), 0);
}

#[tokio::test]
async fn what_lies_behind_a_miss_comes_along_and_is_counted_apart() {
    let store = Store::with(&config::Fetch::default());
    let layer = Memory::new(LayerFormat::ZstdChunked, &[4000; 20]);
    store.demand(&layer, 3..4).await.unwrap();
    while store.chunks(Lane::Nearby) < 16 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    layer.assert_holds(3..20);
    assert_eq!(
        (store.requests(Lane::Demand), store.requests(Lane::Nearby)),
        (1, 1)
    );
    assert_eq!(
        (store.chunks(Lane::Demand), store.chunks(Lane::Background)),
        (1, 0)
    );
    assert!(store.bytes(Lane::Nearby) > 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_task_panics_is_asked_again() {
    let (store, layer) = (Store::start(), Memory::new(LayerFormat::Estargz, &LENGTHS));
    layer.answer([Answer::Panic]);
    store.demand(&layer, 0..3).await.unwrap();
    layer.assert_holds(0..3);
    assert_eq!(layer.requests(), 2);
}

#[tokio::test]
async fn hashing_that_panics_is_no_hashing() {
    let (store, layer) = (
        Store::start(),
        Memory::new(LayerFormat::ZstdChunked, &LENGTHS),
    );
    layer.states.lock()[2] = ChunkState::Unproven;
    layer.answer([Answer::Panic]);
    store.demand(&layer, 2..3).await.unwrap();
    layer.assert_holds([2]);
}

#[tokio::test]
async fn a_registry_that_keeps_its_answers_leaves_memory_to_the_readers_of_others() {
    let store = Store::with(&config::Fetch {
        nearby_bytes: 0,
        max_request_bytes: 1,
        max_bytes_in_flight: 256 << 10,
        ..config::Fetch::default()
    });
    let mut silent = Memory::new(LayerFormat::ZstdChunked, &[70_000; 2]);
    Arc::get_mut(&mut silent).unwrap().host = "silent.test";
    silent.answer([Answer::Stall; 2]);
    // A request a chunk; each would take all of the memory.
    let silent_demand = store.demand(&silent, 0..2);
    tokio::pin!(silent_demand);
    while silent.requests() == 0 {
        assert!(futures_util::poll!(silent_demand.as_mut()).is_pending());
        tokio::task::yield_now().await;
    }
    let layer = Memory::new(LayerFormat::ZstdChunked, &[3000]);
    store.demand(&layer, 0..1).await.unwrap();
    layer.assert_holds([0]);
    assert_eq!(silent.requests(), 1, "it waited until the other had failed");
}

#[tokio::test]
async fn a_reader_does_not_wait_for_the_memory_of_what_is_read_ahead() {
    let store = Store::with(&config::Fetch {
        nearby_bytes: 0,
        max_request_bytes: 1,
        max_bytes_in_flight: 256 << 10,
        ..config::Fetch::default()
    });
    // The first takes all the room for what is read ahead, and is not answered.
    let layer = Memory::new(LayerFormat::ZstdChunked, &[150_000, 150_000, 300]);
    layer.answer([Answer::Stall]);
    let steps = [0, 1, 2].map(|chunk| (wanted(&layer), chunk)).to_vec();
    let plan = store
        .fetcher
        .predict_of("plan".to_owned(), steps, Duration::ZERO);
    tokio::pin!(plan);
    while layer.requests() == 0 {
        assert!(futures_util::poll!(plan.as_mut()).is_pending());
        tokio::task::yield_now().await;
    }
    // The last is asked for, and waits for room.
    store.demand(&layer, 2..3).await.unwrap();
    layer.assert_holds([2]);
    assert_eq!(layer.requests(), 2, "the first two had failed before");
    assert!(futures_util::poll!(plan.as_mut()).is_pending());
    assert_eq!(store.chunks(Lane::Predicted), 1);
}
