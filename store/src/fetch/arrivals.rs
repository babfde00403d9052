//! By which lane each chunk came: one byte a chunk, so that what a start predicted, used and waited for can be
//! counted when its window closes.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use parking_lot::Mutex;

use crate::{digest::Digest, metrics::Lane};

/// A chunk that was fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// The chunk.
    pub chunk: u32,
    /// Who asked first: `Demand`, `Predicted`, `Nearby` or `Background`.
    pub lane: Lane,
    /// It was predicted, but a reader had to wait for it.
    pub late: bool,
}

const LATE: u8 = 0x80;

/// The records of all layers.
#[derive(Debug, Default)]
pub(super) struct Arrivals(Mutex<HashMap<Digest, Arc<[AtomicU8]>>>);

impl Arrivals {
    /// Notes a chunk of a layer that has `chunks` of them.
    pub(super) fn note(&self, blob: Digest, chunks: u32, chunk: u32, lane: Lane, late: bool) {
        let record = {
            let mut records = self.0.lock();
            let record = records.entry(blob);
            Arc::clone(record.or_insert_with(|| (0..chunks).map(|_| AtomicU8::new(0)).collect()))
        };
        if let Some(byte) = record.get(chunk as usize) {
            let late = if late { LATE } else { 0 };
            byte.store(code(lane) | late, Ordering::Relaxed);
        }
    }

    /// What was noted of a layer, by chunk.
    pub(super) fn of(&self, blob: &Digest) -> Vec<Arrival> {
        let record = self.0.lock().get(blob).map(Arc::clone);
        let bytes = record.iter().flat_map(|record| record.iter()).zip(0..);
        bytes
            .filter_map(|(byte, chunk)| {
                let byte = byte.load(Ordering::Relaxed);
                Some(Arrival {
                    chunk,
                    lane: lane(byte & !LATE)?,
                    late: byte & LATE != 0,
                })
            })
            .collect()
    }

    /// Forgets a layer's record.
    pub(super) fn forget(&self, blob: &Digest) {
        self.0.lock().remove(blob);
    }
}

const fn code(lane: Lane) -> u8 {
    match lane {
        Lane::Demand => 1,
        Lane::Predicted => 2,
        Lane::Nearby => 4,
        // The others bring no chunks of their own.
        Lane::Background | Lane::Gap | Lane::Raw | Lane::Metadata => 3,
    }
}

const fn lane(code: u8) -> Option<Lane> {
    match code {
        1 => Some(Lane::Demand),
        2 => Some(Lane::Predicted),
        3 => Some(Lane::Background),
        4 => Some(Lane::Nearby),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_is_told_until_it_is_forgotten() {
        let arrivals = Arrivals::default();
        let (one, other) = (Digest::of(b"one"), Digest::of(b"other"));
        arrivals.note(one, 10, 3, Lane::Predicted, true);
        arrivals.note(one, 10, 9, Lane::Demand, false);
        arrivals.note(one, 10, 10, Lane::Demand, false);
        arrivals.note(other, 10, 0, Lane::Background, false);
        let told: Vec<_> = arrivals
            .of(&one)
            .into_iter()
            .map(|arrival| (arrival.chunk, arrival.lane, arrival.late))
            .collect();
        assert_eq!(told, [(3, Lane::Predicted, true), (9, Lane::Demand, false)]);
        arrivals.forget(&one);
        assert_eq!(arrivals.of(&one), []);
        assert_eq!(arrivals.of(&other).len(), 1);
    }
}
