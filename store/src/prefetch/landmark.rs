//! The first start of an image whose builder said what a start needs: eStargz puts such files in front of a landmark.
//!
//! A list made by a builder names whole files, in the order in which a start opened them, and may be old or wrong: so it
//! counts only where no profile predicts anything, and no more than [`UNPROVEN_BYTES`] of each layer's. It is fetched like a profile's plan
//! and judged like one (metrics, waste). Invariant: what lies behind the landmark is never planned here.

use std::{collections::HashMap, sync::Arc};

use super::plan::{Planned, UNPROVEN_BYTES};
use crate::{
    cache::ChunkState,
    fetch::{Plan, PlanStep},
    format::{Chunk, index::IndexError},
    image::Layer,
};

/// The plan for an image that nothing else predicts anything for; `None` without landmarks.
pub(super) fn prioritised(name: &str, layers: &[Arc<Layer>]) -> Option<Planned> {
    match plan(name, layers) {
        Ok(planned) => planned,
        Err(error) => {
            tracing::warn!(
                image = name,
                error = &error as &dyn std::error::Error,
                "what its builder put first is not fetched ahead"
            );
            None
        }
    }
}

/// What lies in front of the layers' landmarks and is not here; `None` if there is nothing. `name` is for logs and status.
fn plan(name: &str, layers: &[Arc<Layer>]) -> Result<Option<Planned>, IndexError> {
    let (mut steps, mut bytes) = (Vec::new(), HashMap::new());
    for layer in layers {
        let mut left = UNPROVEN_BYTES;
        for (place, chunk) in in_front(layer)?.into_iter().enumerate() {
            if layer.cache.state(chunk.id) != ChunkState::Missing || chunk.zeros {
                continue;
            }
            let Some(rest) = left.checked_sub(chunk.len) else {
                break;
            };
            left = rest;
            bytes.insert((layer.slot, chunk.id), chunk.len);
            // Nobody knows when: layers take turns, since each has its own order only.
            let at_us = i64::try_from(place).unwrap_or(i64::MAX);
            steps.push(PlanStep {
                layer: Arc::clone(layer),
                chunk: chunk.id,
                at_us,
            });
        }
    }
    steps.sort_by_key(|step| step.at_us);
    let planned = Planned {
        plan: Plan {
            name: name.to_owned(),
            steps,
        },
        bytes,
        pages: Vec::new(),
        paths: Vec::new(),
    };
    Ok((!planned.plan.steps.is_empty()).then_some(planned))
}

/// A layer's chunks in front of its landmark, as they lie in the blob.
fn in_front(layer: &Layer) -> Result<Vec<Chunk>, IndexError> {
    let Some(end) = layer.index.prefetch_end() else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for number in 0..layer.index.chunk_count() {
        if let Some(chunk) = layer.index.chunk(number)?
            && chunk.span.end <= end
        {
            found.push(chunk);
        }
    }
    found.sort_by_key(|chunk| (chunk.span.start, chunk.skip));
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::prefetch::testing::{Item, Place, bring, chunk, small};

    #[test]
    fn what_is_in_front_of_the_landmark_is_planned_in_its_order_and_nothing_else() {
        let kept = Place::new();
        let items = [
            small("z"),
            Item::File("b", "b", vec![4096, 4096]),
            Item::Zeros("nothing", 4096),
            small("a"),
            Item::Landmark,
            small("later"),
        ];
        let marked = kept.layer(1, &items);
        let plain = kept.layer(2, &[small("x")]);
        let layers = [Arc::clone(&plain), Arc::clone(&marked)];
        let chunks = || {
            let planned = plan("image", &layers).unwrap()?;
            let steps = planned.plan.steps.iter();
            assert_eq!(planned.bytes.len(), planned.plan.steps.len());
            Some(
                steps
                    .map(|step| (step.layer.slot, step.chunk))
                    .collect::<Vec<_>>(),
            )
        };
        let at = |path, offset| (1, chunk(&marked, path, offset));
        let expected = [at("z", 0), at("b", 0), at("b", 4096), at("a", 0)];
        assert_eq!(chunks().unwrap(), expected);
        bring(&marked, expected[1].1, &items);
        assert_eq!(chunks().unwrap(), [expected[0], expected[2], expected[3]]);
        for (_, chunk) in [expected[0], expected[2], expected[3]] {
            bring(&marked, chunk, &items);
        }
        assert_eq!(chunks(), None, "all of it is here");
    }

    #[test]
    fn a_long_list_is_followed_only_so_far() {
        let kept = Place::new();
        let third = UNPROVEN_BYTES / 3 + 1;
        let items = [
            Item::File("a", "a", vec![third]),
            Item::File("b", "b", vec![third]),
            Item::File("c", "c", vec![third]),
            Item::Landmark,
        ];
        let layer = kept.layer(1, &items);
        let planned = plan("image", &[layer]).unwrap().unwrap();
        assert_eq!(planned.bytes.values().sum::<u64>(), 2 * third);
    }

    #[test]
    fn without_a_landmark_nothing_is_planned() {
        let layer = Place::new().layer(1, &[small("a")]);
        assert!(plan("image", &[layer]).unwrap().is_none());
    }
}
