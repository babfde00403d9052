//! The only place where the parts of the store are put together, started and stopped.
//!
//! Order matters in both directions: what is asked for comes up before who asks, and goes down after it.

mod backend;
mod hooks;

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    als,
    cache::{Cache, CacheError},
    config::Config,
    control::{WitnessHub, server::Server},
    fetch::Fetcher,
    image::{Images, LookupError},
    metrics::Metrics,
    mount::{
        MountError, Mounts, Paths,
        client::{self, HolderCommand},
    },
    prefetch::{self, Prefetcher},
    registry::{self, RegistryError},
};
use forelayer_profiler::{profiles::ProfileError, protocol::StoreEvent};

/// How long the whole stop may take; who calls it waits for 5 s.
const STOP_WAIT: Duration = Duration::from_millis(4500);
/// Of that, what pages on their way into the page cache may take.
const PAGES_WAIT: Duration = Duration::from_secs(1);

/// What the process knows and the configuration does not say.
#[derive(Debug, Clone)]
pub struct Environment {
    /// This program: the warmer is started from it.
    pub program: PathBuf,
    /// How a holder is started where none runs; `None`: not at all.
    pub holder: Option<HolderCommand>,
    /// Files with credentials where the configuration names none.
    pub auth_files: Vec<PathBuf>,
}

/// Why the store could not be started or had to end.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The cache.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// Records.
    #[error(transparent)]
    Images(#[from] LookupError),
    /// The registry client.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The mounts.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The profiles.
    #[error(transparent)]
    Profiles(#[from] ProfileError),
    /// A socket.
    #[error("cannot listen on {what}: {source}")]
    Listen {
        /// Path or address.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file of the state directory.
    #[error("cannot {what} {path}: {source}")]
    State {
        /// The operation.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The scheduler is gone; nothing that is not here yet can be read.
    #[error("the fetcher ended; its message is above. Start the store again")]
    FetcherEnded,
    /// Somebody unmounted it.
    #[error(
        "the {mount} mount ended: {why}; running containers lose its layers. Start the store again"
    )]
    MountEnded {
        /// Which one.
        mount: &'static str,
        /// Why.
        why: String,
    },
}

/// Runs the store until `stop`.
///
/// # Errors
/// It cannot be started, or a mount ended under it.
pub async fn run(
    mut config: Config,
    environment: Environment,
    stop: CancellationToken,
) -> Result<(), DaemonError> {
    if config.registry.auth_files.is_empty() {
        config
            .registry
            .auth_files
            .clone_from(&environment.auth_files);
    }
    make_dir(&config.state_dir)?;
    make_dir(&config.run_dir)?;
    // The mounts before anything of the state is opened: they are what only one store at a time can have.
    let paths = Paths::new(&config);
    let holder = environment.holder.clone();
    let mut mounts = Some(blocking(move || client::connect(&paths, holder.as_ref())).await??);
    let outcome = with_mounts(config, environment, stop, &mut mounts).await;
    if let Some(mounts) = mounts {
        // It went wrong before they were stopped: mounts that nobody serves would hang every engine.
        stop_mounts(mounts).await?;
    }
    outcome
}

/// Everything of [`run`] that needs the mounts; takes them when it stops them.
async fn with_mounts(
    config: Config,
    environment: Environment,
    stop: CancellationToken,
    mounts: &mut Option<Mounts>,
) -> Result<(), DaemonError> {
    let devices = mounts
        .as_ref()
        .map(Mounts::data_devices)
        .unwrap_or_default();
    let metrics = Arc::new(Metrics::new());
    let cache = Arc::new(Cache::open(&config.state_dir)?);
    let client = registry::Client::new(&config.registry, Arc::clone(&metrics))?;
    let images = Arc::new(Images::open(
        &config.state_dir,
        &config.lookup,
        &config.limits,
        Arc::clone(&cache),
        client.clone(),
        Arc::clone(&metrics),
    )?);
    // The parts that others still need while they stop have a token of their own.
    let fetch_stop = CancellationToken::new();
    let fetcher = Fetcher::start(
        &config.fetch,
        client,
        Arc::clone(&metrics),
        fetch_stop.clone(),
    )
    .map_err(|source| DaemonError::State {
        what: "start the threads of",
        path: PathBuf::from("the fetcher"),
        source,
    })?;

    let hub = Arc::new(WitnessHub::new(
        config.witness.attach_wait,
        Arc::clone(&metrics),
    ));
    let names = Arc::new(prefetch::NameLog::default());
    let hooks = Arc::new(hooks::Hooks::new(Arc::clone(&hub), Arc::clone(&names)));
    let parts = als::Parts {
        images: Arc::clone(&images),
        fetcher: fetcher.clone(),
        metrics: Arc::clone(&metrics),
        hooks: Arc::clone(&hooks) as Arc<dyn als::Hooks>,
        runtime: tokio::runtime::Handle::current(),
        state_dir: config.state_dir.clone(),
        attach_wait: config.witness.attach_wait,
    };
    let Some(held) = mounts.take() else {
        return Ok(());
    };
    let (served, held) = blocking(move || (als::serve(parts, &held), held)).await?;
    *mounts = Some(held);
    let served = served?;
    hub.set_hello(StoreEvent::Hello {
        devices,
        layers_dir: config.layers_dir(),
    });

    let prefetcher = Prefetcher::start(
        prefetch::Parts {
            library: Arc::clone(&images) as Arc<dyn prefetch::Library>,
            lanes: Arc::new(fetcher.clone()),
            pages: Some(Arc::new(served.warm.clone())),
            names,
            profiles_dir: config.profiles_dir(),
            early_dir: config.early_dir(),
            layers_dir: config.layers_dir(),
            program: environment.program.clone(),
            config: config.prefetch.clone(),
            max_window: config.witness.max_window,
            metrics: Arc::clone(&metrics),
        },
        stop.clone(),
    )?;
    hooks.set_prefetcher(prefetcher.clone());
    follow(&images, &fetcher, &prefetcher, config.fetch.background);

    let tasks = TaskTracker::new();
    let backend = backend::Backend::new(
        Arc::clone(&images),
        fetcher.clone(),
        prefetcher,
        Arc::clone(&hub),
        &config,
    );
    let server = Server {
        backend: Arc::new(backend),
        hub,
        metrics,
    };
    let socket = config.control_socket();
    server
        .clone()
        .listen(&socket, stop.clone(), &tasks)
        .map_err(|source| DaemonError::Listen {
            what: socket.display().to_string(),
            source,
        })?;
    if let Some(address) = config.metrics.listen {
        let listen = server.listen_metrics(address, stop.clone(), &tasks).await;
        listen.map_err(|source| DaemonError::Listen {
            what: format!("{address} (key metrics.listen; \"\" switches the page off)"),
            source,
        })?;
    }
    tracing::info!(store = %config.store_dir().display(), layers = images.layers().len(), "ready");
    notify(&[sd_notify::NotifyState::Ready]);
    watchdog(&tasks, &stop);

    let outcome = tokio::select! {
        () = stop.cancelled() => Ok(()),
        (mount, why) = served.ended() => Err(DaemonError::MountEnded { mount: mount.as_str(), why }),
        () = fetcher.stopped() => Err(DaemonError::FetcherEnded),
    };
    notify(&[sd_notify::NotifyState::Stopping]);
    let deadline = tokio::time::Instant::now() + STOP_WAIT;
    stop.cancel();
    tasks.close();
    // A third of the time for each of those that others may hold up.
    if tokio::time::timeout(STOP_WAIT / 3, tasks.wait())
        .await
        .is_err()
    {
        tracing::warn!("some connections of the control socket did not end in time");
    }
    served.warm.close(PAGES_WAIT).await;
    // First the mounts: while they are served, somebody may wait for a chunk.
    if let Some(mounts) = mounts.take() {
        stop_mounts(mounts).await?;
    }
    fetch_stop.cancel();
    if tokio::time::timeout_at(deadline, fetcher.stopped())
        .await
        .is_err()
    {
        tracing::warn!("the fetcher did not end in time; chunks under way are fetched again");
    }
    blocking(move || cache.close()).await??;
    tracing::info!("stopped");
    outcome
}

async fn stop_mounts(mounts: Mounts) -> Result<(), DaemonError> {
    if let Err(error) = blocking(move || mounts.stop()).await? {
        tracing::warn!(%error, "the mounts stay");
    }
    Ok(())
}

/// What happens when an engine looks an image up, or is about to: its plan starts, and when it does, the rest follows.
fn follow(images: &Arc<Images>, fetcher: &Fetcher, prefetcher: &Prefetcher, background: bool) {
    if background {
        // Also what an earlier life of the store left unfinished.
        for image in images.images() {
            image
                .layers
                .iter()
                .for_each(|layer| fetcher.background(layer));
        }
    }
    let searcher = prefetcher.clone();
    images.on_search(Box::new(move |reference, key| {
        searcher.searched(reference, key);
    }));
    let (fetcher, prefetcher) = (fetcher.clone(), prefetcher.clone());
    images.on_lookup(Box::new(move |image, asked| {
        prefetcher.resolved(image.reference(), &image.layers);
        if background && asked {
            image
                .layers
                .iter()
                .for_each(|layer| fetcher.background(layer));
        }
    }));
}

/// Tells the service manager at half its patience that this runtime still turns.
fn watchdog(tasks: &TaskTracker, stop: &CancellationToken) {
    let Some(patience) = sd_notify::watchdog_enabled() else {
        return;
    };
    let stop = stop.clone();
    tasks.spawn(async move {
        let mut beat = tokio::time::interval(patience / 2);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = beat.tick() => notify(&[sd_notify::NotifyState::Watchdog]),
            }
        }
    });
}

fn notify(state: &[sd_notify::NotifyState<'_>]) {
    // Without a service manager there is nobody to tell; with one, its own timeout reports what went wrong.
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, DaemonError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| DaemonError::State {
            what: "finish work on",
            path: PathBuf::from("the state directory"),
            source: io::Error::other(error),
        })
}

/// Only root may look into it: layers hold what their images hold.
fn make_dir(path: &std::path::Path) -> Result<(), DaemonError> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| DaemonError::State {
            what: "make",
            path: path.to_owned(),
            source,
        })
}
