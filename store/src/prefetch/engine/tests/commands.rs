//! Engines whose command lines name images.

use super::*;
use crate::{image::BlobRange, prefetch::testing::Engine};

/// Keeps what the next pull of an image asks for: the TOC of a layer with this digest.
fn keep(case: &Case, image: &str, key: Digest) {
    let toc = BlobRange {
        blob: key,
        size: 100,
        start: 50,
        end: 90,
    };
    let metadata = Metadata {
        keys: vec![key],
        ranges: vec![toc],
    };
    let requests = EarlyRequests::new(image, metadata, &[], 1 << 20).unwrap();
    requests.store(&case.profiles.path().join("early")).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_an_engine_is_about_to_pull_is_looked_up_once() {
    // The first is known already.
    let mut case = start_with(config::Prefetch::default(), |layer, _| {
        vec![("h.io/image:1".to_owned(), vec![Arc::clone(layer)])]
    });
    let keys = [0, 1, 2].map(|n: u8| Digest::of(&[n]));
    for (image, key) in ["h.io/image:1", "h.io/learned:1", "h.io/last:1"]
        .iter()
        .zip(keys)
    {
        keep(&case, image, key);
    }
    let images = ["never", "image", "learned", "learned", "last"];
    let engines = images.map(|image| Engine::starts(&["pull", &format!("h.io/{image}:1")]));
    for engine in &engines {
        case.prefetcher.seen(engine.id());
    }
    for (image, key) in [("h.io/learned:1", keys[1]), ("h.io/last:1", keys[2])] {
        let early = (format!("early {image}"), Vec::new());
        assert_eq!(soon(case.plans.recv()).await, early);
        let expected = soon(case.expected.recv()).await;
        assert_eq!(expected, (image.to_owned(), key));
    }
}

/// What comes; a hang is a failure.
async fn soon<T>(coming: impl Future<Output = Option<T>>) -> T {
    let bound = Duration::from_secs(20);
    tokio::time::timeout(bound, coming).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lookup_of_what_was_not_found_as_expected_asks_early_again() {
    let mut case = start(config::Prefetch::default());
    let key = Digest::of(b"toc");
    keep(&case, "h.io/learned:1", key);
    let engine = Engine::starts(&["pull", "h.io/learned:1"]);
    case.prefetcher.seen(engine.id());
    let early = ("early h.io/learned:1".to_owned(), Vec::new());
    assert_eq!(soon(case.plans.recv()).await, early);
    soon(case.expected.recv()).await;
    // It has failed soon; nothing says when.
    let again = async {
        loop {
            case.prefetcher.searched("h.io/learned:1", &key);
            let next = tokio::time::timeout(Duration::from_millis(10), case.plans.recv()).await;
            if let Ok(again) = next {
                return again;
            }
        }
    };
    assert_eq!(soon(again).await, early);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn command_lines_are_not_read_where_they_must_not_be_or_lead_to_nothing() {
    let config = |change: fn(&mut config::Prefetch)| {
        let mut config = config::Prefetch::default();
        change(&mut config);
        config
    };
    for config in [
        config(|config| config.read_commands = false),
        config(|config| config.enabled = false),
        config(|config| config.early_bytes = 0),
    ] {
        assert!(start(config).prefetcher.commands.is_none());
    }
}
