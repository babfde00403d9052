//! A line a file: when which of its pages were first touched, and how.

use std::fmt::Write as _;

use forelayer_profiler::{
    model::{FileTouches, Run},
    protocol::Access,
};

use super::{
    escape::{shortened, text},
    rows::{self, Row},
    scale::{COLUMNS, LEFT, RIGHT, Scale, WIDTH, ms},
};
use crate::cli::human;

/// Height of a row, and of a mark in it.
const ROW: f64 = 18.0;
const MARK: f64 = 12.0;
/// Characters of a label before the drawing.
const LABEL: usize = 38;

/// The kinds of access with their colour's name and their own, in the order in which they are drawn.
pub(super) const KINDS: [(Access, &str, &str); 3] = [
    (Access::Read, "read", "read by a program"),
    (Access::Map, "map", "touched through a mapping"),
    (
        Access::Add,
        "add",
        "entered the page cache, read-ahead included",
    ),
];

/// The rows of a run below `top`, and where they end.
pub(super) fn rows(run: &Run, scale: Scale, top: f64) -> (String, f64) {
    let mut svg = String::new();
    let mut y = top;
    for layer in rows::of(run) {
        y += ROW + 6.0;
        let _ = writeln!(
            svg,
            "<text class=\"layer\" x=\"0\" y=\"{:.0}\">{}</text>",
            y - 5.0,
            text(&layer.name)
        );
        for row in &layer.rows {
            one(&mut svg, row, scale, y);
            y += ROW;
        }
    }
    (svg, y)
}

fn one(svg: &mut String, row: &Row<'_>, scale: Scale, y: f64) {
    let below = y + ROW - 5.0;
    let floor = y + ROW;
    let bytes = human(row.bytes());
    let _ = writeln!(
        svg,
        "<g><title>{}: {bytes}, {}</title><text x=\"{:.0}\" y=\"{below:.0}\" text-anchor=\"end\">{}</text><text x=\"{WIDTH}\" y=\"{below:.0}\" text-anchor=\"end\">{bytes}</text><line x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{floor:.0}\" y2=\"{floor:.0}\" stroke=\"var(--faint)\"/>",
        text(&row.label),
        span(&row.files),
        LEFT - 8.0,
        text(&shortened(&row.label, LABEL)),
    );
    for (access, colour, _) in KINDS {
        let marks = marks(&row.files, access, scale, y + (ROW - MARK) / 2.0);
        if !marks.is_empty() {
            let _ = writeln!(
                svg,
                "<path d=\"{marks}\" stroke=\"var(--{colour})\" stroke-width=\"3\"/>"
            );
        }
    }
    svg.push_str("</g>\n");
}

/// When the files were touched, in words.
fn span(files: &[&FileTouches]) -> String {
    let times = || {
        files
            .iter()
            .flat_map(|file| &file.ranges)
            .map(|r| ms(r.at_us))
    };
    let first = times().fold(f64::INFINITY, f64::min);
    let last = times().fold(f64::NEG_INFINITY, f64::max);
    format!("first touches {first:+.2} to {last:+.2} ms")
}

/// An upright stroke in each column in which pages were touched this way.
fn marks(files: &[&FileTouches], access: Access, scale: Scale, top: f64) -> String {
    let mut columns = [false; COLUMNS];
    let ranges = files.iter().flat_map(|file| &file.ranges);
    for range in ranges.filter(|range| range.access == access) {
        columns[scale.column(range.at_us)] = true;
    }
    let mut path = String::new();
    for (column, _) in columns.iter().enumerate().filter(|(_, is)| **is) {
        let _ = write!(path, "M{:.1} {top:.0}v{MARK}", scale.place(column));
    }
    path
}

#[cfg(test)]
mod tests {
    use super::{super::rows::tests::*, *};

    #[test]
    fn a_row_has_a_mark_a_kind_of_access_at_its_time_and_says_its_bytes() {
        let mut app = file("usr/bin/<app>", b"top", 4, 0);
        app.ranges.push(forelayer_profiler::model::TouchedRange {
            page: 9,
            pages: 1,
            at_us: 2000,
            access: Access::Read,
        });
        let run = run("01", vec![app]);
        let (svg, bottom) = rows(&run, Scale::of(&run), 100.0);
        for part in [
            "/usr/bin/&lt;app&gt;: 20.00 KiB, first touches +0.00 to +2.00 ms",
            "d=\"M310.0 127v12\" stroke=\"var(--map)\"",
            "d=\"M912.0 127v12\" stroke=\"var(--read)\"",
            "layer 2 of 2, sha256:",
        ] {
            assert!(svg.contains(part), "{part:?} is not in\n{svg}");
        }
        assert!((bottom - 142.0).abs() < 1e-9);
        assert!(!svg.contains("<app>"));
    }
}
