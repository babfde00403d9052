//! The figures: medians and intervals in tables, everything in JSON.

use std::fmt::Write as _;

use serde::Serialize;

use super::{
    limit::Limit,
    link::Link,
    start::{Mode, Start},
    stats::{ENOUGH, Estimate, median},
    summary::Summary,
};

/// All cases of a run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Whether there was a stargz-store to measure.
    pub(super) peer: bool,
    pub(super) cases: Vec<Case>,
}

/// An image in a format, over a link.
#[derive(Debug, Serialize)]
pub(super) struct Case {
    pub(super) image: String,
    pub(super) format: String,
    pub(super) link: Link,
    pub(super) starts: Vec<Start>,
    pub(super) limit: Option<Limit>,
    pub(super) summary: Summary,
}

impl Case {
    pub(super) fn new(image: &str, format: &str, link: Link) -> Self {
        Self {
            image: image.to_owned(),
            format: format.to_owned(),
            link,
            starts: Vec::new(),
            limit: None,
            summary: Summary::default(),
        }
    }

    /// The starts of a mode, fastest first.
    fn of(&self, mode: Mode) -> Vec<&Start> {
        let mut starts: Vec<&Start> = (self.starts.iter())
            .filter(|start| start.mode == mode)
            .collect();
        starts.sort_by(|a, b| a.ready.total_cmp(&b.ready));
        starts
    }

    /// Seconds to ready of the starts of a mode.
    pub(super) fn ready(&self, mode: Mode) -> Vec<f64> {
        self.of(mode).iter().map(|start| start.ready).collect()
    }

    /// The start of a mode whose ready time is the median, of an even number the slower of the two.
    pub(super) fn median(&self, mode: Mode) -> Option<&Start> {
        let starts = self.of(mode);
        starts.get(starts.len() / 2).copied()
    }
}

impl Report {
    pub(super) fn new(peer: bool) -> Self {
        Self {
            peer,
            cases: Vec::new(),
        }
    }

    /// Takes a case in. The peer's starts count for all formats of the image.
    pub(super) fn add(&mut self, case: Case) {
        self.cases.push(case);
        let peers: Vec<Vec<f64>> = (self.cases.iter())
            .map(|case| {
                (self.cases.iter())
                    .filter(|other| other.image == case.image && other.link == case.link)
                    .flat_map(|other| other.ready(Mode::Peer))
                    .collect()
            })
            .collect();
        for (case, peer) in self.cases.iter_mut().zip(&peers) {
            case.summary = Summary::of(case, peer);
        }
    }

    /// As Markdown.
    pub(super) fn tables(&self) -> String {
        let mut text = String::new();
        if self.cases.iter().any(|case| case.summary.starts < ENOUGH) {
            let _ = writeln!(text, "Fewer than {ENOUGH} rounds: no intervals.\n");
        }
        if !self.peer {
            text.push_str("No stargz-store here: the peer was not measured, and the cut is that of our own unlearned start.\n\n");
        }
        text.push_str("Seconds to ready (medians), and against the limit [95 % interval]:\n\n| image | format | link | full | local | peer | unlearned | learned | T* | T / T* | T - T* | penalty cut |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n");
        for case in &self.cases {
            self.times(&mut text, case);
        }
        for case in &self.cases {
            if let Some(misled) = case.summary.misled {
                let _ = writeln!(
                    text,
                    "\n{} as {}, {}: with a wrong profile {:.2} s, against nothing learned: {}",
                    case.image,
                    case.format,
                    case.link,
                    median(&case.ready(Mode::Misled)),
                    shown(Some(misled), 1.0, ""),
                );
            }
        }
        text.push_str("\nWhat the learned starts cost until ready (the median start):\n\n| image | format | link | MB | requests | on demand | late | waste | gap MB | stalled | unlearned: stalled | store's CPU s | peak MB |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|\n");
        for case in &self.cases {
            costs(&mut text, case);
        }
        text
    }

    fn times(&self, text: &mut String, case: &Case) {
        let ready = |mode| match case.ready(mode) {
            starts if starts.is_empty() => "–".to_owned(),
            starts => format!("{:.2}", median(&starts)),
        };
        let Summary {
            ratio,
            over,
            cut_peer,
            cut_unlearned,
            ..
        } = case.summary;
        let t_star = case.limit.as_ref().map_or(0.0, |limit| limit.t_star);
        let cut = if self.peer { cut_peer } else { cut_unlearned };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {t_star:.2} | {} | {} | {} |",
            case.image,
            case.format,
            case.link,
            ready(Mode::Full),
            ready(Mode::Local),
            ready(Mode::Peer),
            ready(Mode::Unlearned),
            ready(Mode::Learned),
            shown(ratio, 1.0, ""),
            shown(over, 1.0, ""),
            shown(cut, 100.0, " %"),
        );
    }
}

/// An estimate with its interval, in another unit.
pub(super) fn shown(estimate: Option<Estimate>, factor: f64, unit: &str) -> String {
    let digits = if factor > 1.0 { 0 } else { 2 };
    let Some(Estimate { value, interval }) = estimate else {
        return "–".to_owned();
    };
    let mut text = format!("{:.digits$}{unit}", value * factor);
    if let Some((low, high)) = interval {
        let _ = write!(
            text,
            " [{:.digits$}, {:.digits$}]",
            low * factor,
            high * factor
        );
    }
    text
}

fn costs(text: &mut String, case: &Case) {
    let Some(start) = case.median(Mode::Learned) else {
        return;
    };
    let Some(counts) = &start.store else { return };
    let stalled = |start: &Start| start.store.as_ref().map(|counts| counts.stalled);
    let of = |map: &std::collections::BTreeMap<String, u64>, name: &str| {
        map.get(name).copied().unwrap_or_default()
    };
    let _ = writeln!(
        text,
        "| {} | {} | {} | {:.1} | {} | {} | {} | {} of {} | {:.1} | {:.2} | {:.2} | {:.2} | {:.0} |",
        case.image,
        case.format,
        case.link,
        megabytes(start.bytes),
        start.requests,
        of(&counts.chunks, "demand"),
        counts.predicted("late"),
        counts.predicted("waste"),
        of(&counts.chunks, "predicted"),
        megabytes(of(&counts.bytes, "gap")),
        counts.stalled,
        case.median(Mode::Unlearned)
            .and_then(stalled)
            .unwrap_or_default(),
        start.cpu(),
        megabytes(start.peak()),
    );
}

/// A case in one line.
pub(super) fn line(case: &Case) -> String {
    case.limit.as_ref().map_or_else(String::new, |limit| {
        format!(
            "  T*        {:>7.2} s (G {:.2}, T_w {:.2}, {:.1} MB in {} chunks)",
            limit.t_star,
            limit.g,
            limit.t_w,
            megabytes(limit.bytes),
            limit.needs.len()
        )
    })
}

/// In 1e6 bytes.
pub(super) fn megabytes(bytes: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "bytes of an image")]
    let bytes = bytes as f64;
    bytes / 1e6
}
