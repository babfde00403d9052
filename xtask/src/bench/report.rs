//! The figures: medians in a table, everything in JSON.

use serde::Serialize;

use super::{
    limit::Limit,
    start::{Mode, Start},
};

/// All cases of a run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) latency_ms: u64,
    pub(super) bandwidth_mbit: u64,
    pub(super) cases: Vec<Case>,
}

/// An image in a format.
#[derive(Debug, Serialize)]
pub(super) struct Case {
    pub(super) image: String,
    pub(super) format: String,
    pub(super) starts: Vec<Start>,
    pub(super) limit: Option<Limit>,
}

impl Case {
    pub(super) fn new(image: &str, format: &str) -> Self {
        Self {
            image: image.to_owned(),
            format: format.to_owned(),
            starts: Vec::new(),
            limit: None,
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

    /// The start of a mode whose ready time is the median.
    pub(super) fn median(&self, mode: Mode) -> Option<&Start> {
        let starts = self.of(mode);
        starts.get(starts.len() / 2).copied()
    }
}

impl Report {
    pub(super) fn new(latency_ms: u64, bandwidth_mbit: u64) -> Self {
        Self {
            latency_ms,
            bandwidth_mbit,
            cases: Vec::new(),
        }
    }

    /// As Markdown.
    pub(super) fn table(&self) -> String {
        let mut text = format!(
            "{} ms, {}; medians in seconds\n\n| image | format | full | local | unlearned | learned | T* | learned / T* | on demand | stalled | waste |\n|---|---|---|---|---|---|---|---|---|---|---|\n",
            self.latency_ms,
            match self.bandwidth_mbit {
                0 => "as fast as it goes".to_owned(),
                rate => format!("{rate} Mbit/s"),
            }
        );
        for case in &self.cases {
            let ready = |mode| {
                case.median(mode)
                    .map_or_else(|| "-".to_owned(), |start| format!("{:.2}", start.ready))
            };
            let learned = case.median(Mode::Learned);
            let (t_star, ratio) = case.limit.as_ref().zip(learned).map_or_else(
                || ("-".to_owned(), "-".to_owned()),
                |(limit, learned)| {
                    (
                        format!("{:.2}", limit.t_star),
                        format!("{:.2}", learned.ready / limit.t_star),
                    )
                },
            );
            let counts = learned.and_then(|start| start.store.as_ref());
            let (demanded, stalled, waste) = counts.map_or_else(Default::default, |counts| {
                let fetched = counts.predicted.max(1);
                (
                    counts.demanded.to_string(),
                    format!("{:.2}", counts.stalled),
                    format!("{} of {fetched} chunks", counts.waste),
                )
            });
            text.push_str(&format!(
                "| {} | {} | {} | {} | {} | {} | {t_star} | {ratio} | {demanded} | {stalled} | {waste} |\n",
                case.image,
                case.format,
                ready(Mode::Full),
                ready(Mode::Local),
                ready(Mode::Unlearned),
                ready(Mode::Learned),
            ));
        }
        text
    }
}

/// A case in one line.
pub(super) fn line(case: &Case) -> String {
    case.limit.as_ref().map_or_else(String::new, |limit| {
        format!(
            "  T*        {:>7.2} s (G {:.2}, T_w {:.2}, {:.1} MB in {} chunks)",
            limit.t_star,
            limit.g,
            limit.t_w,
            limit.bytes as f64 / 1e6,
            limit.needs.len()
        )
    })
}
