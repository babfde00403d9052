//! One start, in one of the modes, from the pull to the program's line.

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail, ensure};
use forelayer_tests::engine::{
    images::{self, Format},
    podman::Podman,
    process,
    store::Store,
};
use serde::Serialize;

use super::{
    lab::Lab,
    limit::{self, Limit},
    report::Case,
};

/// How long the store may take to learn a start that has ended.
const PATIENCE: Duration = Duration::from_secs(120);

/// How an image is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Mode {
    Full,
    Local,
    Unlearned,
    Learned,
}

impl Mode {
    pub(super) const ALL: [Self; 4] = [Self::Full, Self::Local, Self::Unlearned, Self::Learned];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Local => "local",
            Self::Unlearned => "unlearned",
            Self::Learned => "learned",
        }
    }
}

/// What a start took. Times in seconds from the start of the pull.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Start {
    pub(super) mode: Mode,
    pub(super) pulled: f64,
    pub(super) ready: f64,
    /// Bytes of bodies and requests until ready.
    pub(super) bytes: u64,
    pub(super) requests: u64,
    /// What the store says of it; nothing without a store.
    pub(super) store: Option<Counts>,
    /// When each request was sent and over, which it was, and its bytes.
    pub(super) waterfall: Vec<Sent>,
}

/// The store's counts when the program was ready.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Counts {
    pub(super) stalled: f64,
    pub(super) demanded: u64,
    pub(super) predicted: u64,
    pub(super) nearby: u64,
    pub(super) background: u64,
    /// Predicted chunks that were not used; known some seconds later.
    pub(super) waste: u64,
}

/// A request in the waterfall.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Sent {
    pub(super) from: f64,
    pub(super) to: f64,
    pub(super) bytes: u64,
    /// `metadata`, or the end of a blob's digest.
    pub(super) what: String,
}

/// One image in one format.
pub(super) struct Bench<'a> {
    lab: &'a Lab,
    image: &'static str,
    ready: &'static str,
    lazy: Format,
    store: Store<'a>,
    local: Option<Podman<'a>>,
    number: u32,
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts far below 2^53"
)]
fn count(value: f64) -> u64 {
    value as u64
}

impl<'a> Bench<'a> {
    pub(super) fn new(
        lab: &'a Lab,
        image: &'static str,
        ready: &'static str,
        lazy: Format,
    ) -> Result<Self> {
        Ok(Self {
            lab,
            image,
            ready,
            lazy,
            store: lab.store(&format!("store-{image}-{}", lazy.name()))?,
            local: None,
            number: 0,
        })
    }

    fn name(&mut self) -> String {
        self.number += 1;
        format!("{}-{}-{}", self.image, self.lazy.name(), self.number)
    }

    fn reference(&self, format: Format) -> String {
        images::reference(&self.lab.proxy.host(), format, self.image)
    }

    pub(super) fn start(&mut self, mode: Mode) -> Result<Start> {
        match mode {
            Mode::Full => {
                let name = self.name();
                let podman = self.lab.podman(&name, None)?;
                self.lab.cold(Format::Gzip, self.image)?;
                self.run(mode, &podman, Format::Gzip, true)
            }
            Mode::Local => {
                if self.local.is_none() {
                    let name = self.name();
                    let podman = self.lab.podman(&name, None)?;
                    self.lab.shape(false);
                    podman.run(&["pull", &self.reference(Format::Gzip)])?;
                    self.lab.shape(true);
                    self.local = Some(podman);
                }
                self.lab.cold(Format::Gzip, self.image)?;
                let podman = self.local.as_ref().context("it was just made")?;
                self.run(mode, podman, Format::Gzip, false)
            }
            Mode::Unlearned => self.lazy(mode, false),
            Mode::Learned => self.lazy(mode, true),
        }
    }

    /// A cold start through the store. The profile of the unlearned one is what the learned one has.
    fn lazy(&mut self, mode: Mode, learned: bool) -> Result<Start> {
        self.store.stop()?;
        if self.store.state_dir().exists() {
            self.store.forget()?;
        }
        if !learned {
            let profiles = self.store.state_dir().join("profiles");
            if profiles.exists() {
                std::fs::remove_dir_all(&profiles)?;
            }
        }
        self.store.start()?;
        self.store.watch()?;
        let name = self.name();
        let podman = self.lab.podman(&name, Some(&self.store))?;
        podman.run(&["images"])?;
        self.lab.cold(self.lazy, self.image)?;
        let mut start = self.run(mode, &podman, self.lazy, true)?;
        let traces = |store: &Store<'_>| store.metric("forelayer_traces_total");
        process::until("the trace", PATIENCE, || {
            Ok((traces(&self.store)? >= 1.0).then_some(()))
        })
        .with_context(|| self.store.log_end("watch"))?;
        let waste = self
            .store
            .metric("forelayer_predictions_total{outcome=\"waste\"}")?;
        if let Some(counts) = &mut start.store {
            counts.waste = count(waste);
        }
        Ok(start)
    }

    /// Pulls, if that belongs to it, and runs until the line is there.
    fn run(&self, mode: Mode, podman: &Podman<'_>, format: Format, pull: bool) -> Result<Start> {
        let reference = self.reference(format);
        self.lab.proxy.log().clear();
        eprintln!(
            "UPTIME {mode:?} {}",
            std::fs::read_to_string("/proc/uptime")?
        );
        let begin = Instant::now();
        if pull {
            podman.run(&["pull", &reference])?;
        }
        let pulled = begin.elapsed().as_secs_f64();
        let mut child = podman
            .command(&["run", "--rm", &reference])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let out = child.stdout.take().context("no output")?;
        let (mut ready, mut said) = (None, String::new());
        for line in BufReader::new(out).lines() {
            let line = line?;
            if ready.is_none() && line.starts_with(self.ready) {
                let at = begin.elapsed().as_secs_f64();
                let log = self.lab.proxy.log();
                let (bytes, requests) = (log.bytes(), log.requests() as u64);
                let store = format
                    .ne(&Format::Gzip)
                    .then(|| self.counts())
                    .transpose()?;
                ready = Some((at, bytes, requests, store));
            }
            said.push_str(&line);
            said.push('\n');
        }
        ensure!(child.wait()?.success(), "the container failed: {said}");
        let Some((ready, bytes, requests, store)) = ready else {
            bail!("no line began with {:?}: {said}", self.ready);
        };
        let since = |at: Instant| at.saturating_duration_since(begin).as_secs_f64();
        let records = self.lab.proxy.log().records();
        let waterfall = records
            .iter()
            .map(|record| Sent {
                from: since(record.start),
                to: record.end.map_or(ready, since),
                bytes: record.bytes,
                what: record.blob().map_or_else(
                    || "metadata".to_owned(),
                    |blob| blob.chars().rev().take(6).collect(),
                ),
            })
            .filter(|sent| sent.from <= ready)
            .collect();
        Ok(Start {
            mode,
            pulled,
            ready,
            bytes,
            requests,
            store,
            waterfall,
        })
    }

    fn counts(&self) -> Result<Counts> {
        let lane = |lane: &str| -> Result<u64> {
            let name = format!("forelayer_chunks_total{{lane=\"{lane}\"}}");
            Ok(count(self.store.metric(&name)?))
        };
        Ok(Counts {
            stalled: self.store.metric("forelayer_stall_microseconds_total")? / 1e6,
            demanded: lane("demand")?,
            predicted: lane("predicted")?,
            nearby: lane("nearby")?,
            background: lane("background")?,
            waste: 0,
        })
    }

    /// The limit, from a start with everything local and warm.
    pub(super) fn limit(&mut self, case: &Case) -> Result<Limit> {
        self.lab.shape(false);
        let reference = self.reference(self.lazy);
        process::run(&mut self.store.command(&["prefetch", "--all", &reference]))?;
        self.lab.shape(true);
        let before = self.store.metric("forelayer_traces_total")?;
        let mut last = None;
        // The first fills the page cache, the second what the first one's writing left out.
        for _ in 0..3 {
            let name = self.name();
            let podman = self.lab.podman(&name, Some(&self.store))?;
            podman.run(&["images"])?;
            let begun = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
            let start = self.run(Mode::Learned, &podman, self.lazy, true)?;
            last = Some((begun, start));
        }
        process::until("the traces", PATIENCE, || {
            Ok((self.store.metric("forelayer_traces_total")? >= before + 3.0).then_some(()))
        })
        .with_context(|| self.store.log_end("watch"))?;
        let (begun, start) = last.context("no start")?;
        let unshaped = || {
            let full = case.starts.iter().find(|start| start.mode == Mode::Full)?;
            let sent = full.waterfall.iter().max_by_key(|sent| sent.bytes)?;
            #[expect(clippy::cast_precision_loss, reason = "bytes of an image")]
            Some(sent.bytes as f64 / (sent.to - sent.from).max(1e-3))
        };
        #[expect(clippy::cast_precision_loss, reason = "a bandwidth")]
        let bandwidth = self.lab.link.bandwidth.map(|bytes| bytes as f64);
        let bandwidth = bandwidth.or_else(unshaped).context("no bandwidth")?;
        limit::of(
            &self.store,
            begun,
            start.ready,
            self.lab.link.latency.as_secs_f64(),
            bandwidth,
        )
    }
}
