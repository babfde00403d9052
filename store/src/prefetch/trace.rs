//! Takes a witness's trace in: inode numbers become files of layers, touches a run, and READ windows the chunks that
//! the start needed.
//!
//! A trace is checked like everything that comes from outside: numbers that name nothing are left out, pages behind
//! the end of a file are cut off, and what is too much for a profile is refused.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use forelayer_profiler::{
    model::{
        self, FileTouches, Identity, MAX_ITEMS, MAX_PATH, MAX_RANGES, Run, RunExec, TouchedRange,
    },
    protocol::{Touch, Trace},
};

use super::{
    merged::Merged,
    plan::ChunkKey,
    window::{Touched, clamp, windows},
};
use crate::{
    als::inode::Inode,
    digest::Digest,
    format::{Kind, NodeId, index::IndexError},
    image::Layer,
};

/// Names asked for in a directory of a layer.
pub type Names = Vec<(NodeId, Box<[u8]>)>;

/// What a trace says.
#[derive(Debug)]
pub struct TakenIn {
    /// Whose profile it belongs to.
    pub identity: Identity,
    /// The run, without what was predicted in vain.
    pub run: Run,
    /// The container's layers that this store serves, top first.
    pub layers: Vec<Arc<Layer>>,
    /// Decoded bytes of every chunk with a touched page or its READ window in it. Chunks of zeros are not fetched and
    /// not listed.
    pub touched: HashMap<ChunkKey, u64>,
}

/// Why a trace teaches nothing.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The run has no usable id.
    #[error(
        "a trace with run id {0:?} was refused: an id is 1 to 64 lower-case hexadecimal digits"
    )]
    Id(String),
    /// None of its layers is served here.
    #[error(
        "the trace of run {run} (container {container:?}, image {image:?}) names no layer that this store serves, so nothing is learned from it"
    )]
    NoLayer {
        /// The run.
        run: String,
        /// The container's id.
        container: String,
        /// The image.
        image: String,
    },
    /// More than a profile may hold.
    #[error("the trace of run {run} has {count} {what}; a profile holds at most {limit}")]
    Limit {
        /// The run.
        run: String,
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
        /// How many fit.
        limit: usize,
    },
    /// A layer's index cannot be read.
    #[error("the trace of run {run} cannot be taken in")]
    Index {
        /// The run.
        run: String,
        /// Why.
        #[source]
        source: IndexError,
    },
}

/// Takes a trace in. `layer_of` knows the slots, `image_of` names an image by its layers (top first) where the engine's
/// files did not, `names` are the lookups in a slot during the start.
///
/// # Errors
/// If nothing can be learned from the trace.
pub fn take_in(
    trace: &Trace,
    layer_of: &dyn Fn(u32) -> Option<Arc<Layer>>,
    image_of: &dyn Fn(&[Arc<Layer>]) -> Option<String>,
    names: &HashMap<u32, Names>,
) -> Result<TakenIn, TraceError> {
    let hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    if trace.run.is_empty() || trace.run.len() > 64 || !trace.run.bytes().all(hex) {
        return Err(TraceError::Id(trace.run.chars().take(80).collect()));
    }
    let layers = layers(trace, layer_of);
    if layers.is_empty() {
        return Err(TraceError::NoLayer {
            run: trace.run.clone(),
            container: trace.container.id.clone(),
            image: trace.container.image.clone(),
        });
    }
    let index = |source| TraceError::Index {
        run: trace.run.clone(),
        source,
    };
    let (files, touched) = files(&trace.touches, &layers).map_err(index)?;
    let (found, missing) = paths(trace, &layers, &files, names).map_err(index)?;
    let mut execs: Vec<RunExec> = (trace.execs.iter())
        .filter(|exec| is_path(&exec.path))
        .map(|exec| RunExec {
            at_us: exec.at_us,
            path: exec.path.clone(),
        })
        .collect();
    // A shell loop starts programs without end; the first ones tell the story.
    execs.truncate(MAX_ITEMS);
    let ranges = files.iter().map(|file| file.ranges.len()).sum();
    for (what, count, limit) in [
        ("files", files.len(), MAX_ITEMS),
        ("page ranges", ranges, MAX_RANGES),
    ] {
        if count > limit {
            return Err(TraceError::Limit {
                run: trace.run.clone(),
                what,
                count,
                limit,
            });
        }
    }
    let digests: Vec<Digest> = layers.iter().map(|layer| *layer.blob()).collect();
    let image = if trace.container.image.is_empty() {
        image_of(&layers).unwrap_or_default()
    } else {
        trace.container.image.clone()
    };
    let mut run = Run {
        id: trace.run.clone(),
        started_ms: trace.started_ms,
        level: trace.level,
        lost: trace.lost,
        cut: trace.cut,
        pinned: false,
        layers: digests.clone(),
        execs,
        files,
        found,
        missing,
        predicted_unused: Vec::new(),
    };
    run.normalise();
    Ok(TakenIn {
        identity: Identity::new(&image, &trace.container.command, &digests),
        run,
        layers,
        touched,
    })
}

/// The container's layers, top first: as its mount lists them, or where nobody told, those that were touched.
fn layers(trace: &Trace, layer_of: &dyn Fn(u32) -> Option<Arc<Layer>>) -> Vec<Arc<Layer>> {
    let mut slots: Vec<u32> = trace.container.slots.clone();
    if slots.is_empty() {
        slots = (trace.touches.iter())
            .filter_map(|touch| match Inode::of(touch.ino) {
                Some(Inode::Node(slot, _)) => Some(slot),
                _ => None,
            })
            .collect();
        // Later slots were pulled later: the guess that puts upper layers first.
        slots.sort_unstable_by(|a, b| b.cmp(a));
    }
    let mut seen = HashSet::new();
    slots.retain(|slot| seen.insert(*slot));
    slots.into_iter().filter_map(layer_of).collect()
}

type Files = (Vec<FileTouches>, HashMap<ChunkKey, u64>);

fn files(touches: &[Touch], layers: &[Arc<Layer>]) -> Result<Files, IndexError> {
    let by_slot: HashMap<u32, &Arc<Layer>> =
        layers.iter().map(|layer| (layer.slot, layer)).collect();
    let mut ranges: BTreeMap<(u32, NodeId), Vec<TouchedRange>> = BTreeMap::new();
    for touch in touches {
        if let Some(Inode::Node(slot, node)) = Inode::of(touch.ino)
            && by_slot.contains_key(&slot)
        {
            ranges.entry((slot, node)).or_default().push(TouchedRange {
                page: touch.page,
                pages: touch.pages,
                at_us: touch.at_us,
                access: touch.access,
            });
        }
    }
    let mut files = Vec::new();
    let mut chunks = HashMap::new();
    for ((slot, node), ranges) in ranges {
        let Some(layer) = by_slot.get(&slot) else {
            continue;
        };
        // Directories have pages too (READDIR); they are no content.
        let Some(entry) = layer
            .index
            .entry(node)?
            .filter(|entry| entry.kind == Kind::File)
        else {
            continue;
        };
        let touched: Vec<Touched> = model::normalise(ranges)
            .iter()
            .map(|r| Touched {
                page: r.page,
                end: r.end(),
                at_us: r.at_us,
                access: r.access,
            })
            .collect();
        let touched = clamp(touched, entry.size);
        if touched.is_empty() {
            continue;
        }
        for window in windows(&touched, entry.size) {
            for number in layer
                .index
                .chunks_covering(node, window.bytes(entry.size))?
            {
                if let Some(chunk) = layer.index.chunk(number)?.filter(|chunk| !chunk.zeros) {
                    chunks.insert((slot, number), chunk.len);
                }
            }
        }
        files.push(FileTouches {
            path: String::from_utf8_lossy(&layer.index.path(node)?).into_owned(),
            content: entry.content,
            layer: Some(*layer.blob()),
            size: entry.size,
            ranges: touched.iter().flat_map(pieces).collect(),
        });
    }
    Ok((files, chunks))
}

/// A range of the profile holds at most `u32::MAX` pages.
fn pieces(touched: &Touched) -> impl Iterator<Item = TouchedRange> + use<> {
    let Touched {
        page,
        end,
        at_us,
        access,
    } = *touched;
    (page..end)
        .step_by(u32::MAX as usize)
        .map(move |page| TouchedRange {
            page,
            pages: u32::try_from(end - page).unwrap_or(u32::MAX),
            at_us,
            access,
        })
}

/// Paths that were asked for besides the touched files: (found, not found). What belongs to no layer (volumes, /proc)
/// is neither.
fn paths(
    trace: &Trace,
    layers: &[Arc<Layer>],
    files: &[FileTouches],
    names: &HashMap<u32, Names>,
) -> Result<(Vec<String>, Vec<String>), IndexError> {
    let mut tree = Merged::new(layers);
    let touched: HashSet<&str> = files.iter().map(|file| file.path.as_str()).collect();
    let mut asked: Vec<String> = (trace.opens.iter())
        .filter(|open| open.path.starts_with('/') && is_path(&open.path))
        .map(|open| open.path.clone())
        .collect();
    for layer in layers {
        for (directory, name) in names.get(&layer.slot).into_iter().flatten() {
            if layer.index.entry(*directory)?.is_none() {
                continue;
            }
            let mut path = layer.index.path(*directory)?;
            path.push(b'/');
            path.extend_from_slice(name);
            // A name that is not UTF-8 cannot be kept in a profile.
            if let Ok(path) = String::from_utf8(path) {
                let path = format!("/{}", path.trim_start_matches('/'));
                if is_path(&path) {
                    asked.push(path);
                }
            }
        }
    }
    asked.sort();
    asked.dedup();
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for path in asked {
        if touched.contains(path.trim_start_matches('/')) || elsewhere(&path) {
            continue;
        }
        let list = if tree.resolve(path.as_bytes())?.is_some() {
            &mut found
        } else {
            &mut missing
        };
        if list.len() < MAX_ITEMS {
            list.push(path);
        }
    }
    Ok((found, missing))
}

/// Below directories that every container mounts over.
fn elsewhere(path: &str) -> bool {
    ["/proc", "/sys", "/dev"].iter().any(|top| {
        path.strip_prefix(top)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

fn is_path(path: &str) -> bool {
    !path.is_empty() && path.len() <= MAX_PATH && !path.contains('\0')
}

#[cfg(test)]
mod tests;
