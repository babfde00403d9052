//! Starting an image in one of the modes, from the pull to the program's line.

use std::{
    io::{BufRead as _, BufReader},
    path::PathBuf,
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

use super::{
    cost::{Counts, Meters},
    images::Image,
    lab::Lab,
    limit::{self, Limit, Warm},
    misled::WrongProfile,
    start::{Mode, Sent, Start},
};

/// How long the store may take to learn a start that has ended.
const PATIENCE: Duration = Duration::from_secs(120);
/// T* is made of at least so many warm starts.
const WARM: usize = 5;

/// One image.
pub(super) struct Bench<'a> {
    pub(super) lab: &'a Lab,
    image: &'static str,
    ready: &'static str,
    pub(super) store: Store<'a>,
    /// The ordinary image, pulled.
    local: Option<Podman<'a>>,
    /// The warm starts of the case so far.
    warm: Vec<Warm>,
    /// What misled starts are given, of each format.
    pub(super) wrong: Vec<(Format, WrongProfile)>,
    number: u32,
}

impl<'a> Bench<'a> {
    pub(super) fn new(lab: &'a Lab, image: Image) -> Result<Self> {
        Ok(Self {
            lab,
            image: image.name(),
            ready: image.ready(),
            store: lab.store("store")?,
            local: None,
            warm: Vec::new(),
            wrong: Vec::new(),
            number: 0,
        })
    }

    /// Whether the image can be started so.
    pub(super) fn can(&self, mode: Mode, lazy: Format) -> bool {
        // What today's Podman writes as zstd:chunked the peer does not read.
        mode != Mode::Peer || (self.lab.has_peer() && lazy == Format::Estargz)
    }

    pub(super) fn name(&mut self) -> String {
        self.number += 1;
        format!("start-{}", self.number)
    }

    pub(super) fn reference(&self, format: Format) -> String {
        images::reference(&self.lab.proxy.host(), format, self.image)
    }

    /// Starts it cold; `lazy`: the format for the modes with a store.
    pub(super) fn start(&mut self, mode: Mode, lazy: Format) -> Result<Start> {
        match mode {
            Mode::Full => {
                let name = self.name();
                let podman = self.lab.podman(&name, None)?;
                self.lab.cold(Format::Gzip, self.image)?;
                self.run(mode, &podman, Format::Gzip, &[])
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
                self.run(mode, podman, Format::Gzip, &[])
            }
            Mode::Unlearned | Mode::Learned => self.lazy(mode, lazy),
            Mode::Misled => self.misled(lazy),
            Mode::Warm => self.warm(lazy),
            Mode::Peer => self.peer(lazy),
        }
    }

    /// A cold start through the store. The profile of the unlearned one is what the learned one has.
    pub(super) fn lazy(&mut self, mode: Mode, format: Format) -> Result<Start> {
        let podman = self.cold(mode == Mode::Unlearned)?;
        self.lab.cold(format, self.image)?;
        self.recorded(mode, &podman, format)
    }

    /// A store that has forgotten everything but its profiles, or all, and an engine that uses it.
    pub(super) fn cold(&mut self, all: bool) -> Result<Podman<'a>> {
        self.store.stop()?;
        if self.store.state_dir().exists() {
            self.store.forget()?;
        }
        let profiles = self.profiles();
        if all && profiles.exists() {
            std::fs::remove_dir_all(&profiles)?;
        }
        self.store.start()?;
        self.store.watch()?;
        let name = self.name();
        let podman = self.lab.podman(&name, Some(&self.store.mount()))?;
        podman.run(&["images"])?;
        Ok(podman)
    }

    pub(super) fn profiles(&self) -> PathBuf {
        self.store.state_dir().join("profiles")
    }

    /// A start through the store that runs, until its record is there.
    fn recorded(&self, mode: Mode, podman: &Podman<'_>, format: Format) -> Result<Start> {
        let recorded = self.traces()?;
        let before = Counts::read(&self.store)?;
        let server = self.store.server_id().context("no store runs")?;
        let serve = Meters::new("serve", server)?;
        let witness = self.store.witness_id().context("no witness runs")?;
        let watch = Meters::new("watch", witness)?;
        let mut start = self.run(mode, podman, format, &[serve, watch])?;
        self.learned(recorded)?;
        start.store = start.store.map(|counts| counts.since(&before));
        if let Some(counts) = &mut start.store {
            counts.judge(&self.store, &before)?;
        }
        Ok(start)
    }

    pub(super) fn traces(&self) -> Result<f64> {
        self.store.metric("forelayer_traces_total")
    }

    /// Waits until there are more traces.
    pub(super) fn learned(&self, before: f64) -> Result<()> {
        process::until("the trace", PATIENCE, || {
            Ok((self.traces()? > before).then_some(()))
        })
        .with_context(|| self.store.log_end("watch"))
    }

    /// A start with everything local and warm, through the store that a learned start has just been made with.
    fn warm(&mut self, format: Format) -> Result<Start> {
        self.lab.shape(false);
        let reference = self.reference(format);
        process::run(&mut self.store.command(&["prefetch", "--all", &reference]))?;
        self.lab.shape(true);
        let mut last = None;
        // The first fills what the page cache lacks, and pays for what the fetch left to be written.
        for _ in 0..2 {
            let name = self.name();
            let podman = self.lab.podman(&name, Some(&self.store.mount()))?;
            podman.run(&["images"])?;
            let begun = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
            last = Some((begun, self.recorded(Mode::Warm, &podman, format)?));
        }
        let (begun, start) = last.context("no start")?;
        let warm = limit::recorded(&self.store, begun, start.ready)?;
        self.warm.push(warm);
        Ok(start)
    }

    /// A cold start through stargz-store.
    fn peer(&mut self, format: Format) -> Result<Start> {
        let name = self.name();
        let peer = self.lab.peer(&format!("peer-{name}"))?;
        let peer = peer.context("there is no stargz-store")?;
        let podman = self.lab.podman(&name, Some(&peer.mount()))?;
        podman.run(&["images"])?;
        self.lab.cold(format, self.image)?;
        let meters = Meters::new("stargz-store", peer.id()?)?;
        let start = self.run(Mode::Peer, &podman, format, &[meters]);
        // The storage goes before what it is mounted from.
        drop(podman);
        start
    }

    /// Pulls, unless the image is there, and runs until the line is there.
    fn run(
        &self,
        mode: Mode,
        podman: &Podman<'_>,
        format: Format,
        meters: &[Meters],
    ) -> Result<Start> {
        let reference = self.reference(format);
        self.lab.proxy.log().clear();
        let begun = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
        let begin = Instant::now();
        let mut pulled = 0.0;
        if mode != Mode::Local {
            podman.run(&["pull", &reference])?;
            pulled = begin.elapsed().as_secs_f64();
        }
        let mut child = podman
            .command(&["run", "--name", "start", &reference])
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
                let costs = meters
                    .iter()
                    .map(Meters::read)
                    .collect::<Result<Vec<_>>>()?;
                let costs = costs.concat();
                let store = (!matches!(mode, Mode::Full | Mode::Local | Mode::Peer))
                    .then(|| Counts::read(&self.store))
                    .transpose()?;
                ready = Some((at, bytes, requests, costs, store));
            }
            said.push_str(&line);
            said.push('\n');
        }
        ensure!(child.wait()?.success(), "the container failed: {said}");
        let Some((ready, bytes, requests, costs, store)) = ready else {
            bail!("no line began with {:?}: {said}", self.ready);
        };
        let (created, started) = phases(podman, begun)?;
        Ok(Start {
            mode,
            pulled,
            created,
            started,
            ready,
            bytes,
            requests,
            costs,
            store,
            waterfall: self.waterfall(begin, ready),
        })
    }

    fn waterfall(&self, begin: Instant, ready: f64) -> Vec<Sent> {
        let since = |at: Instant| at.saturating_duration_since(begin).as_secs_f64();
        let records = self.lab.proxy.log().records();
        let sent = records.iter().map(|record| Sent {
            from: since(record.start),
            to: record.end.map_or(ready, since),
            bytes: record.bytes,
            range: record.range,
            what: record.blob().map_or_else(
                || "metadata".to_owned(),
                |blob| blob[blob.len().saturating_sub(6)..].to_owned(),
            ),
        });
        sent.filter(|sent| sent.from <= ready).collect()
    }

    /// The limit of the case whose starts these are; makes the warm ones that are missing and takes them in.
    pub(super) fn limit(&mut self, starts: &mut Vec<Start>, format: Format) -> Result<Limit> {
        while self.warm.len() < WARM {
            let start = self.start(Mode::Warm, format)?;
            starts.push(start);
        }
        let unshaped = || {
            let full = starts.iter().find(|start| start.mode == Mode::Full)?;
            let sent = full.waterfall.iter().max_by_key(|sent| sent.bytes)?;
            #[expect(clippy::cast_precision_loss, reason = "bytes of an image")]
            Some(sent.bytes as f64 / (sent.to - sent.from).max(1e-3))
        };
        #[expect(clippy::cast_precision_loss, reason = "a bandwidth")]
        let bandwidth = self.lab.bandwidth().map(|bytes| bytes as f64);
        let bandwidth = bandwidth.or_else(unshaped).context("no bandwidth")?;
        let warm = std::mem::take(&mut self.warm);
        Limit::of(&warm, self.lab.latency(), bandwidth)
    }
}

/// When Podman began to make the container `start`, which has ended, and when it had started it, in seconds from
/// `begun` (Unix time). Removes it.
fn phases(podman: &Podman<'_>, begun: f64) -> Result<(f64, f64)> {
    let format = "{{.Created.UnixNano}} {{.State.StartedAt.UnixNano}}";
    let times = podman.run(&[
        "inspect",
        "--type",
        "container",
        "--format",
        format,
        "start",
    ])?;
    podman.run(&["rm", "start"])?;
    let since = |word: &str| Some(word.parse::<f64>().ok()? / 1e9 - begun);
    let found = times.split_once(' ');
    found
        .and_then(|(created, started)| Some((since(created)?, since(started)?)))
        .with_context(|| format!("the container's times are {times}"))
}
