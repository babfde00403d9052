//! Bytes that are asked for before anybody needs them: who gets them, and what happens when they do not come.

use forelayer::registry::{Ahead, Early};

use super::*;

impl Bench {
    fn early(&self, range: Range<u64>, lane: Lane, later: bool) -> Early {
        Early {
            blob: self.large,
            size: BLOB as u64,
            range,
            lane,
            later,
        }
    }

    fn ahead(&self, wanted: Vec<Early>, at_once: usize) -> Ahead {
        self.client.ahead(&self.repository(), wanted, at_once)
    }

    async fn read(&self, range: Range<u64>) -> Result<(bool, Vec<u8>), RegistryError> {
        let repository = self.repository();
        let mut body = (self.client)
            .range(&repository, &self.large, BLOB as u64, range)
            .await?;
        let (early, mut bytes) = (body.is_early(), Vec::new());
        while let Some(piece) = body.next().await {
            bytes.extend_from_slice(&piece?);
        }
        Ok((early, bytes))
    }

    fn part(&self, range: Range<u64>) -> &[u8] {
        &self.bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]
    }

    fn count(&self, lane: Lane) -> (u64, u64) {
        let lane = ByLane { lane };
        (
            self.metrics.requests.get_or_create(&lane).get(),
            self.metrics.fetched_bytes.get_or_create(&lane).get(),
        )
    }

    /// Waits until something is asked for ahead.
    async fn asking(&self) {
        while !self.client.has_early(&self.large) {
            tokio::task::yield_now().await;
        }
    }

    /// Waits until so many requests were answered.
    async fn answered(&self, requests: usize) {
        let done = || {
            let records = self.server.log().records();
            records.iter().filter(|record| record.end.is_some()).count() >= requests
        };
        while !done() {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn whoever_asks_for_what_is_on_its_way_waits_for_it_and_asks_nobody() {
    let bench = Bench::new();
    let ahead = bench.ahead(vec![bench.early(1000..500_000, Lane::Predicted, false)], 4);
    bench.answered(1).await;
    for range in [1000..2000, 2000..400_000, 499_999..500_000] {
        let (early, bytes) = bench.read(range.clone()).await.unwrap();
        assert!(early, "{range:?}");
        assert!(bytes == bench.part(range.clone()), "{range:?}");
    }
    let asked = bench.server.log().records().len();
    assert_eq!(asked, 1);
    assert_eq!(
        bench.count(Lane::Predicted).0,
        1,
        "counted where it was made"
    );
    // What reaches beyond is asked for.
    let (early, bytes) = bench.read(999..2000).await.unwrap();
    assert!(!early && bytes == bench.part(999..2000));
    drop(ahead);
    while bench.client.has_early(&bench.large) {
        tokio::task::yield_now().await;
    }
    assert!(!bench.read(1000..2000).await.unwrap().0, "it is let go of");
    let used = 1000 + 398_000 + 1;
    assert_eq!(
        bench.count(Lane::Gap).1,
        499_000 - used,
        "what nobody used is a gap"
    );
}

#[tokio::test]
async fn bytes_that_end_early_are_asked_for_again_from_there_on() {
    let bench = Bench::new();
    let cut = Rule::blobs(Fault::Truncate { after: 40_000 }).times(1);
    bench.server.faults().add(cut);
    let _ahead = bench.ahead(vec![bench.early(0..100_000, Lane::Predicted, false)], 4);
    // The fault is for it, not for who reads.
    while !bench.client.has_early(&bench.large) && bench.log().requests() == 0 {
        tokio::task::yield_now().await;
    }
    // It may have ended by then or not: either way every byte comes.
    let (_, bytes) = bench.read(0..100_000).await.unwrap();
    assert!(bytes == bench.part(0..100_000));
}

#[tokio::test]
async fn bytes_that_were_wrong_are_asked_for_again() {
    let bench = Bench::new();
    let flip = Fault::FlipBit { offset: 1500 };
    bench.server.faults().add(Rule::blobs(flip).times(1));
    let _ahead = bench.ahead(vec![bench.early(0..3000, Lane::Predicted, false)], 4);
    bench.asking().await;
    let (early, bytes) = bench.read(1000..2000).await.unwrap();
    assert!(early && bytes != bench.part(1000..2000));
    // Who finds that they do not have their digest asks once more, for them or for more around them.
    for range in [1000..2000, 0..3000, 1999..2500] {
        let (early, bytes) = bench.read(range.clone()).await.unwrap();
        assert!(!early && bytes == bench.part(range.clone()), "{range:?}");
    }
    assert!(bench.read(2000..3000).await.unwrap().0, "others are given");
}

#[tokio::test]
async fn what_lies_in_several_ranges_is_read_through_all_of_them() {
    let bench = Bench::new();
    let wanted = [0..1000, 1000..5000, 5000..6000, 6001..7000]
        .map(|range| bench.early(range, Lane::Metadata, false));
    let _ahead = bench.ahead(wanted.to_vec(), 4);
    bench.answered(4).await;
    let (early, bytes) = bench.read(10..5500).await.unwrap();
    assert!(
        early && bytes == bench.part(10..5500),
        "what did not come is asked for"
    );
    assert!(!bench.read(5400..5600).await.unwrap().0, "handed out");
    assert!(!bench.read(5600..6500).await.unwrap().0, "there is a gap");
    assert!(bench.read(5600..6000).await.unwrap().0);
}

#[tokio::test]
async fn the_first_refusal_ends_asking_ahead() {
    let bench = Bench::new();
    let busy = Fault::Status {
        status: 429,
        retry_after: Some(60),
    };
    bench.server.faults().add(Rule::blobs(busy).times(1));
    // One at a time, so that the others are still to be asked for.
    let wanted =
        [0..1000, 2000..3000, 4000..5000].map(|range| bench.early(range, Lane::Predicted, false));
    let _ahead = bench.ahead(wanted.to_vec(), 1);
    bench.answered(1).await;
    let given_up = async {
        while bench.client.has_early(&bench.large) {
            tokio::task::yield_now().await;
        }
    };
    let patience = Duration::from_secs(20);
    (tokio::time::timeout(patience, given_up).await)
        .expect("the others are asked for all the same");
    // Whoever needs them asks for them; nothing was kept for it.
    assert!(!bench.read(2000..3000).await.unwrap().0);
    assert_eq!(bench.count(Lane::Predicted).0, 1);
}

#[tokio::test]
async fn letting_go_leaves_nobody_waiting() {
    let bench = Bench::new();
    let stall = Fault::Stall { after: 40_000 };
    bench.server.faults().add(Rule::blobs(stall).times(1));
    let ahead = bench.ahead(vec![bench.early(0..100_000, Lane::Predicted, false)], 4);
    let repository = bench.repository();
    bench.asking().await;
    let mut body = bench
        .client
        .range(&repository, &bench.large, BLOB as u64, 0..100_000)
        .await
        .unwrap();
    assert!(body.is_early());
    let mut bytes = body.next().await.unwrap().unwrap().to_vec();
    drop(ahead);
    while let Some(piece) = body.next().await {
        bytes.extend_from_slice(&piece.unwrap());
    }
    assert!(bytes == bench.part(0..100_000));
    assert_eq!(bench.server.log().records().len(), 2);
}

#[tokio::test]
async fn a_refusal_is_nobody_s_failure() {
    let bench = Bench::new();
    let busy = Fault::Status {
        status: 503,
        retry_after: None,
    };
    bench.server.faults().add(Rule::blobs(busy).times(1));
    let _ahead = bench.ahead(vec![bench.early(0..1000, Lane::Predicted, false)], 4);
    bench.answered(1).await;
    let (_, bytes) = bench.read(0..1000).await.unwrap();
    assert!(bytes == bench.part(0..1000));
}

#[tokio::test]
async fn the_rest_waits_for_the_metadata_and_for_a_free_place() {
    let bench = Bench::new();
    bench.server.faults().add(Rule::blobs(Fault::Hold).times(1));
    let wanted = vec![
        bench.early(0..1000, Lane::Metadata, false),
        bench.early(5000..6000, Lane::Predicted, true),
    ];
    let ahead = bench.ahead(wanted, 8);
    bench.server.faults().held(1).await;
    assert_eq!(bench.server.log().records().len(), 1);
    bench.server.faults().release();
    bench.answered(2).await;
    assert!(bench.read(5000..6000).await.unwrap().0);
    assert_eq!(bench.count(Lane::Metadata).0, 1);
    drop(ahead);
}

#[tokio::test]
async fn nothing_is_started_after_the_close_and_nothing_twice() {
    let bench = Bench::new();
    bench.server.faults().add(Rule::blobs(Fault::Hold).times(1));
    let one = || bench.early(0..1000, Lane::Predicted, false);
    let next = bench.early(1000..2000, Lane::Predicted, false);
    let ahead = bench.ahead(vec![one(), next], 1);
    bench.server.faults().held(1).await;
    ahead.close();
    bench.server.faults().release();
    bench.answered(1).await;
    // Another pull of the same image at the same moment.
    let other = bench.ahead(vec![one()], 4);
    assert!(bench.read(0..1000).await.unwrap().0);
    assert_eq!(bench.server.log().records().len(), 1);
    drop((ahead, other));
}

#[tokio::test]
async fn a_config_comes_whole_and_only_if_it_is_what_it_should_be() {
    let bench = Bench::new();
    let config = |blob, size: u64| Early {
        blob,
        size,
        range: 0..size,
        lane: Lane::Metadata,
        later: false,
    };
    let _ahead = bench.ahead(vec![config(bench.small, 12)], 4);
    bench.answered(1).await;
    let bytes = bench
        .client
        .blob(&bench.repository(), &bench.small, 1 << 20)
        .await
        .unwrap();
    assert_eq!(&bytes[..], b"{\"config\":1}");
    assert_eq!(bench.server.log().records().len(), 1);
    let flip = Rule::blobs(Fault::FlipBit { offset: 3 }).times(1);
    let bench = Bench::new();
    bench.server.faults().add(flip);
    let _ahead = bench.ahead(vec![config(bench.small, 12)], 4);
    bench.answered(1).await;
    let bytes = bench
        .client
        .blob(&bench.repository(), &bench.small, 1 << 20)
        .await
        .unwrap();
    assert_eq!(
        &bytes[..],
        b"{\"config\":1}",
        "a wrong one is asked for again"
    );
}
