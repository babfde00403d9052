//! Attaching and detaching.
//!
//! The kernel takes 50 to 75 ms to detach one program from an event (it waits until no processor can still be in it;
//! docs/design.md, "The witness"), so a thread of its own does that. Invariant kept here: a program hangs at a place
//! at most once. The kernel refuses the second time, so what is about to be detached is taken back instead.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use aya::Ebpf;
use aya::programs::kprobe::KProbeLink;
use aya::programs::trace_point::TracePointLink;
use aya::programs::{KProbe, Program, ProgramError, TracePoint};
use tokio::sync::watch;

use super::error::WitnessError;
use super::ladder::{Hook, Target};

/// An attached program; dropping it detaches.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) hook: Hook,
    _link: Link,
}

#[derive(Debug)]
enum Link {
    Event { _link: TracePointLink },
    Function { _link: KProbeLink },
}

/// Loads a program into the kernel; done already is no error.
pub(super) fn load(ebpf: &mut Ebpf, name: &'static str) -> Result<(), LoadError> {
    let program = ebpf.program_mut(name).ok_or(LoadError::Missing(name))?;
    let loaded = match program {
        Program::TracePoint(program) => program.load(),
        Program::KProbe(program) => program.load(),
        _ => return Err(LoadError::Missing(name)),
    };
    match loaded {
        Ok(()) | Err(ProgramError::AlreadyLoaded) => Ok(()),
        Err(error) => Err(LoadError::Refused(Box::new(error))),
    }
}

/// Why a program could not be loaded.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    #[error("the eBPF object has no program `{0}`")]
    Missing(&'static str),
    #[error(transparent)]
    Refused(Box<ProgramError>),
}

/// Attaches a loaded program.
pub(super) fn attach(ebpf: &mut Ebpf, hook: Hook) -> Result<Attached, WitnessError> {
    let missing =
        || WitnessError::Incomplete(format!("program `{}` for {}", hook.program, hook.target));
    let refused = |source| WitnessError::Attach {
        program: hook.program,
        target: hook.target.to_string(),
        source: Box::new(source),
    };
    let program = ebpf.program_mut(hook.program).ok_or_else(missing)?;
    let link = match hook.target {
        Target::Event(category, name) => {
            let program: &mut TracePoint = program.try_into().map_err(|_| missing())?;
            let link = program
                .attach(category, name)
                .and_then(|id| program.take_link(id))
                .map_err(refused)?;
            Link::Event { _link: link }
        }
        Target::Function(name) => {
            let program: &mut KProbe = program.try_into().map_err(|_| missing())?;
            let link = program
                .attach(name, 0)
                .and_then(|id| program.take_link(id))
                .map_err(refused)?;
            Link::Function { _link: link }
        }
    };
    Ok(Attached { hook, _link: link })
}

/// What waits to be detached.
#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<Attached>,
    /// A thread is at work, and may hold one that is no longer in `waiting`.
    working: bool,
}

/// Detaches on a thread of its own.
#[derive(Debug)]
pub(super) struct Detacher {
    shared: Arc<(Mutex<Queue>, Condvar)>,
    /// Whether programs hang anywhere: the reader looks regularly while they do.
    live: watch::Sender<bool>,
}

impl Detacher {
    pub(super) fn new(live: watch::Sender<bool>) -> Self {
        Self {
            shared: Arc::default(),
            live,
        }
    }

    /// Detaches these; returns at once. Nothing hangs anywhere after that.
    pub(super) fn detach(&self, attached: Vec<Attached>) {
        let mut queue = lock(&self.shared.0);
        if attached.is_empty() {
            if !queue.working {
                self.live.send_replace(false);
            }
            return;
        }
        queue.waiting.extend(attached);
        if queue.working {
            return;
        }
        queue.working = true;
        drop(queue);
        let (shared, live) = (Arc::clone(&self.shared), self.live.clone());
        let work = move || work_off(&shared, &live);
        if let Err(error) = std::thread::Builder::new()
            .name("witness-detach".to_owned())
            .spawn(work)
        {
            tracing::warn!(%error, "no thread to detach the eBPF programs on: detaching them at once");
            work_off(&self.shared, &self.live);
        }
    }

    /// Takes back what is not detached yet, and waits for the one that is being detached (at most some 75 ms).
    pub(super) fn take_back(&self) -> Vec<Attached> {
        let mut queue = lock(&self.shared.0);
        let attached = std::mem::take(&mut queue.waiting);
        while queue.working {
            queue = self
                .shared
                .1
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
        self.live.send_replace(true);
        attached
    }
}

fn work_off(shared: &(Mutex<Queue>, Condvar), live: &watch::Sender<bool>) {
    loop {
        let mut queue = lock(&shared.0);
        match queue.waiting.pop() {
            Some(attached) => {
                drop(queue);
                drop(attached);
            }
            None => {
                queue.working = false;
                // Still under the lock: whoever takes back and attaches again says `true` after this.
                live.send_replace(false);
                shared.1.notify_all();
                return;
            }
        }
    }
}

fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    // A panic while the lock is held cannot leave the queue half changed.
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_live_when_nothing_was_attached() {
        let (live, is_live) = watch::channel(false);
        let detacher = Detacher::new(live);
        assert!(detacher.take_back().is_empty());
        assert!(*is_live.borrow(), "about to attach");
        // The kernel refused the first.
        detacher.detach(Vec::new());
        assert!(!*is_live.borrow());
    }
}
