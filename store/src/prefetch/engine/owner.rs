//! The thread behind the handle.

mod early;
mod running;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use forelayer_profiler::{
    model::{self, Prediction, UnusedFile, UnusedRange},
    profiles::{Kin, ProfileDir},
    protocol::{Started, Trace},
};
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
};
use tokio_util::sync::CancellationToken;

use super::Parts;
use crate::{
    control::{PrefetchProgress, RunSummary},
    digest::Digest,
    fetch::Plan,
    image::Layer,
    prefetch::{
        accounting::{Account, Books, Closed},
        landmark::prioritised,
        locate::Locator,
        plan::{self, ChunkKey, Planned},
        progress::{self, Wanted},
        trace::{self, TakenIn},
        warm::Warmer,
    },
};
use early::EarlyAnswers;
use running::Plans;
pub(super) use running::fetch;

/// An overlay mount asks for its lowers one after the other, and each answer may wait for the witness
/// (`witness.attach_wait`): this long after the last one the set is complete, if it was not known before. Ten times the
/// wait's default: where the processors are busy, one answer may be long behind the other.
const GROUP: Duration = Duration::from_millis(200);
/// A plan of the same layers is not made again within this time: an engine looks every layer up, then mounts.
const AGAIN: Duration = Duration::from_secs(10);
/// What a trace may take beyond its window: detaching, attribution, sending.
const GRACE: Duration = Duration::from_secs(60);

/// What the owner hears.
#[derive(Debug)]
pub(super) enum Event {
    /// `layers` top first.
    Resolved {
        reference: String,
        layers: Vec<Arc<Layer>>,
    },
    Searched {
        reference: String,
        key: Digest,
    },
    Expected {
        reference: String,
    },
    Mounted {
        slot: u32,
    },
    Started(Started),
    Trace {
        trace: Box<Trace>,
        reply: oneshot::Sender<Result<RunSummary, String>>,
    },
    /// `layers` top first.
    Request {
        reference: String,
        layers: Vec<Arc<Layer>>,
        all: bool,
        reply: oneshot::Sender<Result<mpsc::Receiver<PrefetchProgress>, String>>,
    },
    Stop,
}

pub(super) struct Owner {
    parts: Parts,
    profiles: ProfileDir,
    warmer: Arc<Warmer>,
    runtime: Handle,
    stop: CancellationToken,
    books: Books,
    /// Slots of the mount that is going on, top layer first, and when it is complete.
    group: Option<(Vec<u32>, Instant)>,
    /// When the layers (slots, sorted) were planned last.
    planned: HashMap<Vec<u32>, Instant>,
    /// The image that nothing was predicted for last: an engine looks every layer up, and comparing an image with all
    /// others takes milliseconds.
    unknown: Option<Unknown>,
    running: Plans,
    early: EarlyAnswers,
}

/// An image that nothing is predicted for as long as the profiles are the same.
#[derive(PartialEq, Eq)]
struct Unknown {
    slots: Vec<u32>,
    reference: Option<String>,
    generation: u64,
}

impl Owner {
    pub(super) fn new(
        parts: Parts,
        profiles: ProfileDir,
        warmer: Warmer,
        runtime: Handle,
        stop: CancellationToken,
    ) -> Self {
        let books = Books::new(Arc::clone(&parts.metrics), parts.max_window + GRACE);
        Self {
            parts,
            profiles,
            warmer: Arc::new(warmer),
            runtime,
            stop,
            books,
            group: None,
            planned: HashMap::new(),
            unknown: None,
            running: Plans::default(),
            early: EarlyAnswers::default(),
        }
    }

    pub(super) fn run(mut self, events: &Receiver<Event>) {
        while !self.stop.is_cancelled() {
            let event = match self.deadline() {
                None => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => events.recv_timeout(at.saturating_duration_since(Instant::now())),
            };
            match event {
                Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Event::Mounted { slot }) => self.mounted(slot),
                Ok(Event::Searched { reference, key }) => self.searched(&reference, &key),
                Ok(Event::Expected { reference }) => self.expected(&reference),
                Ok(Event::Resolved { reference, layers }) => self.begin(Some(&reference), layers),
                Ok(Event::Started(started)) => self.started(started),
                Ok(Event::Trace { trace, reply }) => {
                    // Its own mount is to be counted before it.
                    self.group_complete();
                    // Whoever asked may be gone.
                    let _ = reply.send(self.take_in(&trace));
                }
                Ok(Event::Request {
                    reference,
                    layers,
                    all,
                    reply,
                }) => {
                    let _ = reply.send(self.request(&reference, &layers, all));
                }
            }
            let now = Instant::now();
            if self
                .group
                .as_ref()
                .is_some_and(|(_, complete)| *complete <= now)
            {
                self.group_complete();
            }
            self.early.expire(now);
            let closed = self.books.settle(now);
            self.closed(closed);
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let group = self.group.as_ref().map(|(_, complete)| *complete);
        [group, self.books.next(), self.early.next()]
            .into_iter()
            .flatten()
            .min()
    }

    fn mounted(&mut self, slot: u32) {
        if self
            .group
            .as_ref()
            .is_some_and(|(slots, _)| slots.contains(&slot))
        {
            // The next container of the same image.
            self.group_complete();
        }
        let mut slots = self.group.take().map_or_else(Vec::new, |(slots, _)| slots);
        slots.push(slot);
        let whole = self.is_whole(&slots);
        self.group = Some((slots, Instant::now() + GROUP));
        if whole {
            self.group_complete();
        }
    }

    /// Whether these are all layers of an image, and no image has these and more.
    fn is_whole(&self, mounted: &[u32]) -> bool {
        let images: Vec<Vec<u32>> = (self.parts.library.images().iter())
            .map(|(_, layers)| slots(layers))
            .filter(|image| mounted.iter().all(|slot| image.contains(slot)))
            .collect();
        !images.is_empty() && images.iter().all(|image| image.len() == mounted.len())
    }

    fn group_complete(&mut self) {
        let Some((slots, _)) = self.group.take() else {
            return;
        };
        let layers: Vec<Arc<Layer>> = slots
            .iter()
            .filter_map(|slot| self.parts.library.layer(*slot))
            .collect();
        self.opening(&layers);
        let closed = self.books.mounted(&slots, Instant::now());
        self.closed(closed);
        let name = self.name_of(&layers);
        let slots = self::slots(&layers);
        if self.running.is_narrowed(&slots) {
            // What this container runs is not known: the plan has to be made anew, for all workloads.
            self.planned.remove(&slots);
        }
        self.begin(name.as_deref(), layers);
        self.running.mounted(&slots);
    }

    /// A start of these layers (top first) is near: predicts, plans and carries out.
    fn begin(&mut self, reference: Option<&str>, layers: Vec<Arc<Layer>>) {
        // From here on the plan decides what is asked for next.
        let early = reference.and_then(|reference| self.early.close(reference));
        if !self.parts.config.enabled || layers.is_empty() {
            self.unplanned(&layers);
            return;
        }
        let slots = slots(&layers);
        let now = Instant::now();
        self.planned.retain(|_, at| now.duration_since(*at) < AGAIN);
        if self.planned.contains_key(&slots) {
            return;
        }
        if let Err(error) = self.profiles.refresh() {
            tracing::debug!(%error, "profiles that changed are not noticed");
        }
        let unknown = Unknown {
            slots: slots.clone(),
            reference: reference.map(ToOwned::to_owned),
            generation: self.profiles.generation(),
        };
        if self.unknown.as_ref() == Some(&unknown) {
            return;
        }
        let planned = self.plan(reference, &layers, None);
        let Some(planned) = planned.or_else(|| {
            let unnamed = || unnamed("an image without a name", &layers);
            prioritised(&reference.map_or_else(unnamed, ToOwned::to_owned), &layers)
        }) else {
            self.unplanned(&layers);
            self.unknown = Some(unknown);
            return;
        };
        self.planned.insert(slots.clone(), now);
        self.opening(&layers);
        let closed = self.books.planned(&slots, &planned.bytes, now);
        self.closed(closed);
        tracing::info!(
            image = planned.plan.name,
            chunks = planned.bytes.len(),
            bytes = planned.bytes.values().sum::<u64>(),
            paths = planned.paths.len(),
            "a start is predicted"
        );
        let (lanes, warmer, stop) = (
            Arc::clone(&self.parts.lanes),
            Arc::clone(&self.warmer),
            self.stop.clone(),
        );
        let replaced = self.running.begin(&slots, &planned.plan.name);
        let carry_out = async move {
            // Its own task: chunks come while the dentries are warmed.
            let fetching = tokio::spawn(fetch(lanes, planned.plan, replaced));
            match warmer.dentries(layers, planned.paths).await {
                Ok(lookups) => tracing::debug!(lookups, "names were looked up ahead"),
                Err(error) => tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "names were not looked up ahead"
                ),
            }
            let bytes = warmer
                .pages(planned.pages, async { drop(fetching.await) })
                .await;
            drop(early);
            tracing::debug!(bytes, "pages were filled ahead");
        };
        self.runtime.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = carry_out => {}
            }
        });
    }

    fn unplanned(&self, layers: &[Arc<Layer>]) {
        for layer in layers {
            self.parts.lanes.unplanned(layer);
        }
    }

    /// What the profiles say of the image; `None` if nothing. Where it is known what runs, what they say of these
    /// `workloads`; `None` if they do not know one of them, or know nothing else.
    fn plan(
        &mut self,
        reference: Option<&str>,
        layers: &[Arc<Layer>],
        workloads: Option<&BTreeSet<String>>,
    ) -> Option<Planned> {
        let locator = Locator::new(layers);
        let (name, prediction, kin) = self.predict(reference, &locator, workloads)?;
        match plan::plan(&name, &prediction, kin, &locator) {
            Ok(planned) => Some(planned),
            Err(error) => {
                tracing::warn!(
                    image = name,
                    error = &error as &dyn std::error::Error,
                    "nothing is predicted"
                );
                None
            }
        }
    }

    /// The prediction that a plan is made from, with the image's name and whose profiles they are.
    fn predict(
        &mut self,
        reference: Option<&str>,
        locator: &Locator<'_>,
        workloads: Option<&BTreeSet<String>>,
    ) -> Option<(String, Prediction, Kin)> {
        let digests: Vec<Digest> = (locator.layers().iter())
            .map(|layer| *layer.blob())
            .collect();
        let chosen = (self.profiles).choose(reference, &digests, &|content| locator.holds(content));
        let chosen = match chosen {
            Ok(chosen) => chosen,
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "nothing is predicted"
                );
                return None;
            }
        };
        let meant: Vec<_> = (chosen.profiles.iter())
            .filter(|(_, who)| workloads.is_none_or(|these| these.contains(&who.workload)))
            .collect();
        if let Some(workloads) = workloads {
            let known: BTreeSet<&String> = meant.iter().map(|(_, who)| &who.workload).collect();
            let all = workloads.len() == 1 && meant.len() == chosen.profiles.len();
            if known.len() < workloads.len() || all {
                return None;
            }
        }
        let profiles = (self.profiles).load_all(meant.iter().map(|(file, _)| file.as_str()));
        let prediction = match workloads {
            None => model::predict(&profiles),
            Some(_) => model::predict_known(&profiles),
        };
        if prediction.is_empty() {
            return None;
        }
        let unnamed = || unnamed(&profiles[0].identity.image, locator.layers());
        let name = reference.map_or_else(unnamed, ToOwned::to_owned);
        Some((name, prediction, chosen.kin))
    }

    /// What an image with exactly these layers is called.
    fn name_of(&self, layers: &[Arc<Layer>]) -> Option<String> {
        let wanted = slots(layers);
        (self.parts.library.images().into_iter())
            .find(|(_, layers)| slots(layers) == wanted)
            .map(|(name, _)| name)
    }

    fn take_in(&mut self, trace: &Trace) -> Result<RunSummary, String> {
        let text = |error: &dyn std::error::Error| {
            let mut text = error.to_string();
            let mut cause = error.source();
            while let Some(error) = cause {
                text = format!("{text}: {error}");
                cause = error.source();
            }
            text
        };
        let mounted: BTreeSet<u32> = trace.container.slots.iter().copied().collect();
        let names = mounted
            .into_iter()
            .map(|slot| (slot, self.parts.names.close(slot)))
            .collect();
        let library = Arc::clone(&self.parts.library);
        let TakenIn {
            identity,
            mut run,
            layers,
            touched,
        } = trace::take_in(
            trace,
            &|slot| library.layer(slot),
            &|layers| self.name_of(layers),
            &names,
        )
        .map_err(|error| text(&error))?;
        let arrivals = (layers.iter())
            .flat_map(|layer| {
                let arrivals = self.parts.lanes.arrivals(layer);
                arrivals
                    .into_iter()
                    .map(|arrival| ((layer.slot, arrival.chunk), arrival))
            })
            .collect();
        let (account, closed) =
            self.books
                .trace(&slots(&layers), &touched, &arrivals, Instant::now());
        self.closed(closed);
        run.predicted_unused = unused(&account, &layers);
        run.normalise();
        let summary = RunSummary {
            run: run.id.clone(),
            image: identity.image.clone(),
            workload: identity.workload.clone(),
            profile: self.profiles.dir().join(identity.file_name()),
            runs: 0,
            files: run.files.len() as u64,
            touched_bytes: run.pages() * model::PAGE,
            touched_chunks: touched.len() as u64,
            touched_chunk_bytes: touched.values().sum(),
            demanded_chunks: account.demanded,
            used_chunks: account.used,
            late_chunks: account.late,
            waste_chunks: account.unused.len() as u64,
            predicted_bytes: account.predicted_bytes,
            waste_bytes: account.waste_bytes,
            lost: run.lost,
        };
        self.profiles
            .add(&identity, run, self.parts.config.keep_runs)
            .map_err(|error| text(&error))?;
        let runs = (self.profiles.list().into_iter())
            .find(|listed| listed.file == identity.file_name())
            .and_then(|listed| listed.summary.ok())
            .map_or(0, |summary| summary.runs);
        self.keep_early(&identity.image, &layers);
        // Only now: whoever sees the count finds the profile.
        let metrics = &self.parts.metrics;
        metrics.touches.inc_by(trace.touches.len() as u64);
        metrics.events_lost.inc_by(trace.lost);
        metrics.traces.inc();
        tracing::info!(
            image = summary.image,
            workload = summary.workload,
            files = summary.files,
            bytes = summary.touched_bytes,
            "a start was learned"
        );
        Ok(RunSummary { runs, ..summary })
    }

    fn request(
        &mut self,
        reference: &str,
        layers: &[Arc<Layer>],
        all: bool,
    ) -> Result<mpsc::Receiver<PrefetchProgress>, String> {
        let planned = self.plan(Some(reference), layers, None);
        let planned = planned.or_else(|| prioritised(reference, layers));
        let plan = match (planned, all) {
            (Some(planned), false) => {
                self.opening(layers);
                let closed = self
                    .books
                    .planned(&slots(layers), &planned.bytes, Instant::now());
                self.closed(closed);
                planned.plan
            }
            (None, false) => {
                return Err(format!(
                    "no profile predicts a start of {reference}, and its builder put nothing first: start it once while `forelayer watch` runs, or fetch all of it with --all"
                ));
            }
            (planned, true) => {
                let nothing = Plan {
                    name: reference.to_owned(),
                    steps: Vec::new(),
                };
                let first = planned.map_or(nothing, |planned| planned.plan);
                plan::everything(first, layers).map_err(|error| error.to_string())?
            }
        };
        // A plan of its own: those of pulls and starts must not take its place.
        let plan = Plan {
            name: format!("forelayer prefetch {reference}"),
            ..plan
        };
        let mut wanted = Vec::with_capacity(plan.steps.len());
        for step in &plan.steps {
            let chunk = step
                .layer
                .index
                .chunk(step.chunk)
                .map_err(|error| error.to_string())?;
            wanted.push(Wanted {
                layer: Arc::clone(&step.layer),
                chunk: step.chunk,
                bytes: chunk.map_or(0, |chunk| chunk.len),
            });
        }
        let (lines, progress) = mpsc::channel(16);
        let (lanes, stop) = (Arc::clone(&self.parts.lanes), self.stop.clone());
        self.runtime.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = progress::follow(lanes, plan, wanted, lines) => {}
            }
        });
        Ok(progress)
    }

    /// A start begins: from now on it counts how the chunks of these layers come.
    fn opening(&self, layers: &[Arc<Layer>]) {
        for layer in layers {
            if !self.books.is_open(layer.slot) {
                self.parts.lanes.forget_arrivals(layer);
            }
        }
    }

    /// Closes the windows of mounts that no trace followed, and forgets what no open start needs.
    fn closed(&self, closed: Vec<Closed>) {
        for Closed { slots, windows } in closed {
            for slot in slots {
                if !self.books.is_open(slot)
                    && let Some(layer) = self.parts.library.layer(slot)
                {
                    self.parts.lanes.forget_arrivals(&layer);
                }
                for _ in 0..windows {
                    drop(self.parts.names.close(slot));
                }
            }
        }
    }
}

/// The name of a plan for layers that no image has by themselves: a container of a build, or a mount that is seen piece
/// by piece. Plans of the same name take each other's place, and that of the image may be under way.
fn unnamed(what: &str, layers: &[Arc<Layer>]) -> String {
    let slots: Vec<String> = slots(layers).iter().map(ToString::to_string).collect();
    format!("{what} (layers in slots {})", slots.join(", "))
}

/// Slots of layers, sorted: the identity of an image on this machine.
fn slots(layers: &[Arc<Layer>]) -> Vec<u32> {
    let mut slots: Vec<u32> = layers.iter().map(|layer| layer.slot).collect();
    slots.sort_unstable();
    slots
}

/// The account's unused chunks as pages of files. A chunk that cannot be found again is left out.
fn unused(account: &Account, layers: &[Arc<Layer>]) -> Vec<UnusedFile> {
    let mut files: HashMap<ChunkFile, UnusedFile> = HashMap::new();
    for key in &account.unused {
        let Some((file, path, content, range)) = pages_of(*key, layers) else {
            continue;
        };
        files
            .entry(file)
            .or_insert_with(|| UnusedFile {
                path,
                content,
                ranges: Vec::new(),
            })
            .ranges
            .push(range);
    }
    files.into_values().collect()
}

/// Slot and node.
type ChunkFile = (u32, u32);

fn pages_of(
    (slot, number): ChunkKey,
    layers: &[Arc<Layer>],
) -> Option<(ChunkFile, String, Option<Digest>, UnusedRange)> {
    let index = &layers.iter().find(|layer| layer.slot == slot)?.index;
    let chunk = index.chunk(number).ok()??;
    let content = index.entry(chunk.node).ok()??.content;
    let path = String::from_utf8_lossy(&index.path(chunk.node).ok()?).into_owned();
    let page = chunk.file_offset / model::PAGE;
    let end = chunk
        .file_offset
        .checked_add(chunk.len)?
        .div_ceil(model::PAGE);
    let pages = u32::try_from(end - page).ok()?;
    Some((
        (slot, chunk.node),
        path,
        content,
        UnusedRange { page, pages },
    ))
}
