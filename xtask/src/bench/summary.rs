//! What the starts of a case say together: the rows of the goals.

use serde::Serialize;

use super::{
    report::Case,
    start::Mode,
    stats::{Estimate, estimate, median},
};

/// Of all starts of a case.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Summary {
    /// Learned starts.
    pub(super) starts: usize,
    /// T / T*, T: ready of a learned start.
    pub(super) ratio: Option<Estimate>,
    /// T - T*, seconds.
    pub(super) over: Option<Estimate>,
    /// (T_lazy - T) / (T_lazy - T*), T_lazy: ready of the peer's start of the same image over the same link.
    pub(super) cut_peer: Option<Estimate>,
    /// The same, T_lazy: ready of our own start with nothing learned.
    pub(super) cut_unlearned: Option<Estimate>,
    /// Misled against unlearned.
    pub(super) misled: Option<Estimate>,
    /// Learned against the full pull.
    pub(super) of_full: Option<Estimate>,
}

impl Summary {
    /// `peer`: the peer's starts of the same image over the same link, from whatever case.
    pub(super) fn of(case: &Case, peer: &[f64]) -> Self {
        let learned = case.ready(Mode::Learned);
        let misled = estimate(
            [&case.ready(Mode::Misled), &case.ready(Mode::Unlearned)],
            |[misled, unlearned]| {
                let both = !misled.is_empty() && !unlearned.is_empty();
                both.then(|| median(misled) / median(unlearned))
            },
        );
        let Some(limit) = case.limit.as_ref().filter(|_| !learned.is_empty()) else {
            return Self {
                misled,
                ..Self::default()
            };
        };
        let g: Vec<f64> = limit.warm.iter().map(|warm| warm.0).collect();
        let t_w: Vec<f64> = limit.warm.iter().map(|warm| warm.1).collect();
        let t_star = |g: &[f64], t_w: &[f64]| limit.with(median(g), median(t_w));
        let cut = |lazy: &[f64]| {
            if lazy.is_empty() {
                return None;
            }
            estimate([&learned, &g, &t_w, lazy], |[learned, g, t_w, lazy]| {
                let (lazy, t_star) = (median(lazy), t_star(g, t_w));
                // Of a penalty that is hardly there no part can be told.
                (lazy - t_star > t_star / 20.0).then(|| (lazy - median(learned)) / (lazy - t_star))
            })
        };
        Self {
            starts: learned.len(),
            misled,
            ratio: estimate([&learned, &g, &t_w], |[learned, g, t_w]| {
                Some(median(learned) / t_star(g, t_w))
            }),
            over: estimate([&learned, &g, &t_w], |[learned, g, t_w]| {
                Some(median(learned) - t_star(g, t_w))
            }),
            cut_peer: cut(peer),
            cut_unlearned: cut(&case.ready(Mode::Unlearned)),
            of_full: estimate([&learned, &case.ready(Mode::Full)], |[learned, full]| {
                (!full.is_empty()).then(|| median(learned) / median(full))
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{limit, start::Start};

    fn start(mode: Mode, ready: f64) -> Start {
        Start {
            mode,
            pulled: 0.0,
            created: 0.0,
            started: 0.0,
            ready,
            bytes: 0,
            requests: 0,
            costs: Vec::new(),
            store: None,
            waterfall: Vec::new(),
        }
    }

    #[test]
    fn a_start_halfway_between_lazy_and_limit_cuts_half_of_the_penalty() {
        let mut case = Case::new("x", "y", "0:0".parse().expect("a link"));
        for _ in 0..6 {
            case.starts.push(start(Mode::Learned, 2.0));
            case.starts.push(start(Mode::Unlearned, 3.0));
            case.starts.push(start(Mode::Full, 8.0));
        }
        let warm: Vec<_> = (0..6).map(|_| limit::Warm::new(0.25, 0.75)).collect();
        case.limit = limit::Limit::of(&warm, 0.0, 1e6).ok();
        let summary = Summary::of(&case, &[]);
        let sure = |value| {
            Some(Estimate {
                value,
                interval: Some((value, value)),
            })
        };
        assert_eq!(summary.starts, 6);
        assert_eq!(summary.ratio, sure(2.0));
        assert_eq!(summary.over, sure(1.0));
        assert_eq!(summary.cut_unlearned, sure(0.5));
        assert_eq!(summary.cut_peer, None);
        assert_eq!(summary.of_full, sure(0.25));
    }
}
