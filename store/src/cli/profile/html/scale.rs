//! Time as a place on the page.

use forelayer_profiler::model::Run;

/// Width of the drawing in its own units.
pub(super) const WIDTH: f64 = 1000.0;
/// Where time begins and ends on it; names stand before, bytes behind.
pub(super) const LEFT: f64 = 310.0;
pub(super) const RIGHT: f64 = 912.0;
/// Steps of time that are told apart.
pub(super) const COLUMNS: usize = 400;
/// Marks on the axis at most.
const TICKS: f64 = 6.0;

/// The span of time of a run. Times are milliseconds from the first exec.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale {
    from: f64,
    to: f64,
}

impl Scale {
    /// From the first touch or exec to the last, at least a millisecond.
    pub(super) fn of(run: &Run) -> Self {
        let touches = run.files.iter().flat_map(|file| &file.ranges);
        let times = touches
            .map(|range| range.at_us)
            .chain(run.execs.iter().map(|exec| exec.at_us));
        let (from, to) = times.fold((0.0, 1.0), |(from, to): (f64, f64), at| {
            (from.min(ms(at)), to.max(ms(at)))
        });
        Self { from, to }
    }

    /// The place of a time.
    pub(super) fn x(self, ms: f64) -> f64 {
        LEFT + self.part(ms) * (RIGHT - LEFT)
    }

    /// Which of the [`COLUMNS`] a time falls into.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and COLUMNS - 1"
    )]
    pub(super) fn column(self, at_us: i64) -> usize {
        (self.part(ms(at_us)) * (COLUMNS - 1) as f64).round() as usize
    }

    /// The place of a column.
    pub(super) fn place(self, column: usize) -> f64 {
        LEFT + (column.min(COLUMNS - 1) as f64) / ((COLUMNS - 1) as f64) * (RIGHT - LEFT)
    }

    fn part(self, ms: f64) -> f64 {
        ((ms - self.from) / (self.to - self.from)).clamp(0.0, 1.0)
    }

    /// Round times to mark.
    pub(super) fn ticks(self) -> Vec<f64> {
        let least = (self.to - self.from) / TICKS;
        let power = 10_f64.powf(least.log10().floor());
        let step = [1.0, 2.0, 5.0]
            .map(|digit| digit * power)
            .into_iter()
            .find(|step| *step >= least)
            .unwrap_or(10.0 * power);
        let first = (self.from / step).ceil();
        (0..=8)
            .map(|at| (first + f64::from(at)) * step)
            .take_while(|at| *at <= self.to)
            .collect()
    }
}

/// Microseconds as milliseconds.
pub(super) fn ms(us: i64) -> f64 {
    us as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::{super::rows::tests::*, *};

    fn scale(from: i64, to: i64) -> Scale {
        let files = vec![file("a", b"top", 1, from), file("b", b"top", 1, to)];
        Scale::of(&run("01", files))
    }

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(
            scale(-200_000, 1_000_000).ticks(),
            [-200.0, 0.0, 200.0, 400.0, 600.0, 800.0, 1000.0]
        );
        for (from, to) in [(0, 0), (i64::MIN, i64::MAX), (-1, 1), (5, 77_000)] {
            let ticks = scale(from, to).ticks();
            assert!((2..=9).contains(&ticks.len()), "{from} {to}: {ticks:?}");
        }
    }

    #[test]
    fn every_time_has_its_place_on_the_page() {
        let scale = scale(i64::MIN, i64::MAX);
        assert_eq!(scale.column(i64::MIN), 0);
        assert_eq!(scale.column(i64::MAX), COLUMNS - 1);
        assert!((scale.place(COLUMNS - 1) - RIGHT).abs() < 1e-9);
        assert!((scale.x(f64::MIN) - LEFT).abs() < 1e-9);
    }
}
