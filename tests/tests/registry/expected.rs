//! Images that are looked up before an engine asks: what its lookups get then.

use forelayer::image::LookupError;
use forelayer_tests::fixtures::{Entry, Layer, Lazy};

use super::{
    images::{Bench, key, layer, toc},
    *,
};

#[tokio::test]
async fn a_lookup_finds_what_was_expected_on_its_way_or_there() {
    let bench = Bench::new();
    let lazy = layer("motd", &Lazy::zstd_chunked());
    let ordinary = Layer::build(&[Entry::file("f", "x")], &Lazy::No).unwrap();
    let layers = [lazy, ordinary];
    let reference = bench.publish("a/b", &layers);
    bench
        .server
        .faults()
        .add(Rule::blob(&layers[0].digest, Fault::Hold));
    let expecting = {
        let (images, reference) = (Arc::clone(&bench.images), reference.clone());
        let key = key(&layers[0]);
        tokio::spawn(async move { images.expect(&reference, &key).await })
    };
    bench.server.faults().held(1).await;
    let lookups = async {
        let served = bench.lookup(&reference, &layers[0]).await;
        (served, bench.lookup(&reference, &layers[1]).await)
    };
    let release = async { bench.server.faults().release() };
    let ((served, no), ()) = tokio::join!(lookups, release);
    assert_eq!(served.unwrap(), toc(&layers[0]));
    assert!(matches!(no, Err(LookupError::Ordinary { .. })), "{no:?}");
    assert!(expecting.await.unwrap());
    assert_eq!(bench.server.log().manifest_requests().len(), 1);
}

#[tokio::test]
async fn what_failed_while_it_was_expected_is_not_held_against_a_lookup() {
    let bench = Bench::new();
    let layers = [layer("motd", &Lazy::estargz())];
    let reference = bench.publish("a/b", &layers);
    let broken = Fault::Status {
        status: 500,
        retry_after: None,
    };
    bench.server.faults().add(Rule::manifests(broken));
    assert!(!bench.images.expect(&reference, &key(&layers[0])).await);
    bench.server.faults().clear();
    assert_eq!(
        bench.lookup(&reference, &layers[0]).await.unwrap(),
        toc(&layers[0])
    );
}

#[tokio::test]
async fn a_tag_that_moved_since_is_looked_up_as_ever() {
    let bench = Bench::new();
    let [old, new] = ["old", "new"].map(|text| layer(text, &Lazy::zstd_chunked()));
    bench.publish("a/b", std::slice::from_ref(&old));
    let reference = bench.publish("a/b", std::slice::from_ref(&new));
    assert!(!bench.images.expect(&reference, &key(&old)).await);
    assert!(bench.images.image(&reference).is_none());
    assert_eq!(bench.lookup(&reference, &new).await.unwrap(), toc(&new));
}

#[tokio::test]
async fn what_hangs_while_it_is_expected_keeps_no_later_lookup_from_its_own() {
    let bench = Bench::with(config::Lookup {
        timeout: Duration::from_secs(1),
        ..config::Lookup::default()
    });
    let layers = [layer("motd", &Lazy::zstd_chunked())];
    let reference = bench.publish("a/b", &layers);
    let hang = Rule::blob(&layers[0].digest, Fault::Hold).times(1);
    bench.server.faults().add(hang);
    let expecting = {
        let (images, reference) = (Arc::clone(&bench.images), reference.clone());
        let key = key(&layers[0]);
        tokio::spawn(async move { images.expect(&reference, &key).await })
    };
    bench.server.faults().held(1).await;
    // It may wait for what is expected for as long as a lookup may take, and no other after it.
    let _ = bench.lookup(&reference, &layers[0]).await;
    assert_eq!(
        bench.lookup(&reference, &layers[0]).await.unwrap(),
        toc(&layers[0])
    );
    bench.server.faults().release();
    assert!(expecting.await.unwrap());
}
