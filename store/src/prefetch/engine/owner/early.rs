//! What is asked for while an image is being looked up, before its plan: started with the first lookup, or when an
//! engine's command line names the image; kept beside the profiles when a start was learned.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use super::Owner;
use crate::{
    digest::Digest,
    image::Layer,
    prefetch::{early::EarlyRequests, locate::Locator, plan},
    registry::Ahead,
};

/// What was asked for ahead of a lookup that does not end is let go of after this time.
const LOOKUP: Duration = Duration::from_secs(30);
/// An image that was expected and not found as it was is not expected again within this time.
const FAILED: Duration = Duration::from_secs(600);

/// What is under way, by image, and until when images are not expected that were not found as expected.
#[derive(Debug, Default)]
pub(super) struct EarlyAnswers {
    answers: HashMap<String, Answer>,
    failed: HashMap<String, Instant>,
}

/// What was asked for of an image.
#[derive(Debug)]
struct Answer {
    /// Nothing where there was nothing to ask for, so that the image's other layers, which are looked up in the same moment,
    /// do not look again.
    ahead: Option<Ahead>,
    until: Instant,
    /// Digests by which an engine asks for the image that was expected; empty once an engine has asked.
    expected: Vec<Digest>,
    /// What was expected is not there.
    failed: CancellationToken,
}

impl EarlyAnswers {
    /// The lookup of an image has ended: nothing more is asked for ahead. What is answered holds what came.
    pub(super) fn close(&mut self, reference: &str) -> Option<Ahead> {
        let ahead = self.answers.remove(reference)?.ahead;
        if let Some(ahead) = &ahead {
            ahead.close();
        }
        ahead
    }

    /// Lets go of what nobody came for.
    pub(super) fn expire(&mut self, now: Instant) {
        let over = |_: &String, answer: &mut Answer| answer.until <= now;
        for (reference, answer) in self.answers.extract_if(over) {
            if answer.failed.is_cancelled() {
                self.failed.insert(reference, now + FAILED);
            }
        }
        self.failed.retain(|_, until| *until > now);
    }

    /// When there is something to let go of.
    pub(super) fn next(&self) -> Option<Instant> {
        self.answers.values().map(|answer| answer.until).min()
    }

    /// Whether an image need not be expected: it is being asked for, or was not found a short while ago.
    fn knows(&self, reference: &str) -> bool {
        self.answers.contains_key(reference) || self.failed.contains_key(reference)
    }

    fn insert(&mut self, reference: &str, answer: Answer) -> &Answer {
        if let Some(old) = self.answers.remove(reference)
            && old.failed.is_cancelled()
        {
            let until = Instant::now() + FAILED;
            self.failed.insert(reference.to_owned(), until);
        }
        let place = self.answers.entry(reference.to_owned());
        place.insert_entry(answer).into_mut()
    }
}

impl Owner {
    /// A registry is being asked for an image: what a pull of it needed last time is asked for too.
    pub(super) fn searched(&mut self, reference: &str, key: &Digest) {
        let config = &self.parts.config;
        if !config.enabled || config.early_bytes == 0 {
            return;
        }
        if let Some(answer) = self.early.answers.get_mut(reference) {
            let expected = std::mem::take(&mut answer.expected);
            let other = !expected.is_empty() && !expected.contains(key);
            if !other && !answer.failed.is_cancelled() {
                return;
            }
        }
        let requests = self.kept(reference);
        let requests = requests.filter(|requests| requests.metadata.keys.contains(key));
        self.ask(reference, requests, Vec::new());
    }

    /// An engine that starts is going to pull an image: it is looked up now, with what a pull of it needed last time.
    pub(super) fn expected(&mut self, reference: &str) {
        if self.early.knows(reference) || self.parts.library.knows(reference) {
            return;
        }
        let requests = self.kept(reference);
        let keys = (requests.as_ref()).map_or_else(Vec::new, |kept| kept.metadata.keys.clone());
        let key = keys.first().copied();
        let answer = self.ask(reference, requests, keys);
        let failed = answer.failed.clone();
        let gone = answer.ahead.as_ref().map(Ahead::gone);
        let Some(key) = key else {
            failed.cancel();
            return;
        };
        tracing::debug!(reference, "an engine is about to pull an image");
        let library = Arc::clone(&self.parts.library);
        let there = library.expect(reference.to_owned(), key);
        self.runtime.spawn(async move {
            if !there.await {
                failed.cancel();
                gone.inspect(CancellationToken::cancel);
            }
        });
    }

    /// What is kept of an image, if it can be used.
    fn kept(&self, reference: &str) -> Option<EarlyRequests> {
        EarlyRequests::load(&self.parts.early_dir, reference).unwrap_or_else(|error| {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "nothing is asked for before the manifest is there"
            );
            None
        })
    }

    /// Asks for it, in place of what was asked for of the image.
    fn ask(
        &mut self,
        reference: &str,
        requests: Option<EarlyRequests>,
        expected: Vec<Digest>,
    ) -> &Answer {
        let _runtime = self.runtime.enter();
        let ahead = requests.and_then(|mut requests| {
            let known: HashSet<Digest> = (self.parts.library.images().iter())
                .flat_map(|(_, layers)| layers.iter().map(|layer| *layer.blob()))
                .collect();
            requests.leave_out(&known);
            self.parts.lanes.ahead(reference, &requests)
        });
        let answer = Answer {
            ahead,
            until: Instant::now() + LOOKUP,
            expected,
            failed: CancellationToken::new(),
        };
        self.early.insert(reference, answer)
    }

    /// Keeps what the next pull of an image asks for first.
    pub(super) fn keep_early(&mut self, reference: &str, layers: &[Arc<Layer>]) {
        let budget = self.parts.config.early_bytes;
        let Some(metadata) = self
            .parts
            .library
            .metadata(reference)
            .filter(|_| budget > 0)
        else {
            return;
        };
        let locator = Locator::new(layers);
        let Some((_, prediction, kin)) = self.predict(Some(reference), &locator, None) else {
            return;
        };
        let kept = plan::steps(&prediction, kin, &locator)
            .and_then(|steps| EarlyRequests::new(reference, metadata, &steps, budget))
            .map_err(|error| error.to_string())
            .and_then(|requests| {
                (requests.store(&self.parts.early_dir)).map_err(|error| error.to_string())
            });
        if let Err(error) = kept {
            tracing::warn!(error, "the next pull asks for nothing ahead");
        }
    }
}
