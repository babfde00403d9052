//! What is asked for while an image is being looked up, before its plan: started with the first lookup, or
//! when an engine's command line names the image; kept beside the profiles when a start was learned.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use super::Owner;
use crate::{
    digest::Digest,
    image::Layer,
    prefetch::{early::EarlyRequests, locate::Locator, plan},
    registry::Ahead,
};

/// What was asked for ahead of a lookup that does not end is let go of after this time.
const LOOKUP: Duration = Duration::from_secs(30);

/// What is under way, by image; `None` where there was nothing to ask for, so that the image's other layers, which are
/// looked up in the same moment, do not look again.
#[derive(Debug, Default)]
pub(super) struct EarlyAnswers(HashMap<String, (Option<Ahead>, Instant)>);

impl EarlyAnswers {
    /// The lookup of an image has ended: nothing more is asked for ahead. What is answered holds what came.
    pub(super) fn close(&mut self, reference: &str) -> Option<Ahead> {
        let (ahead, _) = self.0.remove(reference)?;
        if let Some(ahead) = &ahead {
            ahead.close();
        }
        ahead
    }

    /// Lets go of what nobody came for.
    pub(super) fn expire(&mut self, now: Instant) {
        self.0.retain(|_, (_, until)| *until > now);
    }

    /// When there is something to let go of.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.values().map(|(_, until)| *until).min()
    }
}

impl Owner {
    /// A registry is being asked for an image: what a pull of it needed last time is asked for too.
    pub(super) fn searched(&mut self, reference: &str, key: &Digest) {
        if self.early.0.contains_key(reference) {
            return;
        }
        let requests = self.kept(reference);
        let requests = requests.filter(|requests| requests.metadata.keys.contains(key));
        self.ask(reference, requests);
    }

    /// An engine that starts is going to pull an image: it is looked up now, with what a pull of it needed last time.
    pub(super) fn expected(&mut self, reference: &str) {
        let images = self.parts.library.images();
        if self.early.0.contains_key(reference) || images.iter().any(|(name, _)| name == reference)
        {
            return;
        }
        let Some(requests) = self.kept(reference) else {
            return;
        };
        let Some(key) = requests.metadata.keys.first().copied() else {
            return;
        };
        tracing::debug!(reference, "an engine is about to pull an image");
        self.ask(reference, Some(requests));
        let _runtime = self.runtime.enter();
        Arc::clone(&self.parts.library).expect(reference.to_owned(), key);
    }

    /// What is kept of an image, if it may be used.
    fn kept(&self, reference: &str) -> Option<EarlyRequests> {
        let config = &self.parts.config;
        if !config.enabled || config.early_bytes == 0 {
            return None;
        }
        EarlyRequests::load(&self.parts.early_dir, reference).unwrap_or_else(|error| {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "nothing is asked for before the manifest is there"
            );
            None
        })
    }

    fn ask(&mut self, reference: &str, requests: Option<EarlyRequests>) {
        let known: HashSet<Digest> = (self.parts.library.images().iter())
            .flat_map(|(_, layers)| layers.iter().map(|layer| *layer.blob()))
            .collect();
        let requests = requests.map(|mut requests| {
            requests.leave_out(&known);
            requests
        });
        let _runtime = self.runtime.enter();
        let ahead = requests.and_then(|requests| self.parts.lanes.ahead(reference, &requests));
        let until = Instant::now() + LOOKUP;
        self.early.0.insert(reference.to_owned(), (ahead, until));
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
