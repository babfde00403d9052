//! What becomes of the starts that are recorded.

use anyhow::Context as _;
use forelayer::control::{Client, RunSummary};
use forelayer_profiler::{
    protocol::{Container, Trace},
    recorder::Output,
};
use tokio::sync::{mpsc, watch};

use crate::cli::{human, recording};

/// How far the containers are that are meant.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Progress {
    pub(super) known: usize,
    pub(super) done: usize,
}

/// Takes what the recorder says, hands every start in and prints what came of those that are meant; how many of these
/// were taken in. The others are learned too: nobody else is told of them while this records.
pub(super) async fn keep(
    client: Client,
    mut outputs: mpsc::Receiver<Output>,
    image: Option<String>,
    progress: watch::Sender<Progress>,
) -> usize {
    let mut runs = 0;
    let is_meant = |name: &str| image.as_ref().is_none_or(|image| same_image(image, name));
    // Where the engine's files do not name the image, the store will, by its layers.
    let meant = |container: &Container| container.image.is_empty() || is_meant(&container.image);
    while let Some(output) = outputs.recv().await {
        match output {
            Output::Attached(window) => recording::answer(&client, window),
            Output::Known(container) => {
                recording::started(&client, &container);
                if meant(&container) {
                    progress.send_modify(|p| p.known += 1);
                } else {
                    eprintln!(
                        "forelayer: not counted: a container of {:?} starts too",
                        container.image
                    );
                }
            }
            Output::Trace(mut trace) if meant(&trace.container) => {
                // The condition is its end.
                trace.cut = false;
                match hand_in(&client, &trace).await {
                    Ok(run) if trace.container.image.is_empty() && !is_meant(&run.image) => {
                        eprintln!("forelayer: not counted: a start of {:?}", run.image);
                    }
                    Ok(run) => {
                        runs += 1;
                        eprint!("{}", summary(&run));
                    }
                    Err(error) => eprintln!("forelayer: {error:#}"),
                }
                progress.send_modify(|p| p.done += 1);
            }
            Output::Trace(trace) => {
                if let Err(error) = hand_in(&client, &trace).await {
                    tracing::warn!("{error:#}");
                }
            }
        }
    }
    runs
}

async fn hand_in(client: &Client, trace: &Trace) -> anyhow::Result<RunSummary> {
    client.hand_in(trace).await.with_context(|| {
        format!(
            "a start of {:?} was recorded and could not be handed in",
            trace.container.image
        )
    })
}

/// Whether a name as people write it means the image that the engine calls `name`.
fn same_image(wanted: &str, name: &str) -> bool {
    let tagged = |text: &str| {
        let last = text.rsplit('/').next().unwrap_or(text);
        if last.contains([':', '@']) {
            text.to_owned()
        } else {
            format!("{text}:latest")
        }
    };
    let (wanted, name) = (tagged(wanted), tagged(name));
    name == wanted || name.ends_with(&format!("/{wanted}"))
}

fn summary(run: &RunSummary) -> String {
    let mut text = format!(
        "{}\n  image {}, workload {}, run {} of {}\n  {} files, {} touched; chunks: {} touched ({}), {} on demand, {} predicted and used, {} late, {} waste ({})\n",
        run.profile.display(),
        run.image,
        run.workload,
        run.run,
        run.runs,
        run.files,
        human(run.touched_bytes),
        run.touched_chunks,
        human(run.touched_chunk_bytes),
        run.demanded_chunks,
        run.used_chunks,
        run.late_chunks,
        run.waste_chunks,
        human(run.waste_bytes),
    );
    if run.lost > 0 {
        text += &format!(
            "  {} events were lost: nothing is learned from what was not seen\n",
            run.lost
        );
    }
    text
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::{sync::Arc, time::Duration};

    use forelayer::{
        control::{
            PrefetchProgress, PrefetchRequest, Status, WitnessHub,
            server::{Backend, Server},
        },
        metrics::Metrics,
    };
    use forelayer_profiler::protocol::{Level, Started};
    use futures_util::{FutureExt as _, future::BoxFuture};
    use parking_lot::Mutex;
    use tokio_util::{sync::CancellationToken, task::TaskTracker};

    use super::*;

    /// A store that only takes in: image, and whether the start was cut short; and hears who started.
    struct Store(
        Arc<Mutex<Vec<(String, bool)>>>,
        mpsc::UnboundedSender<Started>,
    );

    impl Backend for Store {
        fn status(&self) -> Status {
            unreachable!("nobody asks")
        }
        fn started(&self, started: Started) {
            // Nobody may listen any more.
            let _ = self.1.send(started);
        }
        fn take_in(&self, trace: Trace) -> BoxFuture<'static, Result<RunSummary, String>> {
            self.0.lock().push((trace.container.image, trace.cut));
            let summary = serde_json::json!({
                "run": trace.run, "image": "", "workload": "", "profile": "/p", "runs": 1, "files": 0,
                "touched_bytes": 0, "touched_chunks": 0, "touched_chunk_bytes": 0, "demanded_chunks": 0,
                "used_chunks": 0, "late_chunks": 0, "waste_chunks": 0, "predicted_bytes": 0, "waste_bytes": 0, "lost": 0,
            });
            let summary = serde_json::from_value(summary).map_err(|error| error.to_string());
            async { summary }.boxed()
        }
        fn prefetch(
            &self,
            _: PrefetchRequest,
        ) -> BoxFuture<'static, Result<mpsc::Receiver<PrefetchProgress>, String>> {
            unreachable!("nobody asks")
        }
        fn pause_background(&self, _: bool) {}
    }

    fn trace(image: &str) -> Box<Trace> {
        Box::new(Trace {
            run: "ab".repeat(16),
            started_ms: 1,
            level: Level::Tracepoints,
            container: Container {
                image: image.to_owned(),
                ..Container::default()
            },
            touches: Vec::new(),
            opens: Vec::new(),
            execs: Vec::new(),
            lost: 0,
            cut: true,
        })
    }

    #[tokio::test]
    async fn every_start_is_handed_in_and_those_meant_are_counted() {
        let place = tempfile::tempdir().unwrap();
        let socket = place.path().join("control.sock");
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let taken = Arc::default();
        let (hears, mut heard) = mpsc::unbounded_channel();
        let metrics = Arc::new(Metrics::new());
        let server = Server {
            backend: Arc::new(Store(Arc::clone(&taken), hears)),
            hub: Arc::new(WitnessHub::new(Duration::ZERO, Arc::clone(&metrics))),
            metrics,
        };
        server.listen(&socket, stop.clone(), &tasks).unwrap();
        let (out, outputs) = mpsc::channel(8);
        let (progress, progressed) = watch::channel(Progress::default());
        for image in ["h/other:1", "h/app:1"] {
            let trace = trace(image);
            out.send(Output::Known(trace.container.clone()))
                .await
                .unwrap();
            out.send(Output::Trace(trace)).await.unwrap();
        }
        drop(out);
        let client = Client::new(&socket).unwrap();
        let runs = keep(client, outputs, Some("app:1".to_owned()), progress).await;
        assert_eq!(runs, 1);
        let wanted = [
            ("h/other:1".to_owned(), true),
            ("h/app:1".to_owned(), false),
        ];
        assert_eq!(*taken.lock(), wanted);
        let Progress { known, done } = *progressed.borrow();
        assert_eq!((known, done), (1, 1));
        // Each is told on a connection of its own.
        let mut started = vec![heard.recv().await, heard.recv().await];
        started.sort_by_key(|started| started.as_ref().map(|s| s.image.clone()));
        let wanted =
            ["h/app:1", "h/other:1"].map(|image| Some(Started::of(&trace(image).container)));
        assert_eq!(started, wanted);
        stop.cancel();
    }

    #[test]
    fn names_are_matched_as_people_write_them() {
        for (wanted, name) in [
            ("python", "docker.io/library/python:latest"),
            ("python:3", "docker.io/library/python:3"),
            ("library/python:3", "docker.io/library/python:3"),
            ("127.0.0.1:5000/app", "127.0.0.1:5000/app:latest"),
            ("127.0.0.1:5000/app:latest", "127.0.0.1:5000/app"),
        ] {
            assert!(same_image(wanted, name), "{wanted} {name}");
        }
        for (wanted, name) in [
            ("python:3", "docker.io/library/python:latest"),
            ("thon:3", "docker.io/library/python:3"),
            ("python", ""),
        ] {
            assert!(!same_image(wanted, name), "{wanted} {name}");
        }
    }
}
