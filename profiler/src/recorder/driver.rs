//! Feeds the state machine and carries out what it says.

use std::{os::unix::fs::MetadataExt as _, sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{Action, Bounds, Input, Kernel, Now, Recorder};
use crate::{
    attribution::{Identity, LayersDir, ProcFs, identify},
    protocol::{Container, Level, StoreEvent, Trace},
    witness::Event,
};

/// How often time is told while a window is open.
const TICK: Duration = Duration::from_millis(50);
/// How long a container that is being looked up when everything is to finish is waited for.
const FINISH: Duration = Duration::from_secs(5);
/// Events taken from the kernel in one go.
const MANY: usize = 1024;

/// What the recorder says to the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// The programs are attached: the answer to [`StoreEvent::Mounted`] with this number.
    Attached(u64),
    /// A container is being recorded, and this is who it is and what it runs.
    Known(Container),
    /// A container is done.
    Trace(Box<Trace>),
}

/// Why recording cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// This process's own mount namespace cannot be read.
    #[error("cannot read /proc/self/ns/mnt: {0}; is /proc mounted?")]
    Namespace(std::io::Error),
    /// The witness's reader has ended.
    #[error("the kernel's events have ended: the task that reads them has failed")]
    Events,
}

/// A candidate's number and who it is.
type Answer = (u64, Option<Identity>);

/// A recorder at work.
#[derive(Debug)]
pub struct Driver<K> {
    kernel: K,
    events: mpsc::Receiver<Event>,
    recorder: Recorder<ProcFs>,
    proc: Arc<ProcFs>,
    layers: Option<Arc<LayersDir>>,
    /// Why the programs are not attached though a window is open.
    refused: Option<String>,
    /// Answers of the threads that look containers up.
    answers: mpsc::UnboundedSender<Answer>,
    identified: mpsc::UnboundedReceiver<Answer>,
}

impl<K: Kernel> Driver<K> {
    /// A recorder that is fed by `kernel`, whose events come out of `events`.
    ///
    /// # Errors
    /// [`DriverError::Namespace`].
    pub fn new(
        kernel: K,
        events: mpsc::Receiver<Event>,
        level: Level,
        bounds: Bounds,
    ) -> Result<Self, DriverError> {
        let host_ns = std::fs::metadata("/proc/self/ns/mnt").map_err(DriverError::Namespace)?;
        // The kernel's own type is an unsigned int.
        let host_ns = u32::try_from(host_ns.ino()).unwrap_or_default();
        let proc = ProcFs::new();
        let (answers, identified) = mpsc::unbounded_channel();
        Ok(Self {
            kernel,
            events,
            recorder: Recorder::new(proc.clone(), bounds, level, host_ns, Box::new(new_run)),
            proc: Arc::new(proc),
            layers: None,
            refused: None,
            answers,
            identified,
        })
    }

    /// Records until `finish` is cancelled or `store` ends; then finishes what is being recorded.
    ///
    /// # Errors
    /// [`DriverError::Events`].
    pub async fn run(
        &mut self,
        store: &mut mpsc::Receiver<StoreEvent>,
        out: &mpsc::Sender<Output>,
        finish: &CancellationToken,
    ) -> Result<(), DriverError> {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::with_capacity(MANY);
        loop {
            tokio::select! {
                // A container's mount waits for the answer to the store's event.
                biased;
                event = store.recv() => match event {
                    Some(event) => self.told(event, out).await,
                    None => break,
                },
                () = finish.cancelled() => break,
                Some((candidate, identity)) = self.identified.recv() => {
                    self.apply(Input::Identified { candidate, identity }, out).await;
                }
                count = self.events.recv_many(&mut batch, MANY) => {
                    if count == 0 {
                        return Err(DriverError::Events);
                    }
                    for event in batch.drain(..) {
                        self.apply(Input::Seen(event), out).await;
                    }
                }
                _ = ticks.tick(), if self.recorder.is_open() => {
                    let lost = self.kernel.lost();
                    self.apply(Input::Tick { lost }, out).await;
                }
            }
        }
        self.finish(out).await;
        Ok(())
    }

    async fn finish(&mut self, out: &mpsc::Sender<Output>) {
        let deadline = Instant::now() + FINISH;
        // What the kernel has written already belongs to the trace.
        while let Ok(event) = self.events.try_recv() {
            self.apply(Input::Seen(event), out).await;
        }
        let lost = self.kernel.lost();
        self.apply(Input::Tick { lost }, out).await;
        self.apply(Input::Finish, out).await;
        while self.recorder.recording() > 0 {
            let Ok(Some((candidate, identity))) =
                timeout_at(deadline, self.identified.recv()).await
            else {
                break;
            };
            let answer = Input::Identified {
                candidate,
                identity,
            };
            self.apply(answer, out).await;
        }
    }

    async fn told(&mut self, event: StoreEvent, out: &mpsc::Sender<Output>) {
        match event {
            StoreEvent::Hello {
                devices,
                layers_dir,
            } => {
                if let Err(error) = self.kernel.watch_devices(&devices) {
                    tracing::warn!(%error, "the kernel does not watch the store's devices; nothing will be learned");
                }
                self.layers = Some(Arc::new(LayersDir::new(&layers_dir)));
                self.apply(Input::Connected, out).await;
            }
            StoreEvent::Mounted {
                window,
                slot,
                at_ns,
            } => {
                // What refused them last time may be over.
                if self.recorder.is_open() && self.refused.is_some() {
                    self.attach();
                }
                let input = Input::Mounted {
                    window,
                    slot,
                    at_ns,
                };
                self.apply(input, out).await;
            }
        }
    }

    async fn apply(&mut self, input: Input, out: &mpsc::Sender<Output>) {
        for action in self.recorder.apply(input, now()) {
            self.act(action, out).await;
        }
    }

    /// Attaches the programs; the next mount tries again. A node that refuses them is said so once, not at each mount.
    fn attach(&mut self) {
        let Err(error) = self.kernel.attach() else {
            self.refused = None;
            return;
        };
        let cause = error.to_string();
        if self.refused.as_ref() != Some(&cause) {
            tracing::warn!(
                %error,
                "the witness cannot be attached; starts are not learned until it can be"
            );
        }
        self.refused = Some(cause);
    }

    async fn act(&mut self, action: Action, out: &mpsc::Sender<Output>) {
        let done = match action {
            Action::Attach => {
                self.attach();
                Ok(())
            }
            Action::Watch(who) => self.kernel.watch(who),
            Action::Forget(groups) => self.kernel.forget(&groups),
            Action::Unwatch(who) => {
                self.kernel.unwatch(who);
                Ok(())
            }
            Action::Detach => {
                self.kernel.detach();
                self.kernel.reset()
            }
            // Also where they could not be attached: the mount must not wait for what does not come.
            Action::Reply { window } => {
                // The receiver is gone only when everything ends.
                let _ = out.send(Output::Attached(window)).await;
                Ok(())
            }
            Action::Known(container) => {
                let _ = out.send(Output::Known(container)).await;
                Ok(())
            }
            Action::Finished(trace) => {
                let _ = out.send(Output::Trace(Box::new(trace))).await;
                Ok(())
            }
            Action::Identify(candidate) => {
                let Some(layers) = self.layers.clone() else {
                    return;
                };
                let proc = Arc::clone(&self.proc);
                let answer = self.answers.clone();
                tokio::task::spawn_blocking(move || {
                    let identity = look(NAME_TRIES, || identify(&candidate, &layers, &proc));
                    let _ = answer.send((candidate.id, identity));
                });
                Ok(())
            }
        };
        if let Err(error) = done {
            tracing::warn!(%error, "the witness could not do its part; this start may be learned in part only");
        }
    }
}

/// How often an engine's files are read again that do not name the image, and the pause before: a busy engine may be
/// about to write them. Many containers start within that time; none waits for it.
const NAME_TRIES: u32 = 5;
const NAME_PAUSE: Duration = Duration::from_millis(20);

/// Finds out who a container is; again while its image has no name.
fn look(tries: u32, mut identify: impl FnMut() -> Option<Identity>) -> Option<Identity> {
    let mut identity = identify();
    for _ in 1..tries {
        if identity
            .as_ref()
            .is_none_or(|who| !who.container.image.is_empty())
        {
            break;
        }
        std::thread::sleep(NAME_PAUSE);
        // What was found once stays found, also if the container has ended meanwhile.
        identity = identify().or(identity);
    }
    identity
}

/// The clocks that the state machine is given.
fn now() -> Now {
    let mono = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let nanos = i128::from(mono.tv_sec) * 1_000_000_000 + i128::from(mono.tv_nsec);
    let unix = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Now {
        mono_ns: u64::try_from(nanos).unwrap_or_default(),
        unix_ms: unix.map_or(0, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
    }
}

/// 32 random hexadecimal digits.
fn new_run() -> String {
    use std::io::Read as _;
    let mut bytes = [0; 16];
    let random = std::fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut bytes));
    if let Err(error) = random {
        // Unique on this node at least.
        tracing::warn!(%error, "cannot read /dev/urandom; the run's id is made from the clock");
        let Now { mono_ns, unix_ms } = now();
        bytes[..8].copy_from_slice(&unix_ms.to_be_bytes());
        bytes[8..].copy_from_slice(&mono_ns.to_be_bytes());
    }
    hex::encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Container;

    fn named(image: &str) -> Identity {
        Identity {
            container: Container {
                image: image.to_owned(),
                ..Container::default()
            },
            own_cgroup: None,
            overlay: 1,
        }
    }

    #[test]
    fn a_name_that_comes_late_is_found_and_nothing_found_is_lost() {
        let mut answers = vec![Some(named("a")), None, Some(named(""))];
        let found = look(5, || answers.pop().flatten());
        assert_eq!(found, Some(named("a")));
        let mut answers = vec![None, Some(named(""))];
        assert_eq!(look(2, || answers.pop().flatten()), Some(named("")));
        assert_eq!(look(5, || None), None);
    }
}
