//! One start in one of the modes, from the pull to ready.

use std::{
    env,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, bail, ensure};
use forelayer::config::Config;
use serde::Serialize;
use tokio::time::timeout;

use super::{
    Args,
    counts::Counts,
    limit::{self, Limit},
    link::Link,
    podman::Podman,
    ready::ready,
    store::Store,
    tool,
};

/// How long a recorded start may take to be learned after its container's end.
const LEARN: Duration = Duration::from_secs(60);
/// Programs that a node has in memory before any container starts; those that are installed.
const RESIDENT: [&str; 4] = ["podman", "conmon", "crun", "runc"];

/// How the image is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Mode {
    Full,
    Local,
    Unlearned,
    Learned,
}

impl Mode {
    /// In the order in which they take turns: each of the latter two pairs needs its first.
    pub(super) const ALL: [Self; 4] = [Self::Full, Self::Local, Self::Unlearned, Self::Learned];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Local => "local",
            Self::Unlearned => "unlearned",
            Self::Learned => "learned",
        }
    }
}

/// What a start took, in seconds from the beginning of the pull; of a local one, of the run.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Start {
    pub(super) mode: Mode,
    /// The end of the pull, where there was one.
    pub(super) pulled: Option<f64>,
    pub(super) ready: f64,
    /// Compressed bytes of layers; none where they are not known.
    pub(super) bytes: Option<u64>,
    /// What the store says of it.
    pub(super) store: Option<Counts>,
}

/// Everything that starts need.
#[derive(Debug)]
pub(super) struct Bench<'a> {
    args: &'a Args,
    dir: &'a Path,
    store: Store,
    /// The storage of the first full start.
    local: Option<Podman>,
    number: u32,
}

impl<'a> Bench<'a> {
    pub(super) fn new(args: &'a Args, dir: &'a Path, config: &Config) -> anyhow::Result<Self> {
        Ok(Self {
            args,
            dir,
            store: Store::new(dir.join("store"), config)?,
            local: None,
            number: 0,
        })
    }

    pub(super) async fn start(&mut self, mode: Mode) -> anyhow::Result<Start> {
        match mode {
            Mode::Full => {
                let podman = self.podman(false)?;
                self.cold(&podman).await?;
                let mut start = self.run(mode, &podman, true).await?;
                start.bytes = podman.layer_bytes();
                match &self.local {
                    Some(_) => podman.end().await?,
                    None => self.local = Some(podman),
                }
                Ok(start)
            }
            Mode::Local => {
                let podman = self.local.as_ref().context("nothing was pulled yet")?;
                self.cold(podman).await?;
                self.run(mode, podman, false).await
            }
            Mode::Unlearned | Mode::Learned => self.lazy(mode).await,
        }
    }

    /// A start through the store, recorded to its end.
    async fn lazy(&mut self, mode: Mode) -> anyhow::Result<Start> {
        self.store.stop().await?;
        self.store.forget(mode == Mode::Unlearned)?;
        self.store.start().await?;
        let podman = self.podman(true)?;
        self.cold(&podman).await?;
        let start = self.run(mode, &podman, true).await?;
        self.learned(1.0).await?;
        podman.end().await?;
        Ok(start)
    }

    /// Waits until so many starts are learned since the store was started.
    async fn learned(&self, starts: f64) -> anyhow::Result<()> {
        ensure!(
            self.store.count("forelayer_layers").await? > 0.0,
            "no layer came through the store: {} is neither eStargz nor zstd:chunked, or this Podman does not ask \
             for such layers (docs/installation.md, \"Compatibility\")",
            self.args.image
        );
        self.store
            .reaches("forelayer_traces_total", starts, LEARN)
            .await
            .context("the start was not recorded")
    }

    fn podman(&mut self, lazy: bool) -> anyhow::Result<Podman> {
        self.number += 1;
        let store = self.store.mount().filter(|_| lazy);
        Podman::new(&self.dir.join(self.number.to_string()), store)
    }

    /// Empties the page cache, then brings back what a node has in it before a start: the engine's and the store's
    /// programs. Makes the storage, where it is new.
    async fn cold(&self, podman: &Podman) -> anyhow::Result<()> {
        rustix::fs::sync();
        fs::write("/proc/sys/vm/drop_caches", "3").context("cannot drop the page cache")?;
        let mut programs: Vec<PathBuf> = RESIDENT.iter().filter_map(|name| found(name)).collect();
        programs.push(env::current_exe()?);
        for path in programs {
            io::copy(&mut File::open(path)?, &mut io::sink())?;
        }
        podman.run(&["images"]).await.map(drop)
    }

    /// Pulls, if that belongs to it, and runs until the container is ready; then removes it.
    async fn run(&self, mode: Mode, podman: &Podman, pull: bool) -> anyhow::Result<Start> {
        let args = self.args;
        let begin = Instant::now();
        if pull {
            podman.run(&["pull", "--quiet", &args.image]).await?;
        }
        let pulled = pull.then(|| begin.elapsed().as_secs_f64());
        let mut command = podman.container(&args.run_args, &args.image, &args.command);
        let shown = tool::shown(&command);
        let mut child = tool::start(&mut command)?;
        timeout(args.timeout, ready(args.ready.as_deref(), &mut child))
            .await
            .unwrap_or_else(|_| bail!("was not ready after {:?}", args.timeout))
            .with_context(|| format!("`{shown}`"))?;
        let ready = begin.elapsed().as_secs_f64();
        let store = match mode {
            Mode::Full | Mode::Local => None,
            Mode::Unlearned | Mode::Learned => Some(self.store.counts().await?),
        };
        podman.remove_containers().await?;
        // It may have been ended just now: its status says nothing any more.
        child.wait().await?;
        Ok(Start {
            mode,
            pulled,
            ready,
            bytes: store.as_ref().map(|counts| counts.bytes),
            store,
        })
    }

    /// T*, from the last of three starts with everything local; `carried`: bytes a second that full pulls had.
    pub(super) async fn limit(
        &mut self,
        link: &Link,
        carried: Option<f64>,
    ) -> anyhow::Result<Limit> {
        self.store.stop().await?;
        self.store.forget(false)?;
        self.store.start().await?;
        let begin = Instant::now();
        tool::finished(&mut self.store.command(&["prefetch", "--all", &self.args.image])).await?;
        let took = begin.elapsed().as_secs_f64();
        let fetched = self.store.count("forelayer_fetched_bytes_total").await? / took.max(1e-3);
        let mut last = None;
        // The first fills the page cache, the second what the first one's writing left out.
        for number in 1..=3_u8 {
            let podman = self.podman(true)?;
            podman.run(&["images"]).await?;
            let begun = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
            let start = self.run(Mode::Learned, &podman, true).await?;
            self.learned(f64::from(number)).await?;
            podman.end().await?;
            last = Some((begun, start.ready));
        }
        let (begun, ready) = last.context("no start")?;
        let measured = limit::Link {
            round_trip: link.round_trip().await,
            rate: fetched.max(carried.unwrap_or_default()),
        };
        limit::of(self.store.config(), begun, ready, measured)
    }

    /// Ends everything that runs.
    pub(super) async fn end(mut self) -> anyhow::Result<()> {
        // Containers first: they hold the store's mounts. Those of starts that were broken off lie in storages that
        // nobody holds any more.
        let mut result = Ok(());
        for number in 1..=self.number {
            let dir = self.dir.join(number.to_string());
            if dir.join("graph").exists() {
                let podman = Podman::at(dir, self.store.mount());
                result = result.and(podman.remove_containers().await);
            }
        }
        let stopped = self.store.stop().await;
        result.and(stopped)
    }
}

/// A program's file on the path.
fn found(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}
