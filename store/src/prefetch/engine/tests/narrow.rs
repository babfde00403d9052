//! Plans while the command of their container becomes known.

use forelayer_profiler::{model::workload, protocol::Started};
use tokio::sync::watch;

use super::*;
use crate::prefetch::engine::owner::fetch;

/// Says what it is asked for, and ends no plan before it is let go.
struct Holder {
    told: Told,
    go: watch::Receiver<bool>,
}

impl Lanes for Holder {
    fn predict(&self, plan: Plan) -> BoxFuture<'static, PlanOutcome> {
        let (told, mut go) = (self.told.clone(), self.go.clone());
        Box::pin(async move {
            let steps = (plan.steps.iter())
                .map(|step| (step.layer.slot, step.chunk))
                .collect();
            told.send((plan.name, steps)).unwrap();
            // The sender may be gone with its test.
            let _ = go.wait_for(|go| *go).await;
            PlanOutcome::default()
        })
    }
    fn arrivals(&self, _: &Layer) -> Vec<Arrival> {
        Vec::new()
    }
    fn unplanned(&self, _: &Arc<Layer>) {}
    fn forget_arrivals(&self, _: &Layer) {}
    fn ahead(&self, _: &str, _: &EarlyRequests) -> Option<Ahead> {
        None
    }
}

/// Two workloads of an image are known: `app` and `sh`, which share a library.
async fn two_workloads() -> (Case, watch::Sender<bool>) {
    let (let_go, go) = watch::channel(false);
    let images = |layer: &Arc<Layer>, _: &Arc<Layer>| {
        vec![("h/image:1".to_owned(), vec![Arc::clone(layer)])]
    };
    let lanes = |told| Arc::new(Holder { told, go }) as Arc<dyn Lanes>;
    let case = start_on(config::Prefetch::default(), images, lanes);
    for (run, command, program) in [(1, "app", "bin/app"), (2, "sh", "bin/other")] {
        let mut trace = trace(&case.layer, run, &["lib/libc", program]);
        trace.container.command = vec![command.to_owned()];
        case.prefetcher.take_in(trace).await.unwrap();
    }
    (case, let_go)
}

fn started(command: &str) -> Started {
    Started {
        slots: vec![9],
        image: "h/image:1".to_owned(),
        workload: workload(&[command.to_owned()]),
    }
}

impl Case {
    /// The paths of the next plan, sorted.
    async fn planned(&mut self) -> Vec<&'static str> {
        let (name, steps) = self.plans.recv().await.unwrap();
        assert_eq!(
            name, "h/image:1",
            "a plan of another name takes nobody's place"
        );
        let mut paths: Vec<_> = ["bin/app", "bin/other", "lib/libc", "unused"]
            .into_iter()
            .filter(|path| steps.contains(&(9, chunk(&self.layer, path, 0))))
            .collect();
        paths.sort_unstable();
        assert_eq!(paths.len(), steps.len());
        paths
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_is_narrowed_to_what_starts() {
    let (mut case, _let_go) = two_workloads().await;
    case.prefetcher
        .resolved("h/image:1", &[Arc::clone(&case.layer)]);
    case.prefetcher.mounted(9);
    assert_eq!(case.planned().await, ["bin/app", "bin/other", "lib/libc"]);
    case.prefetcher.started(started("sh"));
    assert_eq!(case.planned().await, ["bin/other", "lib/libc"]);
    // What was given up and never fetched is neither used nor waste.
    let mut of_sh = trace(&case.layer, 3, &["lib/libc", "bin/other"]);
    of_sh.container.command = vec!["sh".to_owned()];
    let account = case.prefetcher.take_in(of_sh).await.unwrap();
    assert_eq!((account.predicted_bytes, account.waste_chunks), (8192, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workload_that_no_profile_knows_leaves_the_plan() {
    let (mut case, _let_go) = two_workloads().await;
    // Of layers that nothing is planned for, it changes nothing either.
    case.prefetcher.started(started("app"));
    case.prefetcher.mounted(9);
    assert_eq!(case.planned().await.len(), 3);
    case.prefetcher.started(started("unheard of"));
    case.prefetcher.mounted(9);
    case.prefetcher.started(started("app"));
    // The first thing that is planned after that is by another request.
    case.prefetcher
        .request(PrefetchRequest {
            reference: "h/image:1".to_owned(),
            all: false,
        })
        .await
        .unwrap();
    let (name, _) = case.plans.recv().await.unwrap();
    assert_eq!(name, "forelayer prefetch h/image:1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_that_start_together_are_waited_for() {
    let (mut case, _let_go) = two_workloads().await;
    let app = ["app", "app"].map(started);
    case.prefetcher.mounted(9);
    case.prefetcher.mounted(9);
    assert_eq!(case.planned().await.len(), 3);
    for started in app {
        case.prefetcher.started(started);
    }
    assert_eq!(
        case.planned().await,
        ["bin/app", "lib/libc"],
        "narrowed once, when both had said what they run"
    );
    // The next one may run anything: the plan is wide again, and then what all three run.
    case.prefetcher.mounted(9);
    assert_eq!(case.planned().await.len(), 3);
    case.prefetcher.started(started("sh"));
    assert_eq!(case.planned().await, ["bin/app", "bin/other", "lib/libc"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_that_ended_is_over() {
    let (mut case, let_go) = two_workloads().await;
    let_go.send(true).unwrap();
    let (told, _kept) = mpsc::unbounded_channel();
    let lanes = Arc::new(Holder {
        told,
        go: let_go.subscribe(),
    });
    let (replace, replaced) = mpsc::unbounded_channel();
    let plan = |name: &str| Plan {
        name: name.to_owned(),
        steps: Vec::new(),
    };
    fetch(lanes, plan("h/image:1"), replaced).await;
    assert!(
        replace.send(plan("h/image:1")).is_err(),
        "nobody carries it out"
    );
    // And a start of it is learned as ever.
    case.prefetcher.mounted(9);
    assert_eq!(case.planned().await.len(), 3);
    case.prefetcher.started(started("sh"));
    let last = trace(&case.layer, 3, &["lib/libc"]);
    case.prefetcher.take_in(last).await.unwrap();
}
