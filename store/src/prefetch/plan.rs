//! Prediction -> plan: the chunks under the READ windows of predicted pages, over all layers, first needed first;
//! what is less probable than not comes a little later ([`PredictedRange::due_us`]).
//!
//! [`PredictedRange::due_us`]: forelayer_profiler::model::PredictedRange::due_us

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use forelayer_profiler::{
    model::{PredictedFile, Prediction},
    profiles::Kin,
};

use super::{
    locate::{Locator, Place},
    window::{Touched, clamp, windows},
};
use crate::{
    cache::ChunkState,
    fetch::{Plan, PlanStep},
    format::{NodeId, index::IndexError},
    image::Layer,
};

/// A chunk of a layer: slot and number.
pub type ChunkKey = (u32, u32);

/// What a prediction means for an image.
#[derive(Debug, Clone)]
pub struct Planned {
    /// What is not here yet, first needed first.
    pub plan: Plan,
    /// Decoded bytes of those of the plan's chunks that must be fetched.
    pub bytes: HashMap<ChunkKey, u64>,
    /// Predicted pages, for the page cache, first needed first.
    pub pages: Vec<PlannedPages>,
    /// Predicted paths, those not found included, as absolute paths in the container.
    pub paths: Vec<String>,
}

/// Pages of one file that will be touched at one time, within the file.
#[derive(Debug, Clone)]
pub struct PlannedPages {
    /// The layer.
    pub layer: Arc<Layer>,
    /// The file.
    pub node: NodeId,
    /// The bytes, page-aligned but for the end of the file.
    pub bytes: std::ops::Range<u64>,
    /// Their place in the order, in microseconds from the first exec.
    pub at_us: i64,
}

/// Decoded bytes that may be fetched by what is no record of the image's own starts (profiles of other images, a
/// builder's list): what a wrong one can cost at most. Larger starts than this are rare, and their first own run lifts it.
pub(super) const UNPROVEN_BYTES: u64 = 256 << 20;

/// Plans for an image with the locator's layers. `name` is for logs and status; `kin` says whose profiles predicted.
///
/// # Errors
/// If an index is damaged.
pub fn plan(
    name: &str,
    prediction: &Prediction,
    kin: Kin,
    locator: &Locator<'_>,
) -> Result<Planned, IndexError> {
    let layers = locator.layers();
    let places = places(&prediction.files, kin, locator)?;
    let (needed, mut pages) = needed(prediction, &places, layers)?;
    // Stable: pages of one time stay in the order of their files.
    pages.sort_by_key(|pages| pages.at_us);
    let mut bytes = HashMap::new();
    let mut steps = Vec::new();
    let mut left = match kin {
        Kin::Own => u64::MAX,
        Kin::Sister => UNPROVEN_BYTES,
    };
    for ((slot, number), needed) in needed {
        let layer = &layers[needed.layer];
        let state = layer.cache.state(number);
        if state == ChunkState::Present {
            continue;
        }
        let Some(chunk) = layer.index.chunk(number)? else {
            continue;
        };
        // Zeros and what only needs to be proven are made ready too, but nothing is fetched for them.
        if state == ChunkState::Missing && !chunk.zeros {
            let Some(rest) = left.checked_sub(chunk.len) else {
                break;
            };
            left = rest;
            bytes.insert((slot, number), chunk.len);
        }
        steps.push(PlanStep {
            layer: Arc::clone(layer),
            chunk: number,
            at_us: needed.at_us,
        });
    }
    let paths = paths(prediction, &places, kin, layers)?;
    Ok(Planned {
        plan: Plan {
            name: name.to_owned(),
            steps,
        },
        bytes,
        pages,
        paths,
    })
}

/// Every chunk that a start is predicted to need, whether it is here or not, first needed first.
///
/// # Errors
/// If an index is damaged.
pub fn steps(
    prediction: &Prediction,
    kin: Kin,
    locator: &Locator<'_>,
) -> Result<Vec<PlanStep>, IndexError> {
    let layers = locator.layers();
    let places = places(&prediction.files, kin, locator)?;
    let (needed, _) = needed(prediction, &places, layers)?;
    let step = |((_, chunk), needed): (ChunkKey, Needed)| PlanStep {
        layer: Arc::clone(&layers[needed.layer]),
        chunk,
        at_us: needed.at_us,
    };
    Ok(needed.into_iter().map(step).collect())
}

/// Chunks with when they are needed, first needed first.
type InOrder = Vec<(ChunkKey, Needed)>;

/// The chunks under the READ windows of what is predicted, and the predicted pages, these in no order.
fn needed(
    prediction: &Prediction,
    places: &[Option<Place>],
    layers: &[Arc<Layer>],
) -> Result<(InOrder, Vec<PlannedPages>), IndexError> {
    let mut needed: HashMap<ChunkKey, Needed> = HashMap::new();
    let mut pages = Vec::new();
    for (file, place) in prediction.files.iter().zip(places) {
        let Some(place) = place else { continue };
        let layer = &layers[place.layer];
        let touched: Vec<Touched> = clamp(
            file.ranges.iter().map(|range| Touched {
                page: range.page,
                end: range.end(),
                at_us: range.due_us(),
                access: range.access,
            }),
            place.size,
        );
        for window in windows(&touched, place.size) {
            for chunk in layer
                .index
                .chunks_covering(place.node, window.bytes(place.size))?
            {
                needed
                    .entry((layer.slot, chunk))
                    .and_modify(|needed| needed.at_us = needed.at_us.min(window.at_us))
                    .or_insert(Needed {
                        layer: place.layer,
                        at_us: window.at_us,
                    });
            }
        }
        pages.extend(touched.iter().map(|touched| {
            PlannedPages {
                layer: Arc::clone(layer),
                node: place.node,
                bytes: super::window::Window {
                    page: touched.page,
                    end: touched.end,
                    at_us: 0,
                }
                .bytes(place.size),
                at_us: touched.at_us,
            }
        }));
    }
    let mut needed: InOrder = needed.into_iter().collect();
    needed.sort_by_key(|(key, needed)| (needed.at_us, *key));
    Ok((needed, pages))
}

/// Where the predicted files are in this image.
fn places(
    files: &[PredictedFile],
    kin: Kin,
    locator: &Locator<'_>,
) -> Result<Vec<Option<Place>>, IndexError> {
    let mut places: Vec<Option<Place>> = Vec::with_capacity(files.len());
    for file in files {
        let (content, blob) = (file.content.as_ref(), file.layer.as_ref());
        places.push(match kin {
            Kin::Own => locator.exact(&file.path, content, file.size, blob)?,
            Kin::Sister => locator.same(&file.path, content, blob)?,
        });
    }
    if kin == Kin::Sister {
        return Ok(places);
    }
    // A file that changed: what was touched of the old one is the best guess, unless a profile knows the new one.
    let known: HashSet<Place> = places.iter().flatten().copied().collect();
    for (file, place) in files.iter().zip(&mut places) {
        if place.is_none() {
            *place = locator
                .by_path(&file.path)?
                .filter(|place| !known.contains(place));
        }
    }
    Ok(places)
}

/// The paths to look up ahead: those of the files, at their new place where they were moved, and the others that the
/// profiles know. What another image asks for besides its files says nothing of this one.
fn paths(
    prediction: &Prediction,
    places: &[Option<Place>],
    kin: Kin,
    layers: &[Arc<Layer>],
) -> Result<Vec<String>, IndexError> {
    let mut paths = Vec::with_capacity(prediction.files.len());
    for (file, place) in prediction.files.iter().zip(places) {
        let moved = match place {
            Some(place) => {
                let index = &layers[place.layer].index;
                match index.find(file.path.as_bytes())? == Some(place.node) {
                    true => None,
                    false => String::from_utf8(index.path(place.node)?).ok(),
                }
            }
            None if kin == Kin::Sister => continue,
            None => None,
        };
        paths.push(format!("/{}", moved.as_ref().unwrap_or(&file.path)));
    }
    if kin == Kin::Own {
        paths.extend_from_slice(&prediction.found);
        paths.extend_from_slice(&prediction.missing);
    }
    Ok(paths)
}

/// Every chunk that is not here, after those of `first`: what `forelayer prefetch --all` asks for.
///
/// # Errors
/// If an index is damaged.
pub fn everything(first: Plan, layers: &[Arc<Layer>]) -> Result<Plan, IndexError> {
    let mut steps = first.steps;
    let planned: HashSet<ChunkKey> = steps
        .iter()
        .map(|step| (step.layer.slot, step.chunk))
        .collect();
    let at_us = steps.last().map_or(0, |step| step.at_us);
    for layer in layers.iter().rev() {
        for chunk in 0..layer.index.chunk_count() {
            if !planned.contains(&(layer.slot, chunk))
                && layer.cache.state(chunk) != ChunkState::Present
            {
                steps.push(PlanStep {
                    layer: Arc::clone(layer),
                    chunk,
                    at_us,
                });
            }
        }
    }
    Ok(Plan {
        name: first.name,
        steps,
    })
}

struct Needed {
    layer: usize,
    at_us: i64,
}

#[cfg(test)]
mod tests;
