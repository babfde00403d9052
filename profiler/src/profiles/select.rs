//! Which profiles predict an image: plain functions over summaries.

use std::collections::{HashMap, HashSet};

use super::Summary;
use crate::{
    Digest,
    model::{self, Identity},
};

/// How near profiles are to the image that they are to predict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kin {
    /// Recorded with exactly its layers, or under its name.
    Own,
    /// Another image's, which has layers or files in common with it: only these say anything.
    Sister,
}

/// The profiles to predict an image from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// How near they are.
    pub kin: Kin,
    /// Their files in the directory, and whose they are.
    pub profiles: Vec<(String, Identity)>,
}

/// See [`super::ProfileDir::choose`].
pub(super) fn choose(
    known: &[&Summary],
    reference: Option<&str>,
    layers: &[Digest],
    holds: &dyn Fn(&Digest) -> bool,
) -> Chosen {
    let set: HashSet<&Digest> = layers.iter().collect();
    let recorded: Vec<&Summary> = known.iter().filter(|s| s.runs > 0).copied().collect();
    let those = |kin: Kin, fits: &dyn Fn(&Summary) -> bool| Chosen {
        kin,
        profiles: (recorded.iter())
            .filter(|summary| fits(summary))
            .map(|summary| (summary.file.clone(), summary.identity.clone()))
            .collect(),
    };
    let same_layers = those(Kin::Own, &|summary| {
        !set.is_empty() && summary.layers.iter().collect::<HashSet<_>>() == set
    });
    if !same_layers.profiles.is_empty() {
        return same_layers;
    }
    if let Some(reference) = reference {
        let same_name = those(Kin::Own, &|summary| summary.identity.image == reference);
        if !same_name.profiles.is_empty() {
            return same_name;
        }
    }
    match nearest(&recorded, reference, &set, holds) {
        Some(image) => those(Kin::Sister, &|summary| summary.identity.image == image),
        None => Chosen {
            kin: Kin::Sister,
            profiles: Vec::new(),
        },
    }
}

/// The image of which most pages that its last starts touched are in this one too: in the same layer or in a file of
/// the same content. Another tag of the same repository is the likelier relation, its pages count twice; of equals the
/// one started last.
fn nearest<'a>(
    recorded: &[&'a Summary],
    reference: Option<&str>,
    layers: &HashSet<&Digest>,
    holds: &dyn Fn(&Digest) -> bool,
) -> Option<&'a str> {
    let repository = reference.map(model::repository);
    let mut asked: HashMap<Digest, bool> = HashMap::new();
    let mut images: HashMap<&str, (u64, u64)> = HashMap::new();
    for summary in recorded {
        let in_layers = (summary.pages_by_layer.iter()).filter(|(layer, _)| layers.contains(layer));
        let in_files = (summary.contents.iter())
            .filter(|file| {
                file.layer
                    .as_ref()
                    .is_none_or(|layer| !layers.contains(layer))
            })
            .filter(|file| {
                *asked
                    .entry(file.content)
                    .or_insert_with(|| holds(&file.content))
            });
        let shared = in_layers
            .map(|(_, pages)| *pages)
            .chain(in_files.map(|file| file.pages))
            .fold(0_u64, u64::saturating_add);
        let weight = 1 + u64::from(Some(summary.identity.repository()) == repository);
        let score = images.entry(&summary.identity.image).or_default();
        score.0 = score.0.max(shared.saturating_mul(weight));
        score.1 = score.1.max(summary.newest_ms);
    }
    (images.into_iter())
        .filter(|(_, (shared, _))| *shared > 0)
        .max_by(|a, b| a.1.cmp(&b.1).then_with(|| a.0.cmp(b.0)))
        .map(|(image, _)| image)
}

/// Files of the image's workloads beyond the `limit` with the newest starts; pinned ones are not counted.
pub(super) fn surplus(known: &[&Summary], image: &str, limit: usize) -> Vec<String> {
    let mut of_image: Vec<&&Summary> = known
        .iter()
        .filter(|summary| summary.identity.image == image && summary.pinned == 0)
        .collect();
    of_image.sort_by(|a, b| {
        b.newest_ms
            .cmp(&a.newest_ms)
            .then_with(|| a.file.cmp(&b.file))
    });
    of_image
        .into_iter()
        .skip(limit)
        .map(|summary| summary.file.clone())
        .collect()
}
