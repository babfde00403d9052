//! The figures: medians in a table, everything in JSON.

use std::fmt::Write as _;

use serde::Serialize;

use super::{
    Args,
    limit::Limit,
    start::{Mode, Start},
};
use crate::cli::{human, table::table};

/// All that was measured.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    image: String,
    command: Vec<String>,
    ready: Option<String>,
    rounds: u32,
    forelayer: &'static str,
    podman: String,
    /// In the order in which they were made.
    pub(super) starts: Vec<Start>,
    pub(super) limit: Option<Limit>,
}

impl Report {
    pub(super) fn new(args: &Args, podman: String) -> Self {
        Self {
            image: args.image.clone(),
            command: args.command.clone(),
            ready: args.ready.clone(),
            rounds: args.rounds,
            forelayer: env!("CARGO_PKG_VERSION"),
            podman,
            starts: Vec::new(),
            limit: None,
        }
    }

    /// The start of a mode that took the median time, of an even number the slower one of the two in the middle.
    fn median(&self, mode: Mode) -> Option<&Start> {
        let of = self.starts.iter().filter(|start| start.mode == mode);
        let mut of: Vec<&Start> = of.collect();
        of.sort_by(|a, b| a.ready.total_cmp(&b.ready));
        of.get(of.len() / 2).copied()
    }

    /// Bytes a second that the fastest full pull carried, from its beginning to its end.
    pub(super) fn rate(&self) -> Option<f64> {
        let full = self.starts.iter().filter(|start| start.mode == Mode::Full);
        full.filter_map(|start| Some(start.bytes? as f64 / start.pulled?.max(1e-3)))
            .max_by(f64::total_cmp)
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let mut rows =
            vec![["START", "PULLED", "READY", "BYTES", "ON DEMAND", "STALLED"].map(str::to_owned)];
        let none = || "-".to_owned();
        let seconds = |seconds: f64| format!("{seconds:.2} s");
        for start in Mode::ALL.iter().filter_map(|mode| self.median(*mode)) {
            let store = start.store.as_ref();
            rows.push([
                start.mode.name().to_owned(),
                start.pulled.map_or_else(none, seconds),
                seconds(start.ready),
                start.bytes.map_or_else(none, human),
                store.map_or_else(none, |store| format!("{} chunks", store.demanded)),
                store.map_or_else(none, |store| seconds(store.stalled)),
            ]);
        }
        if let Some(limit) = &self.limit {
            rows.push([
                "T* (estimate)".to_owned(),
                none(),
                seconds(limit.t_star),
                human(limit.bytes),
                none(),
                none(),
            ]);
        }
        let mut text = format!(
            "{}, {}; medians of {} {}\n\n",
            self.image,
            self.podman,
            self.rounds,
            if self.rounds == 1 { "round" } else { "rounds" }
        );
        table(&mut text, &rows);
        if let Some(limit) = &self.limit {
            let _ = writeln!(text, "\n{}", estimate(limit));
        }
        text
    }
}

/// What T* was computed from, and what that leaves out.
fn estimate(limit: &Limit) -> String {
    let round_trip = limit.link.round_trip.map_or_else(
        || "a round trip that could not be measured and counts as 0".to_owned(),
        |seconds| format!("{:.1} ms a round trip (of TCP)", seconds * 1e3),
    );
    format!(
        "T* is estimated from {:.2} s to the first exec and {:.2} s from there to ready with everything local, {} chunks,\n\
         {} a second (what was carried; the link may carry more) and {round_trip}: docs/benchmarks.md, \"Your own image\".",
        limit.g,
        limit.t_w,
        limit.chunks,
        human(rounded(limit.link.rate)),
    )
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a positive rate, far below 2^64"
)]
fn rounded(rate: f64) -> u64 {
    rate.round() as u64
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::{
        super::{counts::Counts, limit::Link},
        *,
    };

    fn start(mode: Mode, ready: f64) -> Start {
        let store = matches!(mode, Mode::Learned).then_some(Counts {
            bytes: 1 << 20,
            demanded: 3,
            predicted: 40,
            stalled: 0.25,
        });
        Start {
            mode,
            pulled: (mode != Mode::Local).then_some(ready / 2.0),
            ready,
            bytes: (mode == Mode::Full).then_some(10 << 20),
            store,
        }
    }

    fn report(starts: Vec<Start>) -> Report {
        Report {
            image: "h/app:1".to_owned(),
            command: Vec::new(),
            ready: None,
            rounds: 2,
            forelayer: "1",
            podman: "podman version 5".to_owned(),
            starts,
            limit: None,
        }
    }

    #[test]
    fn the_table_has_the_median_of_each_mode_and_the_limit() {
        let full = [9.0, 1.0, 4.0].map(|ready| start(Mode::Full, ready));
        let others = [
            (Mode::Local, 1.0),
            (Mode::Learned, 2.0),
            (Mode::Learned, 3.0),
        ];
        let others = others.map(|(mode, ready)| start(mode, ready));
        let mut report = report(full.into_iter().chain(others).collect());
        report.limit = Some(Limit {
            t_star: 1.5,
            g: 0.5,
            t_w: 1.0,
            bytes: 2 << 20,
            chunks: 7,
            link: Link {
                round_trip: None,
                rate: 1_048_576.0,
            },
        });
        let text = report.text();
        for line in [
            "full           2.00 s  4.00 s  10.00 MiB  -          -",
            "local          -       1.00 s  -          -          -",
            "learned        1.50 s  3.00 s  -          3 chunks   0.25 s",
            "T* (estimate)  -       1.50 s  2.00 MiB   -          -",
            "1.00 MiB a second (what was carried; the link may carry more) and a round trip that could not be measured",
        ] {
            assert!(text.contains(line), "{line:?} is not in\n{text}");
        }
        assert!(!text.contains("unlearned"));
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["starts"].as_array().unwrap().len(), 6);
        assert_eq!(json["starts"][0]["mode"], "full");
    }

    #[test]
    fn the_rate_is_that_of_the_fastest_full_pull() {
        let report = report(vec![start(Mode::Full, 8.0), start(Mode::Full, 4.0)]);
        let rate = report.rate().unwrap();
        assert!((rate - 5.0 * 1_048_576.0).abs() < 1e-6, "{rate}");
        assert!(self::report(Vec::new()).rate().is_none());
    }
}
