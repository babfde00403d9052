//! Which profiles predict an image: plain functions over summaries.

use std::collections::{HashMap, HashSet};

use super::Summary;
use crate::{Digest, model};

/// Files of the profiles to predict from, see [`super::ProfileDir::find`].
pub(super) fn choose(
    known: &[&Summary],
    reference: Option<&str>,
    layers: &[Digest],
) -> Vec<String> {
    let set: HashSet<&Digest> = layers.iter().collect();
    let recorded: Vec<&&Summary> = known.iter().filter(|summary| summary.runs > 0).collect();
    let files =
        |chosen: Vec<&&Summary>| chosen.iter().map(|summary| summary.file.clone()).collect();

    let same_layers: Vec<_> = (recorded.iter().copied())
        .filter(|summary| !set.is_empty() && summary.layers.iter().collect::<HashSet<_>>() == set)
        .collect();
    if !same_layers.is_empty() {
        return files(same_layers);
    }
    if let Some(reference) = reference {
        let same_name: Vec<_> = (recorded.iter().copied())
            .filter(|summary| summary.identity.image == reference)
            .collect();
        if !same_name.is_empty() {
            return files(same_name);
        }
    }
    // By image: how many touched pages of its last starts lie in layers that this image has too; then whether it is
    // the same repository (a rebuild may share no layer, its files are found by content and path); then the newest.
    let mut images: HashMap<&str, (u64, bool, u64)> = HashMap::new();
    let repository = reference.map(model::repository);
    for summary in &recorded {
        let shared: u64 = (summary.pages_by_layer.iter())
            .filter(|(layer, _)| set.contains(layer))
            .map(|(_, pages)| pages)
            .sum();
        let score = images.entry(&summary.identity.image).or_default();
        score.0 = score.0.max(shared);
        score.1 |= Some(summary.identity.repository()) == repository;
        score.2 = score.2.max(summary.newest_ms);
    }
    let best = (images.into_iter())
        .filter(|(_, (shared, same_repository, _))| *shared > 0 || *same_repository)
        .max_by(|a, b| a.1.cmp(&b.1).then_with(|| a.0.cmp(b.0)));
    best.map_or_else(Vec::new, |(image, _)| {
        files(
            recorded
                .into_iter()
                .filter(|summary| summary.identity.image == image)
                .collect(),
        )
    })
}

/// Files of the image's workloads beyond the `limit` with the newest starts.
pub(super) fn surplus(known: &[&Summary], image: &str, limit: usize) -> Vec<String> {
    let mut of_image: Vec<&&Summary> = known
        .iter()
        .filter(|summary| summary.identity.image == image)
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
