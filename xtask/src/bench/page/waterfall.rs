//! A start as a drawing: its phases, its requests, and the bytes that came against those that were needed.

use std::fmt::Write as _;

use super::{
    super::{
        limit::Limit,
        report::{Case, megabytes},
        start::{Mode, Sent, Start},
    },
    text,
};

/// Width of a drawing in its own units; the other measures too.
const WIDTH: f64 = 1000.0;
/// Height of the phases, and where the requests begin.
const PHASES: f64 = 16.0;
const BARS: f64 = PHASES + 6.0;
/// Height of all requests at the most, and from one to the next.
const TALL: f64 = 240.0;
const PITCH: f64 = 4.0;
/// Height of the curves.
const CURVES: f64 = 120.0;
/// Points of a curve: more are not seen.
const POINTS: usize = 400;

/// Draws a start; `scale`: seconds of the width. `titles`: each request tells its figures.
pub(super) fn draw(page: &mut String, case: &Case, start: &Start, scale: f64, titles: bool) {
    let x = |seconds: f64| (seconds / scale).clamp(0.0, 1.0) * WIDTH;
    #[expect(clippy::cast_precision_loss, reason = "requests of a start")]
    let pitch = (TALL / start.waterfall.len().max(1) as f64).min(PITCH);
    #[expect(clippy::cast_precision_loss, reason = "requests of a start")]
    let bars = start.waterfall.len() as f64 * pitch;
    let lazy = matches!(start.mode, Mode::Unlearned | Mode::Learned | Mode::Peer);
    let limit = case.limit.as_ref().filter(|_| lazy);
    let bottom = BARS + bars + limit.map_or(0.0, |_| CURVES) + 4.0;
    let _ = writeln!(
        page,
        "<div class=\"scroll\"><svg viewBox=\"0 0 {WIDTH} {:.0}\" role=\"img\" aria-label=\"phases and requests of the {} start\">",
        bottom + 22.0,
        start.mode.name()
    );
    axis(page, scale, bottom);
    phases(page, start, x);
    if titles {
        told(page, &start.waterfall, x, pitch);
    } else {
        drawn(page, &start.waterfall, x, pitch);
    }
    if let Some(limit) = limit {
        curves(page, limit, start, scale, bottom - 4.0);
        let _ = writeln!(
            page,
            "<line class=\"star\" x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"0\" y2=\"{bottom:.1}\"><title>T* {1:.3} s</title></line>",
            x(limit.t_star),
            limit.t_star
        );
    }
    page.push_str("</svg></div>\n");
}

fn axis(page: &mut String, scale: f64, bottom: f64) {
    for tick in 0..=4 {
        let part = f64::from(tick) / 4.0;
        let anchor = match tick {
            0 => "start",
            4 => "end",
            _ => "middle",
        };
        let _ = writeln!(
            page,
            "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"0\" y2=\"{bottom:.1}\"/><text x=\"{0:.1}\" y=\"{1:.1}\" text-anchor=\"{anchor}\">{2:.2} s</text>",
            part * WIDTH,
            bottom + 17.0,
            part * scale,
        );
    }
}

fn phases(page: &mut String, start: &Start, x: impl Fn(f64) -> f64) {
    let phases = [
        ("pull", "pull", 0.0, start.pulled),
        ("make", "container", start.pulled, start.started),
        ("run", "program", start.started, start.ready),
    ];
    for (class, name, from, to) in phases {
        let width = x(to) - x(from);
        if width < 0.5 {
            continue;
        }
        let _ = write!(
            page,
            "<rect class=\"{class}\" x=\"{:.1}\" width=\"{width:.1}\" height=\"{PHASES}\"><title>{name}: {from:.3} s to {to:.3} s</title></rect>",
            x(from),
        );
        if width > 80.0 {
            let _ = write!(
                page,
                "<text x=\"{:.1}\" y=\"13\">{name}</text>",
                x(from) + 5.0
            );
        }
        page.push('\n');
    }
}

fn class(sent: &Sent) -> &'static str {
    match sent.what.as_str() {
        "metadata" => "meta",
        _ => "blob",
    }
}

/// Each request by itself, with its figures.
fn told(page: &mut String, requests: &[Sent], x: impl Fn(f64) -> f64, pitch: f64) {
    let mut y = BARS;
    for sent in requests {
        let range =
            (sent.range).map_or_else(String::new, |(from, to)| format!(" at {from} to {to}"));
        let _ = writeln!(
            page,
            "<rect class=\"{}\" x=\"{:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\"><title>{:.3} s to {:.3} s, {} bytes, {}{range}</title></rect>",
            class(sent),
            x(sent.from),
            (x(sent.to) - x(sent.from)).max(1.0),
            pitch * 0.8,
            sent.from,
            sent.to,
            sent.bytes,
            text(&sent.what),
        );
        y += pitch;
    }
}

/// All requests in two strokes: a page has thousands of starts.
fn drawn(page: &mut String, requests: &[Sent], x: impl Fn(f64) -> f64, pitch: f64) {
    for kind in ["meta", "blob"] {
        let mut path = String::new();
        let mut y = BARS + pitch / 2.0;
        for sent in requests {
            if class(sent) == kind {
                let width = (x(sent.to) - x(sent.from)).max(1.0);
                let _ = write!(path, "M{:.0} {y:.1}h{width:.0}", x(sent.from));
            }
            y += pitch;
        }
        if !path.is_empty() {
            let _ = writeln!(
                page,
                "<path class=\"{kind}\" stroke-width=\"{:.1}\" d=\"{path}\"/>",
                pitch * 0.8
            );
        }
    }
}

/// Bytes that the start with everything local needed by then, and those of layers that came by then.
fn curves(page: &mut String, limit: &Limit, start: &Start, scale: f64, bottom: f64) {
    let most = megabytes(limit.bytes.max(1)) * 1.1;
    let mut line = |class: &str, points: &mut dyn Iterator<Item = (f64, f64)>| {
        let mut drawn = String::new();
        for (seconds, bytes) in points {
            let _ = write!(
                drawn,
                "{:.1},{:.1} ",
                (seconds / scale).clamp(0.0, 1.0) * WIDTH,
                bottom - CURVES * (bytes / most).min(1.0)
            );
        }
        let _ = writeln!(page, "<polyline class=\"{class}\" points=\"{drawn}\"/>");
    };
    let step = (limit.needs.len() / POINTS).max(1);
    let needs = limit.needs.iter().step_by(step).chain(limit.needs.last());
    line(
        "need",
        &mut needs.map(|&(at, bytes)| (at, megabytes(bytes))),
    );
    #[expect(clippy::cast_precision_loss, reason = "points of a curve")]
    let times = (0..=POINTS).map(|point| start.ready * point as f64 / POINTS as f64);
    line(
        "came",
        &mut times.map(|at| (at, came(&start.waterfall, at))),
    );
}

/// Megabytes of layers that had come by then, if each request's came evenly.
fn came(requests: &[Sent], at: f64) -> f64 {
    (requests.iter())
        .filter(|sent| class(sent) == "blob" && sent.from < at)
        .map(|sent| {
            let part = (at - sent.from) / (sent.to - sent.from).max(1e-6);
            megabytes(sent.bytes) * part.min(1.0)
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_evenly_and_metadata_does_not_count() {
        let sent = |from, to, bytes, what: &str| Sent {
            from,
            to,
            bytes,
            range: None,
            what: what.to_owned(),
        };
        let requests = [
            sent(0.0, 1.0, 9_000_000, "metadata"),
            sent(1.0, 3.0, 4_000_000, "abcdef"),
            sent(2.0, 4.0, 2_000_000, "abcdef"),
        ];
        let of = |at: f64| came(&requests, at);
        for (at, megabytes) in [(0.5, 0.0), (2.0, 2.0), (3.0, 5.0), (9.0, 6.0)] {
            assert!((of(at) - megabytes).abs() < 1e-9, "{at}: {}", of(at));
        }
    }
}
