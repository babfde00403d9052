//! The page: tables and waterfalls in one file that needs nothing but itself.

mod waterfall;

use std::fmt::Write as _;

use super::{
    report::{Case, Report, megabytes, shown},
    start::{Mode, Start},
    stats::{ENOUGH, median},
};

const STYLE: &str = include_str!("page/style.css");

/// The colours and what they stand for.
const KEY: [(&str, &str); 8] = [
    ("pull", "pull"),
    ("make", "making the container"),
    ("run", "the program, to ready"),
    ("meta", "requests for metadata"),
    ("blob", "requests for layers"),
    ("need", "bytes needed by then, all local"),
    ("came", "bytes come by then (dashed)"),
    ("star", "T*"),
];

/// The page.
pub(super) fn html(report: &Report) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>Forelayer bench</title>\n<style>{STYLE}</style>\n<h1>Cold starts</h1>\n<p>Seconds from the start of <code>podman pull</code> to the program's ready line. T* is the time before which no start can be ready over that link; learned ÷ T* and the penalty cut are the goals' figures.</p>\n"
    );
    if !report.peer {
        page.push_str("<p>There was no stargz-store to measure: the penalty is that of our own unlearned start.</p>\n");
    }
    overview(&mut page, report);
    page.push_str("<p class=\"key\">");
    for (class, meaning) in KEY {
        let _ = write!(page, "<span><i class=\"{class}\"></i>{meaning}</span>");
    }
    page.push_str("</p>\n");
    for (number, case) in report.cases.iter().enumerate() {
        section(&mut page, number, case);
    }
    page.push_str("</html>\n");
    page
}

/// Opens a table that scrolls by itself on a narrow screen.
fn table(page: &mut String, heads: &[&str]) {
    page.push_str("<div class=\"scroll\"><table>\n<tr>");
    for head in heads {
        let _ = write!(page, "<th>{head}</th>");
    }
    page.push_str("</tr>\n");
}

fn row(page: &mut String, cells: &[String]) {
    page.push_str("<tr>");
    for cell in cells {
        let _ = write!(page, "<td>{cell}</td>");
    }
    page.push_str("</tr>\n");
}

fn overview(page: &mut String, report: &Report) {
    let mut heads = vec!["image", "link"];
    let modes: Vec<Mode> = (Mode::ALL.into_iter())
        .filter(|mode| *mode != Mode::Warm && (report.peer || *mode != Mode::Peer))
        .collect();
    heads.extend(modes.iter().map(|mode| mode.name()));
    heads.extend([
        "T*",
        "learned ÷ T*",
        "learned − T*",
        "penalty cut",
        "starts",
    ]);
    table(page, &heads);
    for (number, case) in report.cases.iter().enumerate() {
        let summary = &case.summary;
        let mut cells = vec![
            format!("<a href=\"#case-{number}\">{}</a>", name(case)),
            text(&case.link.to_string()),
        ];
        for mode in &modes {
            let ready = case.ready(*mode);
            cells.push(if ready.is_empty() {
                "–".to_owned()
            } else {
                format!("{:.2}", median(&ready))
            });
        }
        let cut = if report.peer {
            summary.cut_peer
        } else {
            summary.cut_unlearned
        };
        cells.extend([
            case.limit
                .as_ref()
                .map_or_else(|| "–".to_owned(), |limit| format!("{:.2}", limit.t_star)),
            shown(summary.ratio, 1.0, ""),
            shown(summary.over, 1.0, ""),
            shown(cut, 100.0, " %"),
            match summary.starts {
                few if few < ENOUGH => format!("{few} (too few for an interval)"),
                enough => enough.to_string(),
            },
        ]);
        row(page, &cells);
    }
    page.push_str("</table></div>\n");
}

fn section(page: &mut String, number: usize, case: &Case) {
    let _ = writeln!(
        page,
        "<h2 id=\"case-{number}\">{} <small>{}</small></h2>",
        name(case),
        text(&case.link.to_string())
    );
    table(
        page,
        &[
            "start",
            "pulled",
            "made",
            "started",
            "ready",
            "MB",
            "requests",
            "stalled",
            "late",
            "waste",
            "CPU s",
            "peak MB",
            "MB by lane",
        ],
    );
    for mode in Mode::ALL {
        if let Some(start) = case.median(mode) {
            row(page, &facts(start));
        }
    }
    page.push_str("</table></div>\n");
    // What takes longer has a scale of its own: a full pull would leave no room to the others.
    let scale = (Mode::ALL.iter())
        .filter(|mode| !matches!(mode, Mode::Full | Mode::Peer))
        .filter_map(|mode| case.median(*mode))
        .map(|start| start.ready)
        .chain(case.limit.iter().map(|limit| limit.t_star))
        .fold(0.1, f64::max);
    for mode in Mode::ALL {
        let Some(middle) = case.median(mode) else {
            continue;
        };
        let _ = writeln!(page, "<h3>{}, {:.2} s</h3>", mode.name(), middle.ready);
        waterfall::draw(page, case, middle, scale.max(middle.ready), true);
        let others: Vec<&Start> = (case.starts.iter())
            .filter(|start| start.mode == mode && !std::ptr::eq(*start, middle))
            .collect();
        if others.is_empty() {
            continue;
        }
        let _ = writeln!(
            page,
            "<details><summary>the other starts: {}</summary>",
            others.len()
        );
        for start in others {
            let _ = writeln!(page, "<p>{:.2} s</p>", start.ready);
            waterfall::draw(page, case, start, scale.max(start.ready), false);
        }
        page.push_str("</details>\n");
    }
}

/// A start as a row of its case's table.
fn facts(start: &Start) -> Vec<String> {
    let counts = start.store.as_ref();
    let or_none = |value: Option<String>| value.unwrap_or_else(|| "–".to_owned());
    let lanes = counts.map(|counts| {
        let lanes: Vec<String> = (counts.bytes.iter())
            .filter(|(_, bytes)| **bytes > 0)
            .map(|(lane, bytes)| format!("{} {:.1}", text(lane), megabytes(*bytes)))
            .collect();
        lanes.join(", ")
    });
    let costs = Some(start).filter(|start| !start.costs.is_empty());
    vec![
        start.mode.name().to_owned(),
        format!("{:.2}", start.pulled),
        format!("{:.2}", start.created),
        format!("{:.2}", start.started),
        format!("{:.2}", start.ready),
        format!("{:.1}", megabytes(start.bytes)),
        start.requests.to_string(),
        or_none(counts.map(|counts| format!("{:.2}", counts.stalled))),
        or_none(counts.map(|counts| counts.predicted("late").to_string())),
        or_none(counts.map(|counts| counts.predicted("waste").to_string())),
        or_none(costs.map(|start| format!("{:.2}", start.cpu()))),
        or_none(costs.map(|start| format!("{:.0}", megabytes(start.peak())))),
        or_none(lanes),
    ]
}

fn name(case: &Case) -> String {
    format!("{} as {}", text(&case.image), text(&case.format))
}

fn text(raw: &str) -> String {
    raw.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
