//! The waterfall of one run: bytes needed by time, programs, files.

use std::fmt::Write as _;

use forelayer_profiler::model::{PAGE, Run, RunExec};

use super::{
    bars,
    escape::{shortened, text},
    scale::{COLUMNS, LEFT, RIGHT, Scale, WIDTH, ms},
};
use crate::cli::human;

/// Height of a line of labels.
const LINE: f64 = 18.0;
/// Height of the curve.
const CURVE: f64 = 140.0;
/// Programs that get a mark.
const EXECS: usize = 60;
/// Lines of labels of programs; one that finds no room has its name in the mark's title only.
const LANES: usize = 6;
/// Characters of a program's label.
const NAME: usize = 24;
/// Width of a character, about: labels must not overlap.
const CHARACTER: f64 = 7.5;

/// The drawing. Bounded whatever the run holds.
pub(super) fn svg(run: &Run) -> String {
    let scale = Scale::of(run);
    let (labels, lanes) = labels(run, scale);
    let top = lanes as f64 * LINE + 6.0;
    let base = top + CURVE;
    let (rows, bottom) = bars::rows(run, scale, base + LINE + 16.0);
    let height = bottom + 8.0;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\" aria-label=\"bytes needed by time, and the files they are of\">\n"
    );
    for at in scale.ticks() {
        let x = scale.x(at);
        let _ = writeln!(
            svg,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top:.0}\" y2=\"{height:.0}\" stroke=\"var(--faint)\"/><text x=\"{x:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{}</text>",
            base + LINE,
            tick(at),
        );
    }
    for exec in run.execs.iter().take(EXECS) {
        let x = scale.x(ms(exec.at_us));
        let _ = writeln!(
            svg,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"4\" y2=\"{base:.0}\" stroke=\"var(--exec)\"><title>{:+.2} ms {}</title></line>",
            ms(exec.at_us),
            text(&exec.path)
        );
    }
    svg += &labels;
    svg += &curve(run, scale, top);
    svg += &rows;
    svg.push_str("</svg>\n");
    svg
}

/// A time on the axis, with the unit that shows it shortest.
fn tick(ms: f64) -> String {
    if ms.abs() >= 10_000.0 {
        format!("{} s", ms / 1000.0)
    } else {
        // Steps may be tenths, whose sums are not round.
        format!("{} ms", (ms * 1000.0).round() / 1000.0)
    }
}

/// What of `run.execs` gets no mark.
pub(super) fn execs_left(run: &Run) -> &[RunExec] {
    run.execs.get(EXECS..).unwrap_or_default()
}

/// Names of programs where they do not overlap, and how many lines they take.
fn labels(run: &Run, scale: Scale) -> (String, usize) {
    let mut ends = [f64::MIN; LANES];
    let mut svg = String::new();
    let mut lanes = 0;
    for exec in run.execs.iter().take(EXECS) {
        let name = exec.path.rsplit('/').next().unwrap_or_default();
        let name = shortened(name, NAME);
        let width = name.chars().count() as f64 * CHARACTER + 8.0;
        let mark = scale.x(ms(exec.at_us));
        // Near the right end it stands before its mark.
        let (x, anchor, from) = if mark + width > WIDTH {
            (mark - 4.0, "end", mark - width)
        } else {
            (mark + 4.0, "start", mark)
        };
        let Some(lane) = ends.iter().position(|end| *end <= from) else {
            continue;
        };
        ends[lane] = from + width;
        lanes = lanes.max(lane + 1);
        let y = (lane as f64 + 1.0) * LINE - 4.0;
        let _ = writeln!(
            svg,
            "<text class=\"exec\" x=\"{x:.1}\" y=\"{y:.0}\" text-anchor=\"{anchor}\">{}</text>",
            text(&name)
        );
    }
    (svg, lanes)
}

/// Bytes that were needed by each time: a step up at each touch.
fn curve(run: &Run, scale: Scale, top: f64) -> String {
    let mut pages = [0_u64; COLUMNS];
    for range in run.files.iter().flat_map(|file| &file.ranges) {
        pages[scale.column(range.at_us)] += u64::from(range.pages);
    }
    let all = run.pages();
    let base = top + CURVE;
    let mut points = format!("{LEFT:.1},{base:.1}");
    let (mut sum, mut y) = (0, base);
    for (column, pages) in pages
        .into_iter()
        .enumerate()
        .filter(|(_, pages)| *pages > 0)
    {
        let x = scale.place(column);
        sum += pages;
        let _ = write!(points, " {x:.1},{y:.1}");
        y = top + CURVE * (1.0 - sum as f64 / all.max(1) as f64);
        let _ = write!(points, " {x:.1},{y:.1}");
    }
    let _ = write!(points, " {RIGHT:.1},{y:.1}");
    format!(
        "<polyline points=\"{points}\" fill=\"none\" stroke=\"var(--need)\" stroke-width=\"2\"/>\n\
         <text x=\"{0:.0}\" y=\"{1:.0}\" text-anchor=\"end\">{2}</text><text x=\"{0:.0}\" y=\"{base:.0}\" text-anchor=\"end\">0</text>\n",
        LEFT - 8.0,
        top + 12.0,
        human(all.saturating_mul(PAGE)),
    )
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::{super::rows::tests::*, *};

    #[test]
    fn the_curve_steps_up_to_all_bytes_by_their_times() {
        let files = vec![file("a", b"top", 1, 0), file("b", b"top", 3, 1_000_000)];
        let run = run("01", files);
        let svg = curve(&run, Scale::of(&run), 0.0);
        let (_, points) = svg.split_once("points=\"").unwrap();
        let points = points.split('"').next().unwrap();
        assert_eq!(
            points,
            "310.0,140.0 310.0,140.0 310.0,105.0 912.0,105.0 912.0,0.0 912.0,0.0"
        );
        assert!(svg.contains(">16.00 KiB<"), "{svg}");
    }

    #[test]
    fn programs_are_marked_up_to_a_bound_and_their_names_do_not_overlap() {
        let mut run = run("01", Vec::new());
        run.execs = (0..200)
            .map(|at| RunExec {
                at_us: at,
                path: format!("/bin/<{at}>"),
            })
            .collect();
        let (labels, lanes) = labels(&run, Scale::of(&run));
        assert_eq!(lanes, LANES);
        assert!(labels.matches("<text").count() < EXECS);
        assert!(labels.contains("&lt;0&gt;"), "{labels}");
        assert_eq!(execs_left(&run).len(), 140);
        assert_eq!(svg(&run).matches("<title>").count(), EXECS);
    }

    #[test]
    fn a_run_of_everything_at_its_limit_is_a_small_drawing() {
        let mut run = run("01", Vec::new());
        for at in 0..2000_i64 {
            let path = "\u{202e}<".repeat(2000);
            let mut file = file(&path, &at.to_le_bytes(), 1, at * 1000);
            file.ranges = (0..100)
                .map(|page| forelayer_profiler::model::TouchedRange {
                    page,
                    at_us: at.wrapping_mul(page.cast_signed().wrapping_mul(7919)) % 9_999_999,
                    ..file.ranges[0]
                })
                .collect();
            run.files.push(file);
        }
        let svg = svg(&run);
        assert!(svg.len() < 1 << 20, "{} bytes", svg.len());
    }
}
