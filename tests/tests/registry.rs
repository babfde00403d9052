//! The registry client against a registry that can misbehave.

#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "registry/ahead.rs"]
mod ahead;
#[path = "registry/credentials.rs"]
mod credentials;
#[path = "registry/expected.rs"]
mod expected;
#[path = "registry/images.rs"]
mod images;
#[path = "registry/redirects.rs"]
mod redirects;

use std::{ops::Range, sync::Arc, time::Duration};

use forelayer::{
    config,
    digest::Digest,
    metrics::{ByLane, Lane, Metrics},
    registry::{Client, Failure, Reference, RegistryError, Repository},
};
use forelayer_tests::registry::{AuthMode, Content, Fault, Log, Record, Rule, Server};

const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
/// Larger than what the client reads in vain when a registry ignores ranges.
const BLOB: usize = 6 << 20;

/// A registry with one repository `a/b`: tag `t`, a manifest, a small blob and a large one.
struct Bench {
    server: Server,
    client: Client,
    metrics: Arc<Metrics>,
    manifest: Vec<u8>,
    small: Digest,
    large: Digest,
    bytes: Vec<u8>,
}

impl Bench {
    fn new() -> Self {
        Self::with(&config::Registry::default())
    }

    fn with(config: &config::Registry) -> Self {
        let content = Content::default();
        let bytes = noise(BLOB);
        let small = content.add_blob(&b"{\"config\":1}"[..]).parse().unwrap();
        let large = content.add_blob(bytes.clone()).parse().unwrap();
        let manifest = format!("{{\"schemaVersion\":2,\"mediaType\":\"{OCI}\"}}").into_bytes();
        let digest = content.add_manifest(OCI, manifest.clone());
        content.tag("a/b", "t", &digest);
        let server = Server::start(content).unwrap();
        let metrics = Arc::new(Metrics::new());
        let client = Client::new(config, Arc::clone(&metrics)).unwrap();
        Self {
            server,
            client,
            metrics,
            manifest,
            small,
            large,
            bytes,
        }
    }

    /// Gives the client credentials, now that the server's port is known.
    fn log_in(&mut self, username: &str, password: &str) {
        let mut config = config::Registry::default();
        let credentials = config::Credentials {
            username: username.into(),
            password: password.into(),
        };
        config.credentials.insert(self.server.host(), credentials);
        self.client = Client::new(&config, Arc::clone(&self.metrics)).unwrap();
    }

    fn repository(&self) -> Repository {
        Repository {
            host: self.server.host(),
            name: "a/b".into(),
        }
    }

    fn reference(&self) -> Reference {
        format!("{}:t", self.repository()).parse().unwrap()
    }

    fn log(&self) -> &Log {
        self.server.log()
    }

    fn fault(&self, fault: Fault) {
        self.server.faults().clear();
        self.server.faults().add(Rule::blobs(fault));
    }

    async fn range(&self, range: Range<u64>) -> Result<Vec<u8>, RegistryError> {
        let (size, repository) = (self.bytes.len() as u64, self.repository());
        let mut body = self
            .client
            .range(&repository, &self.large, size, range)
            .await?;
        let mut all = Vec::new();
        while let Some(piece) = body.next().await {
            all.extend_from_slice(&piece?);
        }
        assert!(body.next().await.is_none(), "the end stays the end");
        Ok(all)
    }

    async fn good(&self, range: Range<u64>) {
        let start = usize::try_from(range.start).unwrap();
        let wanted = &self.bytes[start..usize::try_from(range.end).unwrap()];
        assert!(self.range(range).await.unwrap() == wanted, "other bytes");
    }

    async fn bad(&self, range: Range<u64>) -> RegistryError {
        self.range(range).await.unwrap_err()
    }

    /// Requests and bytes that the client counts itself.
    fn counted(&self) -> (u64, u64) {
        let lane = ByLane {
            lane: Lane::Metadata,
        };
        (
            self.metrics.requests.get_or_create(&lane).get(),
            self.metrics.fetched_bytes.get_or_create(&lane).get(),
        )
    }
}

/// Bytes that do not repeat.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn paths(records: &[Record]) -> Vec<&str> {
    records.iter().map(|record| record.path.as_str()).collect()
}

fn statuses(log: &Log) -> Vec<u16> {
    log.records().iter().map(|record| record.status).collect()
}

/// What a message must tell: where, of what, and which bytes.
fn tells(error: &RegistryError, parts: &[&str]) {
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

#[tokio::test]
async fn an_image_costs_one_request_each_for_what_is_read() {
    let bench = Bench::new();
    let manifest = bench.client.manifest(&bench.reference()).await.unwrap();
    assert_eq!(manifest.bytes, bench.manifest);
    assert_eq!(manifest.media_type, OCI);
    assert_eq!(manifest.digest, Digest::of(&bench.manifest));
    let repository = bench.repository();
    let config = bench.client.blob(&repository, &bench.small, 100).await;
    let config = config.unwrap();
    assert_eq!(&config[..], b"{\"config\":1}");
    let (size, client) = (BLOB as u64, &bench.client);
    let tail = client.tail(&repository, &bench.large, size, 1000).await;
    let tail = tail.unwrap();
    assert_eq!(tail.offset, size - 1000);
    assert!(tail.bytes[..] == bench.bytes[BLOB - 1000..]);
    let whole = client.tail(&repository, &bench.large, size, size * 2).await;
    let whole = whole.unwrap();
    assert_eq!((whole.offset, whole.bytes.len()), (0, BLOB));
    let records = bench.log().records();
    assert_eq!(records.len(), 4, "{:?}", paths(&records));
    let one_connection = records.iter().all(|record| record.connection == 1);
    assert!(one_connection, "connections are used again");
    let bytes = (bench.manifest.len() + config.len() + 1000 + BLOB) as u64;
    assert_eq!(bench.counted(), (4, bytes));
    assert_eq!(bench.log().bytes(), bytes);
}

#[tokio::test]
async fn ranges_bring_their_bytes() {
    let bench = Bench::new();
    let size = BLOB as u64;
    for range in [
        0..1,
        0..size,
        5..6,
        size - 1..size,
        1 << 20..3 << 20,
        77..77,
    ] {
        bench.good(range).await;
    }
    assert_eq!(bench.log().requests(), 5, "an empty range asks nothing");
    assert_eq!(bench.counted(), (0, 0), "the scheduler counts ranges");
    let error = bench.bad(size - 1..size + 1).await;
    assert!(matches!(&*error.failure, Failure::Bounds { .. }));
    assert_eq!(error.retry(), None);
}

#[tokio::test]
async fn manifests_by_digest_are_verified() {
    let bench = Bench::new();
    let (repository, digest) = (bench.repository(), Digest::of(&bench.manifest));
    let client = &bench.client;
    let manifest = client.manifest_by_digest(&repository, &digest).await;
    assert_eq!(manifest.unwrap().digest, digest);
    let rule = Rule::manifests(Fault::FlipBit { offset: 3 });
    bench.server.faults().add(rule);
    let error = client.manifest_by_digest(&repository, &digest).await;
    let error = error.unwrap_err();
    assert!(matches!(&*error.failure, Failure::Digest { .. }), "{error}");
    let (host, digest) = (bench.server.host(), digest.to_string());
    tells(&error, &[&host, "a/b", &digest]);
    assert!(bench.metrics.verify_failures.get() > 0);
}

#[tokio::test]
async fn small_blobs_are_verified_and_bounded() {
    let bench = Bench::new();
    let repository = bench.repository();
    let read = async |max| bench.client.blob(&repository, &bench.small, max).await;
    let error = read(5).await.unwrap_err();
    let size = Some(12);
    assert_eq!(*error.failure, Failure::TooLarge { limit: 5, size });
    // Once is bad luck: the second attempt brings the right bytes.
    let flip = Rule::blobs(Fault::FlipBit { offset: 11 }).times(1);
    bench.server.faults().add(flip);
    read(100).await.unwrap();
    let digest = bench.server.content().add_blob(&b"another one."[..]);
    bench.fault(Fault::OtherBlob { digest });
    let error = read(100).await.unwrap_err();
    assert!(matches!(&*error.failure, Failure::Digest { .. }), "{error}");
    bench.fault(Fault::LongBody { extra: 1 << 20 });
    let error = read(100).await.unwrap_err();
    let (limit, size) = (100, None);
    assert_eq!(*error.failure, Failure::TooLarge { limit, size }, "{error}");
}

#[tokio::test]
async fn a_manifest_larger_than_engines_take_is_refused() {
    let bench = Bench::new();
    let content = bench.server.content();
    let digest = content.add_manifest(OCI, vec![b' '; (4 << 20) + 1]);
    content.tag("a/b", "large", &digest);
    let reference = format!("{}:large", bench.repository()).parse().unwrap();
    let error = bench.client.manifest(&reference).await.unwrap_err();
    tells(&error, &["4194304", "manifest large"]);
}

#[tokio::test]
async fn a_registry_that_ignores_ranges_is_skipped_into_within_reason() {
    let bench = Bench::new();
    bench.fault(Fault::IgnoreRange);
    bench.good(0..100).await;
    bench.good(100_000..200_000).await;
    bench.good(0..BLOB as u64).await;
    let (_, waste) = bench.counted();
    assert_eq!(waste, 100_000, "what is thrown away is counted");
    let start = 5 << 20;
    let error = bench.bad(start..start + 1).await;
    let (host, waste) = (bench.server.host(), start);
    assert_eq!(*error.failure, Failure::RangeIgnored { host, waste });
    assert_eq!(error.retry(), None);
}

#[tokio::test]
async fn other_ranges_are_refused() {
    let bench = Bench::new();
    bench.fault(Fault::WrongContentRange);
    let error = bench.bad(1000..2000).await;
    let refused = matches!(&*error.failure, Failure::ContentRange { .. });
    assert!(refused, "{error}");
    let got = "bytes 1001-2000/6291456";
    let digest = bench.large.to_string();
    tells(&error, &["bytes 1000..2000", got, &digest, "a/b"]);
    bench.fault(Fault::RangeNotSatisfiable);
    let error = bench.bad(1000..2000).await;
    let refused = matches!(&*error.failure, Failure::Status { status: 416, .. });
    assert!(refused, "{error}");
    assert_eq!(error.retry(), None);
    bench.server.faults().clear();
    bench.good(1000..2000).await;
}

#[tokio::test]
async fn lengths_must_be_what_was_asked_for() {
    let bench = Bench::new();
    let (host, wanted) = (bench.server.host(), 1000);
    bench.fault(Fault::ShortBody { missing: 1 });
    let error = bench.bad(0..1000).await;
    let announced = 999;
    assert_eq!(
        *error.failure,
        Failure::Length {
            host: host.clone(),
            announced,
            wanted
        }
    );
    bench.fault(Fault::LongBody { extra: 9 });
    let error = bench.bad(0..1000).await;
    assert_eq!(*error.failure, Failure::TooLong { host, wanted });
    for fault in [Fault::Truncate { after: 700 }, Fault::Reset { after: 700 }] {
        bench.fault(fault);
        let error = bench.bad(0..100_000).await;
        let lost = matches!(
            &*error.failure,
            Failure::EarlyEnd {
                wanted: 100_000,
                ..
            } | Failure::Connection { .. }
        );
        assert!(lost, "{error}");
        assert_eq!(error.retry(), Some(Duration::ZERO));
    }
    bench.server.faults().clear();
    bench.good(0..100_000).await;
}

#[tokio::test]
async fn what_arrived_before_the_end_is_handed_out() {
    let bench = Bench::new();
    bench.fault(Fault::Truncate { after: 50_000 });
    let (repository, size) = (bench.repository(), BLOB as u64);
    let body = bench
        .client
        .range(&repository, &bench.large, size, 0..100_000);
    let mut body = body.await.unwrap();
    let mut got = Vec::new();
    let error = loop {
        match body.next().await.unwrap() {
            Ok(piece) => got.extend_from_slice(&piece),
            Err(error) => break error,
        }
    };
    assert!(got == bench.bytes[..50_000], "{} bytes", got.len());
    let early = matches!(
        &*error.failure,
        Failure::EarlyEnd {
            got: 50_000,
            wanted: 100_000,
            ..
        }
    );
    assert!(early, "{error}");
    assert!(body.next().await.is_none());
}

#[tokio::test]
async fn a_web_page_is_no_blob_and_no_manifest() {
    let bench = Bench::new();
    let mut rule = Rule::blobs(Fault::Html);
    rule.path = String::new();
    bench.server.faults().add(rule);
    let error = bench.bad(0..100).await;
    let page = matches!(&*error.failure, Failure::Html { status: 200, .. });
    assert!(page, "{error}");
    tells(&error, &["web page", "Please log in"]);
    let error = bench.client.manifest(&bench.reference()).await.unwrap_err();
    assert!(matches!(&*error.failure, Failure::Html { .. }), "{error}");
}

#[tokio::test]
async fn metadata_is_asked_for_again_where_that_helps() {
    let bench = Bench::new();
    let reference = bench.reference();
    let faults = bench.server.faults();
    let status = |status, retry_after| {
        Rule::manifests(Fault::Status {
            status,
            retry_after,
        })
    };
    faults.add(status(503, None).times(2));
    bench.client.manifest(&reference).await.unwrap();
    assert_eq!(statuses(bench.log()), [503, 503, 200]);
    faults.clear();
    faults.add(Rule::manifests(Fault::Reset { after: 0 }).times(1));
    bench.client.manifest(&reference).await.unwrap();
    faults.clear();
    bench.log().clear();
    faults.add(status(429, Some(3600)));
    let error = bench.client.manifest(&reference).await.unwrap_err();
    assert_eq!(error.retry(), Some(Duration::from_secs(3600)));
    assert_eq!(bench.log().requests(), 1, "nobody waits for an hour");
    tells(
        &error,
        &["429", "UNAVAILABLE", "a fault rule says so", "limits"],
    );
}

#[tokio::test]
async fn a_long_part_comes_in_pieces_each_of_which_may_fail_once() {
    let bench = Bench::new();
    let part = |range| {
        let size = bench.bytes.len() as u64;
        let (client, repository) = (&bench.client, bench.repository());
        async move { client.part(&repository, &bench.large, size, range).await }
    };
    let short = part(1000..100_000).await.unwrap();
    assert!(short == bench.bytes[1000..100_000]);
    assert_eq!(statuses(bench.log()), [206]);
    bench.log().clear();
    let fault = Rule::blobs(Fault::Truncate { after: 700 }).times(3);
    bench.server.faults().add(fault);
    let long = part(1000..3_000_000).await.unwrap();
    assert!(long == bench.bytes[1000..3_000_000]);
    assert_eq!(bench.log().requests(), 3 + 3);
    bench.fault(Fault::Status {
        status: 404,
        retry_after: None,
    });
    let error = part(1000..3_000_000).await.unwrap_err();
    tells(&error, &["404"]);
}

#[tokio::test]
async fn a_long_part_is_had_from_a_registry_that_ignores_ranges_as_far_as_one_request_has_it() {
    let bench = Bench::new();
    bench.fault(Fault::IgnoreRange);
    let (size, repository) = (bench.bytes.len() as u64, bench.repository());
    // The first begins within what is read in vain, the others do not.
    let range = (4 << 20) - 1000..(5 << 20);
    let part = bench
        .client
        .part(&repository, &bench.large, size, range.clone());
    let part = part.await.unwrap();
    assert!(part == bench.bytes[usize::try_from(range.start).unwrap()..][..part.len()]);
    assert_eq!(part.len() as u64, range.end - range.start);
    let far = bench
        .client
        .part(&repository, &bench.large, size, (5 << 20)..size);
    tells(&far.await.unwrap_err(), &["ignores Range"]);
}

#[tokio::test]
async fn what_is_missing_is_said_to_be_missing() {
    let bench = Bench::new();
    let reference = format!("{}:none", bench.repository()).parse().unwrap();
    let error = bench.client.manifest(&reference).await.unwrap_err();
    assert!(error.is_not_found());
    assert_eq!(error.retry(), None);
    tells(&error, &["manifest none", "404", "MANIFEST_UNKNOWN"]);
    let digest = bench.large.to_string();
    bench.server.content().remove_blob(&digest);
    let error = bench.bad(0..10).await;
    assert!(error.is_not_found());
    assert_eq!(statuses(bench.log()), [404, 404]);
}

#[tokio::test]
async fn silence_ends_at_the_configured_bound() {
    let bench = Bench::with(&config::Registry {
        connect_timeout: Duration::from_millis(100),
        read_timeout: Duration::from_millis(300),
        ..config::Registry::default()
    });
    bench.fault(Fault::Silence);
    let error = bench.bad(0..10).await;
    let lost = matches!(&*error.failure, Failure::Connection { .. });
    assert!(lost, "{error}");
    tells(&error, &["no answer within"]);
    bench.fault(Fault::Stall { after: 5 });
    let error = bench.bad(0..10).await;
    let early = matches!(&*error.failure, Failure::EarlyEnd { got: 5, .. });
    assert!(early, "{error}");
    tells(&error, &["nothing arrived for"]);
    assert_eq!(error.retry(), Some(Duration::ZERO));
}

#[tokio::test]
async fn metadata_that_drips_ends_at_a_bound_of_its_own() {
    let bench = Bench::with(&config::Registry {
        read_timeout: Duration::from_millis(500),
        ..config::Registry::default()
    });
    // Never silent for long, and 20 seconds in all.
    bench.fault(Fault::Drip {
        every: Duration::from_millis(20),
    });
    let small = bench.server.content().add_blob(noise(1000));
    let small: Digest = small.parse().unwrap();
    let (client, repository, size) = (&bench.client, bench.repository(), BLOB as u64);
    let part = client.part(&repository, &bench.large, size, 0..1000);
    let blob = client.blob(&repository, &small, 10_000);
    let (part, blob) = tokio::join!(part, blob);
    for error in [part.unwrap_err(), blob.unwrap_err()] {
        let early = matches!(&*error.failure, Failure::EarlyEnd { .. });
        assert!(early, "{error}");
        tells(&error, &["512 bytes a second"]);
    }
}

#[tokio::test]
async fn a_host_that_is_not_there_is_named() {
    let bench = Bench::new();
    let (host, reference) = (bench.server.host(), bench.reference());
    let client = bench.client.clone();
    drop(bench);
    let error = client.manifest(&reference).await.unwrap_err();
    let lost = matches!(&*error.failure, Failure::Connection { .. });
    assert!(lost, "{error}");
    tells(&error, &[&host, "a/b", "manifest t"]);
}

/// Answers every request with a redirect, and says how many there were.
#[tokio::test]
async fn the_registry_stands_in_front_of_another_one() {
    let bench = Bench::new();
    let front = Server::start_proxy(&bench.server.host()).unwrap();
    let repository = Repository {
        host: front.host(),
        name: "a/b".into(),
    };
    let reference: Reference = format!("{repository}:t").parse().unwrap();
    let manifest = bench.client.manifest(&reference).await.unwrap();
    assert_eq!(manifest.bytes, bench.manifest);
    let span = 1000..300_000;
    let range = async || {
        let size = BLOB as u64;
        let body = bench
            .client
            .range(&repository, &bench.large, size, 1000..300_000);
        let mut body = body.await.unwrap();
        let mut all = Vec::new();
        while let Some(piece) = body.next().await {
            all.extend_from_slice(&piece.unwrap());
        }
        all
    };
    assert!(range().await == bench.bytes[span.clone()]);
    assert_eq!(front.log().blob_bytes(), 299_000);
    let flip = Fault::FlipBit { offset: 2000 };
    front.faults().add(Rule::blobs(flip));
    let mut flipped = bench.bytes[span.clone()].to_vec();
    flipped[1000] ^= 1;
    assert!(range().await == flipped);
    front.faults().clear();
    front.set_redirect(Some(Duration::from_secs(600)));
    assert!(range().await == bench.bytes[span]);
    let other = front.other_addr().to_string();
    assert!(front.log().records().iter().any(|r| r.host == other));
}

#[tokio::test]
async fn the_log_says_what_was_sent() {
    let bench = Bench::new();
    bench.good(100..200).await;
    let records = bench.log().blob_requests(&bench.large.to_string());
    assert_eq!(records.len(), 1);
    let record = &records[0];
    assert_eq!((record.status, record.bytes), (206, 100));
    assert_eq!(record.method, "GET");
    assert_eq!(record.range, Some((100, 199)));
    assert_eq!(record.authorization, None);
    let small = bench.small.to_string();
    assert!(bench.log().blob_requests(&small).is_empty());
    assert!(bench.log().manifest_requests().is_empty());
    bench.log().clear();
    assert_eq!((bench.log().requests(), bench.log().bytes()), (0, 0));
}
