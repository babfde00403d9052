//! The waterfalls: one page that needs nothing but itself.

use std::fmt::Write as _;

use super::{
    report::{Case, Report, megabytes},
    start::{Mode, Start},
};

/// Width of a drawing in its own units.
const WIDTH: f64 = 1000.0;
/// Height of a request's bar, and of the curve of needs.
const BAR: f64 = 3.0;
const CURVE: f64 = 120.0;

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --faint: #d5dae0; --meta: #8b95a1; --blob: #2f6fde; --need: #c2571a; --star: #1a8f4c; --ready: #b3261e }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --paper: #14171a; --faint: #343a41; --meta: #77828e; --blob: #6ea0ff; --need: #f0a063; --star: #5fd08c; --ready: #ff8a80 } }
body { margin: 0 auto; padding: 1rem; max-width: 70rem; font: 16px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper) }
h1 { font-size: 1.4rem } h2 { font-size: 1.15rem; margin-top: 2rem } h3 { font-size: 1rem; margin-bottom: .3rem; font-weight: 600 }
svg { width: 100%; height: auto; display: block } text { font-size: 14px; fill: var(--ink) }
.scroll { overflow-x: auto } table { border-collapse: collapse } td, th { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--faint); white-space: nowrap } td:first-child, th:first-child { text-align: left }
.key span { display: inline-block; margin-right: 1.2rem } .key i { display: inline-block; width: .8rem; height: .8rem; margin-right: .35rem; vertical-align: -.05rem }
";

/// The page.
pub(super) fn html(report: &Report) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>Forelayer bench</title>\n<style>{STYLE}</style>\n<h1>Cold starts</h1>\n"
    );
    page.push_str("<p class=\"key\"><span><i style=\"background:var(--blob)\"></i>layer bytes</span><span><i style=\"background:var(--meta)\"></i>metadata</span><span><i style=\"background:var(--need)\"></i>bytes needed by then, all local</span><span><i style=\"background:var(--ready)\"></i>ready</span><span><i style=\"background:var(--star)\"></i>T*</span></p>\n");
    for case in &report.cases {
        section(&mut page, case);
    }
    page.push_str("</html>\n");
    page
}

fn section(page: &mut String, case: &Case) {
    let _ = writeln!(
        page,
        "<h2>{} as {}</h2>",
        text(&case.image),
        text(&case.format)
    );
    page.push_str("<div class=\"scroll\"><table><tr><th>start</th><th>pulled</th><th>ready</th><th>bytes</th><th>requests</th><th>stalled</th></tr>\n");
    let scale = Mode::ALL
        .iter()
        .filter_map(|mode| case.median(*mode))
        .map(|start| start.ready)
        .chain(case.limit.iter().map(|limit| limit.t_star))
        .fold(0.1, f64::max);
    for mode in Mode::ALL {
        if let Some(start) = case.median(mode) {
            let stalled = start
                .store
                .as_ref()
                .map_or_else(|| "-".to_owned(), |store| format!("{:.2} s", store.stalled));
            let _ = writeln!(
                page,
                "<tr><td>{}</td><td>{:.2} s</td><td>{:.2} s</td><td>{:.1} MB</td><td>{}</td><td>{stalled}</td></tr>",
                mode.name(),
                start.pulled,
                start.ready,
                megabytes(start.bytes),
                start.requests,
            );
        }
    }
    if let Some(limit) = &case.limit {
        let _ = writeln!(
            page,
            "<tr><td>T*</td><td></td><td>{:.2} s</td><td>{:.1} MB</td><td></td><td></td></tr>",
            limit.t_star,
            megabytes(limit.bytes)
        );
    }
    page.push_str("</table></div>\n");
    for mode in Mode::ALL {
        if let Some(start) = case
            .median(mode)
            .filter(|start| !start.waterfall.is_empty())
        {
            waterfall(page, case, start, scale);
        }
    }
}

fn waterfall(page: &mut String, case: &Case, start: &Start, scale: f64) {
    let x = |seconds: f64| (seconds / scale).clamp(0.0, 1.0) * WIDTH;
    let lazy = matches!(start.mode, Mode::Unlearned | Mode::Learned);
    #[expect(clippy::cast_precision_loss, reason = "requests of a start")]
    let bars = start.waterfall.len() as f64 * (BAR + 1.0);
    let height = bars + CURVE + 30.0;
    let _ = writeln!(
        page,
        "<h3>{}</h3>\n<svg viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\" aria-label=\"requests of the {} start\">",
        start.mode.name(),
        start.mode.name()
    );
    let mut y = 0.0;
    for sent in &start.waterfall {
        let colour = if sent.what == "metadata" {
            "meta"
        } else {
            "blob"
        };
        let _ = writeln!(
            page,
            "<rect x=\"{:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR}\" fill=\"var(--{colour})\"><title>{:.3} s to {:.3} s, {} bytes, {}</title></rect>",
            x(sent.from),
            (x(sent.to) - x(sent.from)).max(1.0),
            sent.from,
            sent.to,
            sent.bytes,
            text(&sent.what),
        );
        y += BAR + 1.0;
    }
    if let Some(limit) = case.limit.as_ref().filter(|_| lazy) {
        let mut points = String::new();
        // A thousand points draw as well as a hundred thousand.
        let step = (limit.needs.len() / 1000).max(1);
        for (at, bytes) in limit.needs.iter().step_by(step) {
            let part = megabytes(*bytes) / megabytes(limit.bytes.max(1));
            let _ = write!(points, "{:.1},{:.1} ", x(*at), y + CURVE * (1.0 - part));
        }
        let _ = writeln!(
            page,
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"var(--need)\" stroke-width=\"2\"/>"
        );
        line(page, x(limit.t_star), y + CURVE, "star");
    }
    line(page, x(start.ready), y + CURVE, "ready");
    for tick in 0..=4 {
        let at = scale * f64::from(tick) / 4.0;
        let anchor = match tick {
            0 => "start",
            4 => "end",
            _ => "middle",
        };
        let _ = writeln!(
            page,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{at:.2} s</text>",
            x(at),
            y + CURVE + 22.0
        );
    }
    page.push_str("</svg>\n");
}

fn line(page: &mut String, x: f64, to: f64, colour: &str) {
    let _ = writeln!(
        page,
        "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"0\" y2=\"{to:.1}\" stroke=\"var(--{colour})\" stroke-width=\"2\"/>"
    );
}

fn text(raw: &str) -> String {
    raw.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
