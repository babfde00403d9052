#![expect(clippy::unwrap_used, reason = "tests")]

mod commands;
mod narrow;

use forelayer_profiler::protocol::{Access, Container, Level, Touch};
use tempfile::TempDir;

use super::*;
use crate::{
    als::inode::Inode,
    metrics::{ByOutcome, Lane, Outcome},
    prefetch::testing::{Item, Place, bring, chunk, node, small},
};

const ITEMS: fn() -> Vec<Item> = || {
    vec![
        small("bin/app"),
        small("bin/other"),
        small("lib/libc"),
        small("unused"),
    ]
};

/// The images, and who is told of those that are expected.
struct Shelf(
    Vec<(String, Vec<Arc<Layer>>)>,
    mpsc::UnboundedSender<(String, Digest)>,
);

impl Library for Shelf {
    fn layer(&self, slot: u32) -> Option<Arc<Layer>> {
        self.0
            .iter()
            .flat_map(|(_, layers)| layers)
            .find(|layer| layer.slot == slot)
            .cloned()
    }
    fn images(&self) -> Vec<(String, Vec<Arc<Layer>>)> {
        self.0.clone()
    }
    fn resolve(
        self: Arc<Self>,
        reference: String,
    ) -> BoxFuture<'static, Result<Vec<Arc<Layer>>, String>> {
        let found = self
            .0
            .iter()
            .find(|(name, _)| *name == reference)
            .map(|(_, layers)| layers.clone());
        Box::pin(async move { found.ok_or_else(|| format!("no image {reference}")) })
    }
    fn knows(&self, reference: &str) -> bool {
        self.0.iter().any(|(name, _)| name == reference)
    }
    fn expect(self: Arc<Self>, reference: String, key: Digest) -> BoxFuture<'static, bool> {
        self.1.send((reference, key)).unwrap();
        Box::pin(async { false })
    }
    fn metadata(&self, _: &str) -> Option<Metadata> {
        None
    }
}

/// Brings what it is asked for at once and says so.
struct Bringer(mpsc::UnboundedSender<(String, Vec<(u32, u32)>)>);

impl Lanes for Bringer {
    fn predict(&self, plan: Plan) -> BoxFuture<'static, PlanOutcome> {
        let told = self.0.clone();
        Box::pin(async move {
            for step in &plan.steps {
                bring(&step.layer, step.chunk, &ITEMS());
            }
            let steps = plan
                .steps
                .iter()
                .map(|step| (step.layer.slot, step.chunk))
                .collect();
            told.send((plan.name, steps)).unwrap();
            PlanOutcome::default()
        })
    }
    fn arrivals(&self, layer: &Layer) -> Vec<Arrival> {
        let other = chunk(layer, "bin/other", 0);
        vec![Arrival {
            chunk: other,
            lane: Lane::Demand,
            late: false,
        }]
    }
    fn unplanned(&self, _: &Arc<Layer>) {}
    fn forget_arrivals(&self, _: &Layer) {}
    fn ahead(&self, reference: &str, _: &EarlyRequests) -> Option<Ahead> {
        self.0
            .send((format!("early {reference}"), Vec::new()))
            .unwrap();
        None
    }
}

struct Case {
    place: Place,
    profiles: TempDir,
    layer: Arc<Layer>,
    base: Arc<Layer>,
    prefetcher: Prefetcher,
    plans: mpsc::UnboundedReceiver<(String, Vec<(u32, u32)>)>,
    expected: mpsc::UnboundedReceiver<(String, Digest)>,
    metrics: Arc<Metrics>,
    _stop: tokio_util::sync::DropGuard,
}

fn start(config: config::Prefetch) -> Case {
    start_with(config, |layer, _| {
        vec![("h/image:1".to_owned(), vec![Arc::clone(layer)])]
    })
}

type Images = Vec<(String, Vec<Arc<Layer>>)>;

/// With images made of two layers of the same files, in slots 9 and 4.
fn start_with(
    config: config::Prefetch,
    images: impl Fn(&Arc<Layer>, &Arc<Layer>) -> Images,
) -> Case {
    start_on(config, images, |told| Arc::new(Bringer(told)))
}

/// What plans are asked for: name, and slots and chunks.
type Told = mpsc::UnboundedSender<(String, Vec<(u32, u32)>)>;

fn start_on(
    config: config::Prefetch,
    images: impl Fn(&Arc<Layer>, &Arc<Layer>) -> Images,
    lanes: impl FnOnce(Told) -> Arc<dyn Lanes>,
) -> Case {
    let place = Place::new();
    let profiles = tempfile::tempdir().unwrap();
    let layer = place.layer(9, &ITEMS());
    let base = place.layer(4, &ITEMS());
    let (told, plans) = mpsc::unbounded_channel();
    let (expects, expected) = mpsc::unbounded_channel();
    let metrics = Arc::new(Metrics::new());
    let stop = CancellationToken::new();
    let parts = Parts {
        library: Arc::new(Shelf(images(&layer, &base), expects)),
        lanes: lanes(told),
        pages: None,
        names: Arc::default(),
        profiles_dir: profiles.path().to_owned(),
        early_dir: profiles.path().join("early"),
        layers_dir: "/layers".into(),
        program: "/no/warmer".into(),
        config,
        max_window: Duration::from_secs(600),
        metrics: Arc::clone(&metrics),
    };
    let prefetcher = Prefetcher::start(parts, stop.clone()).unwrap();
    Case {
        place,
        profiles,
        layer,
        base,
        prefetcher,
        plans,
        expected,
        metrics,
        _stop: stop.drop_guard(),
    }
}

fn trace(layer: &Layer, run: u64, paths: &[&str]) -> Trace {
    Trace {
        run: format!("{run:032x}"),
        started_ms: run,
        level: Level::Tracepoints,
        container: Container {
            image: "h/image:1".to_owned(),
            command: vec!["app".to_owned()],
            slots: vec![9],
            ..Container::default()
        },
        touches: (paths.iter().zip(0..))
            .map(|(path, at_us)| Touch {
                ino: Inode::Node(layer.slot, node(layer, path)).number().unwrap(),
                page: 0,
                pages: 1,
                at_us,
                access: Access::Read,
            })
            .collect(),
        opens: Vec::new(),
        execs: Vec::new(),
        lost: 0,
        cut: false,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_builder_put_first_is_fetched_where_nothing_was_learned() {
    let mut case = start(config::Prefetch::default());
    let items = [small("lib/libc"), Item::Landmark, small("bin/app")];
    let marked = case.place.layer(7, &items);
    case.prefetcher
        .resolved("h/new:1", std::slice::from_ref(&marked));
    let (name, steps) = case.plans.recv().await.unwrap();
    assert_eq!(name, "h/new:1");
    assert_eq!(steps, [(7, chunk(&marked, "lib/libc", 0))]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_start_teaches_the_next() {
    let mut case = start(config::Prefetch::default());
    let layers = [Arc::clone(&case.layer)];
    case.prefetcher.resolved("h/image:1", &layers);
    case.prefetcher.mounted(9);
    let first = case
        .prefetcher
        .take_in(trace(&case.layer, 1, &["lib/libc", "bin/app"]))
        .await
        .unwrap();
    assert_eq!(
        (
            first.runs,
            first.files,
            first.touched_chunks,
            first.predicted_bytes
        ),
        (1, 2, 2, 0)
    );
    assert_eq!(first.touched_bytes, 8192);
    assert!(first.profile.starts_with(case.profiles.path()) && first.profile.exists());
    assert!(
        case.plans.try_recv().is_err(),
        "nothing was known, so nothing was predicted"
    );

    // A pull under another name, and its mount: one plan.
    case.prefetcher.resolved("mirror/image:2", &layers);
    let (name, steps) = case.plans.recv().await.unwrap();
    assert_eq!(name, "mirror/image:2");
    assert_eq!(
        steps,
        [
            (9, chunk(&case.layer, "lib/libc", 0)),
            (9, chunk(&case.layer, "bin/app", 0))
        ]
    );
    case.prefetcher.mounted(9);
    let second = case
        .prefetcher
        .take_in(trace(&case.layer, 2, &["lib/libc", "bin/other"]))
        .await
        .unwrap();
    assert_eq!(
        (
            second.runs,
            second.used_chunks,
            second.late_chunks,
            second.waste_chunks
        ),
        (2, 1, 0, 1)
    );
    assert_eq!(
        (
            second.predicted_bytes,
            second.waste_bytes,
            second.demanded_chunks
        ),
        (8192, 4096, 1)
    );
    assert!(
        case.plans.try_recv().is_err(),
        "the mount of the same start plans nothing new"
    );
    let wasted = case
        .metrics
        .predicted_bytes
        .get_or_create(&ByOutcome {
            outcome: Outcome::Waste,
        })
        .get();
    assert_eq!(wasted, 4096);
    let text = std::fs::read_to_string(second.profile).unwrap();
    assert!(
        text.contains(r#""predicted_unused": ["#) && text.contains("bin/app"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_mount_alone_starts_a_plan() {
    let mut case = start(config::Prefetch::default());
    case.prefetcher
        .take_in(trace(&case.layer, 1, &["bin/app"]))
        .await
        .unwrap();
    case.prefetcher.mounted(9);
    let (name, steps) = case.plans.recv().await.unwrap();
    assert_eq!(
        (name.as_str(), steps),
        ("h/image:1", vec![(9, chunk(&case.layer, "bin/app", 0))])
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_imported_while_the_store_runs_predicts_the_next_start() {
    let elsewhere = start(config::Prefetch::default());
    let learned = elsewhere
        .prefetcher
        .take_in(trace(&elsewhere.layer, 1, &["bin/app"]))
        .await
        .unwrap();
    let text = std::fs::read(learned.profile).unwrap();
    let mut case = start(config::Prefetch::default());
    let mut dir = ProfileDir::open(case.profiles.path()).unwrap();
    for profile in forelayer_profiler::profiles::bundle::read(&text, 1).unwrap() {
        dir.import(profile, 8).unwrap();
    }
    case.prefetcher.mounted(9);
    let (_, steps) = case.plans.recv().await.unwrap();
    assert_eq!(steps, [(9, chunk(&case.layer, "bin/app", 0))]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn switched_off_it_learns_and_predicts_nothing() {
    let mut case = start(config::Prefetch {
        enabled: false,
        ..config::Prefetch::default()
    });
    case.prefetcher
        .take_in(trace(&case.layer, 1, &["bin/app"]))
        .await
        .unwrap();
    case.prefetcher
        .resolved("h/image:1", &[Arc::clone(&case.layer)]);
    let second = case
        .prefetcher
        .take_in(trace(&case.layer, 2, &["bin/app"]))
        .await
        .unwrap();
    assert_eq!((second.runs, second.predicted_bytes), (2, 0));
    assert!(case.plans.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prefetching_on_request_reports_progress_to_the_end() {
    let mut case = start(config::Prefetch::default());
    let request = |all| PrefetchRequest {
        reference: "h/image:1".to_owned(),
        all,
    };
    let error = case.prefetcher.request(request(false)).await.unwrap_err();
    assert!(
        error.contains("h/image:1") && error.contains("--all"),
        "{error}"
    );
    let unknown = PrefetchRequest {
        reference: "h/none".to_owned(),
        all: false,
    };
    assert!(case.prefetcher.request(unknown).await.is_err());

    case.prefetcher
        .take_in(trace(&case.layer, 1, &["bin/app"]))
        .await
        .unwrap();
    for (all, chunks) in [(false, 1), (true, 3), (true, 0)] {
        let mut lines = case.prefetcher.request(request(all)).await.unwrap();
        let mut last = PrefetchProgress::default();
        while let Some(line) = lines.recv().await {
            last = line;
        }
        let bytes = chunks * 4096;
        let whole = PrefetchProgress {
            done_chunks: chunks,
            chunks,
            done_bytes: bytes,
            bytes,
            finished: true,
            error: None,
        };
        assert_eq!(last, whole);
        case.plans.recv().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_of_nothing_known_is_refused_and_harms_nothing() {
    let case = start(config::Prefetch::default());
    let mut stranger = trace(&case.layer, 1, &["bin/app"]);
    stranger.container.slots = vec![5];
    assert!(
        case.prefetcher
            .take_in(stranger)
            .await
            .unwrap_err()
            .contains("no layer")
    );
    case.prefetcher
        .take_in(trace(&case.layer, 2, &["bin/app"]))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lowers_of_one_mount_are_one_start() {
    // Another image with more layers: the set is not complete when the first two are known.
    let mut case = start_with(config::Prefetch::default(), |top, base| {
        vec![
            ("h/top:1".to_owned(), vec![Arc::clone(top)]),
            (
                "h/both:1".to_owned(),
                vec![Arc::clone(base), Arc::clone(top)],
            ),
        ]
    });
    let both = |run, image: &str| {
        let mut trace = trace(&case.layer, run, &["bin/app"]);
        trace.container.image = image.to_owned();
        trace.container.slots = vec![9, 4];
        let on_base = Touch {
            ino: Inode::Node(4, node(&case.base, "lib/libc"))
                .number()
                .unwrap(),
            ..trace.touches[0]
        };
        trace.touches.push(on_base);
        trace
    };
    let (first, second) = (both(1, "h/both:1"), both(2, "h/both:1"));
    case.prefetcher.take_in(first).await.unwrap();
    case.prefetcher.mounted(9);
    case.prefetcher.mounted(4);
    let (name, mut steps) = case.plans.recv().await.unwrap();
    steps.sort_unstable();
    assert_eq!(name, "h/both:1");
    assert_eq!(
        steps,
        [
            (4, chunk(&case.base, "lib/libc", 0)),
            (9, chunk(&case.layer, "bin/app", 0))
        ]
    );
    let account = case.prefetcher.take_in(second).await.unwrap();
    assert_eq!((account.used_chunks, account.waste_chunks), (2, 0));
    assert!(case.plans.try_recv().is_err(), "one mount, one plan");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_never_started_is_predicted_from_its_sister_until_its_own_start() {
    let mut case = start_with(config::Prefetch::default(), |top, base| {
        vec![
            ("h/base:1".to_owned(), vec![Arc::clone(base)]),
            (
                "h/new:1".to_owned(),
                vec![Arc::clone(base), Arc::clone(top)],
            ),
        ]
    });
    let mut of_base = trace(&case.base, 1, &["lib/libc", "bin/other"]);
    of_base.container.image = "h/base:1".to_owned();
    of_base.container.slots = vec![4];
    case.prefetcher.take_in(of_base).await.unwrap();
    let layers = [Arc::clone(&case.base), Arc::clone(&case.layer)];
    case.prefetcher.resolved("h/new:1", &layers);
    let (_, steps) = case.plans.recv().await.unwrap();
    let in_base = |path| (4, chunk(&case.base, path, 0));
    assert_eq!(steps, [in_base("lib/libc"), in_base("bin/other")]);

    case.prefetcher.mounted(9);
    case.prefetcher.mounted(4);
    let mut own = trace(&case.layer, 2, &["bin/app"]);
    own.container.image = "h/new:1".to_owned();
    own.container.slots = vec![9, 4];
    let account = case.prefetcher.take_in(own).await.unwrap();
    assert_eq!((account.used_chunks, account.waste_chunks), (0, 2));
    let request = PrefetchRequest {
        reference: "h/new:1".to_owned(),
        all: false,
    };
    drop(case.prefetcher.request(request).await.unwrap());
    let (_, steps) = case.plans.recv().await.unwrap();
    assert_eq!(
        steps,
        [(9, chunk(&case.layer, "bin/app", 0))],
        "what the sister wasted is not predicted again"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mount_that_is_seen_in_part_does_not_end_the_plan_of_its_image() {
    let mut case = start_with(config::Prefetch::default(), |top, base| {
        let layers = vec![Arc::clone(base), Arc::clone(top)];
        vec![("h/both:1".to_owned(), layers)]
    });
    let mut first = trace(&case.layer, 1, &["bin/app"]);
    first.container.image = "h/both:1".to_owned();
    first.container.slots = vec![9, 4];
    case.prefetcher.take_in(first).await.unwrap();
    // The other lower is not asked for in time. A plan takes the place of one of the same name.
    case.prefetcher.mounted(9);
    let (name, steps) = case.plans.recv().await.unwrap();
    assert_eq!(name, "h/both:1 (layers in slots 9)");
    assert_eq!(steps, [(9, chunk(&case.layer, "bin/app", 0))]);
}

/// Says of which layers nothing is planned; is never asked for a plan.
struct Idle(Told);

impl Lanes for Idle {
    fn predict(&self, plan: Plan) -> BoxFuture<'static, PlanOutcome> {
        unreachable!("a plan of {} steps", plan.steps.len())
    }
    fn unplanned(&self, layer: &Arc<Layer>) {
        self.0.send((String::new(), vec![(layer.slot, 0)])).unwrap();
    }
    fn arrivals(&self, _: &Layer) -> Vec<Arrival> {
        Vec::new()
    }
    fn forget_arrivals(&self, _: &Layer) {}
    fn ahead(&self, _: &str, _: &EarlyRequests) -> Option<Ahead> {
        None
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_plan_is_told_that_none_comes() {
    let off = config::Prefetch {
        enabled: false,
        ..config::Prefetch::default()
    };
    for config in [config::Prefetch::default(), off] {
        let images = |top: &Arc<Layer>, base: &Arc<Layer>| -> Images {
            let layers = vec![Arc::clone(base), Arc::clone(top)];
            vec![("h/new:1".to_owned(), layers)]
        };
        let mut case = start_on(config, images, |told| Arc::new(Idle(told)));
        let layers = [Arc::clone(&case.base), Arc::clone(&case.layer)];
        case.prefetcher.resolved("h/new:1", &layers);
        let mut slots = Vec::new();
        for _ in 0..2 {
            let told = tokio::time::timeout(Duration::from_secs(20), case.plans.recv());
            let (_, steps) = told.await.expect("it is not told").unwrap();
            slots.push(steps[0].0);
        }
        slots.sort_unstable();
        assert_eq!(slots, [4, 9]);
    }
}
