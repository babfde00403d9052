//! Which files of a run get a row of their own: those with the most bytes and those touched first, by layer. The rest
//! is summed up.

use std::collections::{BTreeMap, BTreeSet};

use forelayer_profiler::{
    Digest,
    model::{FileTouches, PAGE, Run},
};

/// Rows for the files of which most was touched.
const MOST: usize = 30;
/// Rows for the files that were touched first.
const EARLIEST: usize = 10;

/// The rows of one layer, in order of their first touch.
#[derive(Debug)]
pub(super) struct Layer<'a> {
    /// Where it lies in the image, and its digest.
    pub(super) name: String,
    pub(super) rows: Vec<Row<'a>>,
}

/// A file, or several summed up.
#[derive(Debug)]
pub(super) struct Row<'a> {
    /// As it came: not escaped.
    pub(super) label: String,
    pub(super) files: Vec<&'a FileTouches>,
}

impl Row<'_> {
    /// Touched bytes, in whole pages.
    pub(super) fn bytes(&self) -> u64 {
        let sum = |sum: u64, file: &&FileTouches| sum.saturating_add(bytes(file));
        self.files.iter().fold(0, sum)
    }
}

/// Touched bytes of a file, in whole pages.
pub(super) fn bytes(file: &FileTouches) -> u64 {
    let pages = file.ranges.iter().map(|range| u64::from(range.pages));
    pages.fold(0, u64::saturating_add).saturating_mul(PAGE)
}

fn first(file: &FileTouches) -> i64 {
    let touches = file.ranges.iter().map(|range| range.at_us);
    touches.min().unwrap_or(i64::MAX)
}

/// The rows of a run, top layer first. Never more than 40 files, two rows a layer for names and sums, and one for the
/// layers that have none of these files.
pub(super) fn of(run: &Run) -> Vec<Layer<'_>> {
    let own = chosen(run);
    let place: BTreeMap<Digest, usize> = (run.layers.iter().enumerate().rev())
        .map(|(at, digest)| (*digest, at))
        .collect();
    // Layers that the run does not list come last.
    let key = |layer: Option<Digest>| {
        let at = layer.and_then(|digest| place.get(&digest).copied());
        (at.unwrap_or(usize::MAX), layer)
    };
    let mut shown: BTreeMap<_, (Vec<&FileTouches>, Vec<&FileTouches>)> = BTreeMap::new();
    for at in &own {
        let file = &run.files[*at];
        shown.entry(key(file.layer)).or_default().0.push(file);
    }
    let (mut elsewhere, mut layers_elsewhere) = (Vec::new(), BTreeSet::new());
    for (at, file) in run.files.iter().enumerate() {
        if own.contains(&at) {
            continue;
        }
        match shown.get_mut(&key(file.layer)) {
            Some((_, rest)) => rest.push(file),
            None => {
                elsewhere.push(file);
                layers_elsewhere.insert(file.layer);
            }
        }
    }
    let mut layers: Vec<Layer<'_>> = (shown.into_iter())
        .map(|((at, digest), (mut files, rest))| {
            files.sort_by_key(|file| (first(file), &file.path));
            let mut rows: Vec<Row<'_>> = (files.into_iter())
                .map(|file| Row {
                    label: format!("/{}", file.path),
                    files: vec![file],
                })
                .collect();
            rows.extend(summed(rest, "more files"));
            let name = name(at, digest, run.layers.len());
            Layer { name, rows }
        })
        .collect();
    if let Some(row) = summed(elsewhere, "files") {
        layers.push(Layer {
            name: format!("{} other layers", layers_elsewhere.len()),
            rows: vec![row],
        });
    }
    layers
}

/// Places in `run.files` of those that get a row.
fn chosen(run: &Run) -> BTreeSet<usize> {
    let mut most: Vec<(u64, usize)> = (run.files.iter().enumerate())
        .map(|(at, file)| (bytes(file), at))
        .collect();
    most.sort_by_key(|&(bytes, at)| (std::cmp::Reverse(bytes), at));
    let mut earliest: Vec<(i64, usize)> = (run.files.iter().enumerate())
        .map(|(at, file)| (first(file), at))
        .collect();
    earliest.sort_unstable();
    (most.iter().take(MOST).map(|(_, at)| *at))
        .chain(earliest.iter().take(EARLIEST).map(|(_, at)| *at))
        .collect()
}

fn summed<'a>(files: Vec<&'a FileTouches>, what: &str) -> Option<Row<'a>> {
    (!files.is_empty()).then(|| Row {
        label: format!("{} {what}", files.len()),
        files,
    })
}

fn name(at: usize, digest: Option<Digest>, layers: usize) -> String {
    let Some(digest) = digest else {
        return "layer not known".to_owned();
    };
    let digest: String = digest.to_string().chars().take(19).collect();
    match at {
        usize::MAX => digest,
        at => format!("layer {} of {layers}, {digest}", layers - at),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use forelayer_profiler::{
        model::TouchedRange,
        protocol::{Access, Level},
    };

    use super::*;

    /// A run of these files.
    pub(in super::super) fn run(id: &str, files: Vec<FileTouches>) -> Run {
        Run {
            id: id.to_owned(),
            started_ms: 1_700_000_000_000,
            level: Level::Tracepoints,
            lost: 0,
            cut: false,
            pinned: false,
            layers: vec![Digest::of(b"top"), Digest::of(b"base")],
            execs: Vec::new(),
            files,
            found: Vec::new(),
            missing: Vec::new(),
            predicted_unused: Vec::new(),
        }
    }

    /// A file of which so many pages were touched then.
    pub(in super::super) fn file(path: &str, layer: &[u8], pages: u32, at_us: i64) -> FileTouches {
        FileTouches {
            path: path.to_owned(),
            content: None,
            layer: Some(Digest::of(layer)),
            size: 1 << 40,
            ranges: vec![TouchedRange {
                page: 0,
                pages,
                at_us,
                access: Access::Map,
            }],
        }
    }

    #[test]
    fn files_are_grouped_by_layer_and_ordered_by_their_first_touch() {
        let files = vec![
            file("b", b"base", 1, 20),
            file("a", b"base", 9, 30),
            file("t", b"top", 1, 40),
            file("x", b"elsewhere", 1, 10),
        ];
        let run = run("01", files);
        let layers = of(&run);
        let names: Vec<_> = layers.iter().map(|layer| &layer.name[..14]).collect();
        assert_eq!(
            names,
            ["layer 2 of 2, ", "layer 1 of 2, ", "sha256:7b1b763"]
        );
        let labels: Vec<_> = layers[1].rows.iter().map(|row| &row.label).collect();
        assert_eq!(labels, ["/b", "/a"]);
        assert_eq!(layers[1].rows[1].bytes(), 9 * PAGE);
    }

    #[test]
    fn rows_are_bounded_and_no_byte_is_left_out() {
        let files = (0..5000_u32).map(|at| {
            let layer = at.to_le_bytes();
            file(&format!("f{at}"), &layer[..1], at + 1, -i64::from(at))
        });
        let run = run("01", files.collect());
        let layers = of(&run);
        let rows: usize = layers.iter().map(|layer| layer.rows.len()).sum();
        assert!(rows <= 2 * (MOST + EARLIEST) + 1, "{rows} rows");
        let bytes: u64 = layers.iter().flat_map(|l| &l.rows).map(Row::bytes).sum();
        assert_eq!(bytes, run.pages() * PAGE);
        assert!(
            layers
                .last()
                .is_some_and(|l| l.name.ends_with("other layers"))
        );
    }

    #[test]
    fn sums_of_a_hostile_profile_do_not_overflow() {
        let huge = file("x", b"top", u32::MAX, i64::MIN);
        let files: Vec<_> = (0..100_000).map(|_| huge.clone()).collect();
        let run = run("01", files);
        assert!(of(&run)[0].rows.iter().all(|row| row.bytes() > 0));
    }
}
