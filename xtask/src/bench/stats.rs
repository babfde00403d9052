//! Medians and how sure they are.

use serde::Serialize;

/// How many resamples an interval is made of.
const RESAMPLES: usize = 2000;
/// Fewer values have no interval of 95 % for their median: all lie on one side of it with more than 5 %.
pub(super) const ENOUGH: usize = 6;

/// A figure and its interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Estimate {
    pub(super) value: f64,
    /// 95 %; `None` from too few starts.
    pub(super) interval: Option<(f64, f64)>,
}

/// The median; 0 of nothing.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        count if count % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// A figure of several samples, and its interval by the bootstrap: the figure of samples drawn from those samples again
/// and again. The same samples always have the same interval. `figure` may have no answer.
pub(super) fn estimate<const N: usize>(
    samples: [&[f64]; N],
    figure: impl Fn([&[f64]; N]) -> Option<f64>,
) -> Option<Estimate> {
    let value = figure(samples)?;
    let enough = samples.iter().all(|sample| sample.len() >= ENOUGH);
    if !enough {
        return Some(Estimate {
            value,
            interval: None,
        });
    }
    let mut random = Random(0);
    let mut drawn = samples.map(<[f64]>::to_vec);
    let mut figures = Vec::with_capacity(RESAMPLES);
    for _ in 0..RESAMPLES {
        for (to, from) in drawn.iter_mut().zip(samples) {
            to.fill_with(|| from[random.below(from.len())]);
        }
        figures.extend(figure(drawn.each_ref().map(Vec::as_slice)));
    }
    figures.sort_by(f64::total_cmp);
    // A figure that mostly has no answer has no interval either.
    let interval = (figures.len() > RESAMPLES * 9 / 10).then(|| {
        (
            figures[figures.len() / 40],
            figures[figures.len() * 39 / 40],
        )
    });
    Some(Estimate { value, interval })
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        usize::try_from(mixed % bound as u64).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_lies_in_the_middle() {
        assert_eq!(median(&[]).to_bits(), 0.0_f64.to_bits());
        assert_eq!(median(&[3.0, 1.0, 2.0]).to_bits(), 2.0_f64.to_bits());
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]).to_bits(), 2.5_f64.to_bits());
    }

    #[test]
    fn an_interval_holds_the_median_and_needs_enough_values() {
        let of = |values: &[f64]| estimate([values], |[values]| Some(median(values)));
        let values: Vec<f64> = (0..15).map(f64::from).collect();
        let found = of(&values).expect("a median");
        let (low, high) = found.interval.expect("enough values");
        assert!(
            (1.0..7.0).contains(&low) && (7.1..13.1).contains(&high),
            "{found:?}"
        );
        assert_eq!(of(&values), Some(found));
        assert!(of(&values[..5]).is_some_and(|found| found.interval.is_none()));
        assert_eq!(estimate([&values], |_| None), None);
    }
}
