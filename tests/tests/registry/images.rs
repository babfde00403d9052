//! Images of a registry that is hostile, wrong or slow: what is served of them, and what they may not do to others.

use std::{sync::Arc, time::Duration};

use forelayer::{
    cache::Cache,
    config::{self, Config},
    digest::Digest,
    image::{Images, LookupError},
    metrics::Metrics,
    registry::Client,
};
use forelayer_tests::{
    fixtures::{Entry, Image, ImageConfig, Layer, Lazy, digest},
    registry::{Content, Fault, Record, Rule, Server},
};

/// A registry, and a store without mounts.
pub(super) struct Bench {
    pub(super) server: Server,
    pub(super) images: Arc<Images>,
    state: tempfile::TempDir,
}

impl Bench {
    pub(super) fn new() -> Self {
        Self::with(config::Lookup::default())
    }

    pub(super) fn with(lookup: config::Lookup) -> Self {
        let config = Config {
            lookup,
            ..Config::default()
        };
        let state = tempfile::tempdir().unwrap();
        let metrics = Arc::new(Metrics::new());
        let images = Images::open(
            state.path(),
            &config.lookup,
            &config.limits,
            Arc::new(Cache::open(state.path()).unwrap()),
            Client::new(&config.registry, Arc::clone(&metrics)).unwrap(),
            metrics,
        );
        Self {
            server: Server::start(Content::default()).unwrap(),
            images: Arc::new(images.unwrap()),
            state,
        }
    }

    /// Publishes an image of these layers as the repository's `latest`; answers its reference.
    pub(super) fn publish(&self, repository: &str, layers: &[Layer]) -> String {
        publish(&self.server, repository, layers)
    }

    pub(super) async fn lookup(
        &self,
        reference: &str,
        layer: &Layer,
    ) -> Result<Digest, LookupError> {
        let record = self.images.lookup(reference, &key(layer)).await?;
        Ok(record.layer.index.facts().toc)
    }

    async fn refusal(&self, reference: &str, layer: &Layer) -> String {
        let error = self.lookup(reference, layer).await.unwrap_err();
        assert!(matches!(error, LookupError::Refused { .. }), "{error}");
        error.to_string()
    }
}

fn publish(server: &Server, repository: &str, layers: &[Layer]) -> String {
    let image = Image::new(layers, &ImageConfig::default()).unwrap();
    server.content().add_image(repository, "latest", &image);
    format!("{}/{repository}:latest", server.host())
}

pub(super) fn key(layer: &Layer) -> Digest {
    layer.digest.parse().unwrap()
}

pub(super) fn toc(layer: &Layer) -> Digest {
    layer.toc_digest.parse().unwrap()
}

pub(super) fn layer(content: &str, lazy: &Lazy) -> Layer {
    let entries = [
        Entry::dir("etc"),
        Entry::file("etc/motd", content.to_owned()),
    ];
    Layer::build(&entries, lazy).unwrap()
}

/// Another layer that pretends to be this blob.
fn pretending(victim: &Layer, content: &str) -> Layer {
    let mut evil = layer(content, &Lazy::zstd_chunked());
    evil.digest.clone_from(&victim.digest);
    evil
}

#[tokio::test]
async fn an_image_whose_toc_is_on_its_way_does_not_replace_the_tree_that_came_first() {
    let bench = Bench::new();
    let victim = layer("the victim's", &Lazy::zstd_chunked());
    let evil = pretending(&victim, "somebody else's");
    let elsewhere = Server::start(Content::default()).unwrap();
    let evil_reference = publish(&elsewhere, "evil/image", std::slice::from_ref(&evil));
    elsewhere
        .faults()
        .add(Rule::blob(&victim.digest, Fault::Hold));
    let asking = {
        let (images, reference, key) = (
            Arc::clone(&bench.images),
            evil_reference.clone(),
            key(&victim),
        );
        tokio::spawn(async move { images.lookup(&reference, &key).await.map(|_| ()) })
    };
    elsewhere.faults().held(1).await;
    let reference = bench.publish("a/victim", std::slice::from_ref(&victim));
    assert_eq!(
        bench.lookup(&reference, &victim).await.unwrap(),
        toc(&victim)
    );
    elsewhere.faults().release();
    let error = asking.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("already served"), "{error}");
    let hex = victim.digest.strip_prefix("sha256:").unwrap();
    let dir = bench.state.path().join("blobs/sha256").join(hex);
    let index = forelayer::format::LayerIndex::open(&dir.join("index"), true).unwrap();
    assert_eq!(index.facts().toc, toc(&victim));
    let left = std::fs::read_dir(&dir).unwrap().filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().starts_with("index.")
    });
    assert_eq!(left.count(), 0, "what was built in vain is removed");
    assert!(bench.images.image(&evil_reference).is_none());
}

#[tokio::test]
async fn a_manifest_with_another_size_or_toc_of_a_served_layer_is_refused() {
    let bench = Bench::new();
    let victim = layer("the victim's", &Lazy::zstd_chunked());
    let reference = bench.publish("a/victim", std::slice::from_ref(&victim));
    bench.lookup(&reference, &victim).await.unwrap();
    let mut longer = victim.clone();
    longer.blob = [&victim.blob[..], b"more"].concat().into();
    let reference = bench.publish("b/longer", &[longer]);
    let why = bench.refusal(&reference, &victim).await;
    assert!(why.contains("bytes") && why.contains("b/longer"), "{why}");
    let mut other = victim.clone();
    for (name, value) in &mut other.annotations {
        if name.ends_with("manifest-checksum") {
            *value = Digest::of(b"another TOC").to_string();
        }
    }
    let reference = bench.publish("c/other", &[other]);
    let why = bench.refusal(&reference, &victim).await;
    assert!(why.contains("announces TOC"), "{why}");
}

#[tokio::test]
async fn a_toc_counts_for_an_unannotated_layer_only_in_the_repository_that_supplied_it() {
    let bench = Bench::with(config::Lookup {
        probe_unannotated: true,
        ..config::Lookup::default()
    });
    let annotated = layer("hello", &Lazy::estargz());
    let bare = annotated.clone().unannotated();
    let first = bench.publish("a/first", std::slice::from_ref(&annotated));
    bench.lookup(&first, &annotated).await.unwrap();
    let other = bench.publish("b/other", std::slice::from_ref(&bare));
    let error = bench.lookup(&other, &bare).await.unwrap_err();
    assert!(matches!(error, LookupError::Ordinary { .. }), "{error}");
    let image = Image::new(std::slice::from_ref(&bare), &ImageConfig::default()).unwrap();
    bench.server.content().add_image("a/first", "bare", &image);
    let same = format!("{}/a/first:bare", bench.server.host());
    assert_eq!(bench.lookup(&same, &bare).await.unwrap(), toc(&annotated));
}

/// The most requests that were under way together, by the registry's own clock.
fn at_once(server: &Server) -> usize {
    let records = server.log().records();
    let under_way = |at| {
        let covers = |record: &&Record| record.start <= at && record.end.is_none_or(|end| at < end);
        records.iter().filter(covers).count()
    };
    let starts = records.iter().map(|record| under_way(record.start));
    starts.max().unwrap_or_default()
}

#[tokio::test]
async fn the_place_of_a_toc_is_asked_for_again_and_within_the_bound_on_requests() {
    let bench = Bench::new();
    let layers: Vec<_> = (0..60)
        .map(|number| layer(&format!("layer {number}"), &Lazy::zstd_chunked()))
        .collect();
    let reference = bench.publish("a/many", &layers);
    let status = Fault::Status {
        status: 503,
        retry_after: None,
    };
    let faults = bench.server.faults();
    faults.add(Rule::blob(&layers[7].digest, status).times(2));
    bench.server.set_latency(Duration::from_millis(20));
    assert_eq!(
        bench.lookup(&reference, &layers[7]).await.unwrap(),
        toc(&layers[7])
    );
    assert_eq!(faults.hits(), 2);
    let at_once = at_once(&bench.server);
    // 32, and a few whose end the registry has not noticed yet.
    assert!((2..45).contains(&at_once), "{at_once} requests at once");
}

#[tokio::test]
async fn the_children_of_an_index_are_asked_for_a_few_at_a_time() {
    let bench = Bench::new();
    let layers: Vec<_> = (0..40)
        .map(|number| layer(&format!("platform {number}"), &Lazy::zstd_chunked()))
        .collect();
    let images: Vec<_> = layers
        .iter()
        .map(|layer| Image::new(std::slice::from_ref(layer), &ImageConfig::default()).unwrap())
        .collect();
    let index = Image::index(&images).unwrap();
    bench
        .server
        .content()
        .add_image("a/index", "latest", &index);
    let reference = format!("{}/a/index:latest", bench.server.host());
    bench.server.set_latency(Duration::from_millis(20));
    let last = &layers[39];
    assert_eq!(bench.lookup(&reference, last).await.unwrap(), toc(last));
    let at_once = at_once(&bench.server);
    // 8, and a few whose end the registry has not noticed yet.
    assert!((2..14).contains(&at_once), "{at_once} requests at once");
}

#[tokio::test]
async fn layers_that_share_a_toc_are_refused_however_it_is_found() {
    let bench = Bench::with(config::Lookup {
        probe_unannotated: true,
        ..config::Lookup::default()
    });
    let first = layer("hello", &Lazy::estargz());
    // Another blob with the same TOC: what lies in front of the TOC differs.
    let mut second = first.clone();
    let mut blob = second.blob.to_vec();
    blob[4] ^= 1;
    second.digest = digest(&blob);
    second.blob = blob.into();
    let annotated = bench.publish("a/annotated", &[first.clone(), second.clone()]);
    let bare = [first.clone().unannotated(), second.clone().unannotated()];
    let bare = bench.publish("b/bare", &bare);
    for reference in [annotated, bare] {
        for layer in [&first, &second] {
            let error = bench.lookup(&reference, layer).await.unwrap_err();
            assert!(matches!(error, LookupError::Repeated { .. }), "{error}");
        }
    }
}

#[tokio::test]
async fn an_image_asked_for_now_is_the_newest_under_its_full_name() {
    let bench = Bench::new();
    let (old, new) = (
        layer("old", &Lazy::zstd_chunked()),
        layer("new", &Lazy::zstd_chunked()),
    );
    let full = bench.publish("a/image", std::slice::from_ref(&old));
    let short = full.strip_suffix(":latest").unwrap();
    bench.lookup(&full, &old).await.unwrap();
    for layer in [&new, &old, &new] {
        bench.publish("a/image", std::slice::from_ref(layer));
        let image = bench.images.resolve(short).await.unwrap();
        let blobs: Vec<_> = image.layers.iter().map(|layer| *layer.blob()).collect();
        assert_eq!(blobs, [key(layer)]);
        assert_eq!(image.reference(), full);
    }
    assert_eq!(bench.images.images().len(), 1);
    let requests = bench.server.log().requests();
    bench.lookup(&full, &new).await.unwrap();
    assert_eq!(bench.server.log().requests(), requests, "it is known");
}
