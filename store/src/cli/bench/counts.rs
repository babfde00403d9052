//! What the store counts, read off its metrics page (docs/metrics.md).

use anyhow::Context as _;
use serde::Serialize;

/// What the store has counted.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Counts {
    /// Compressed bytes received, of all lanes.
    pub(super) bytes: u64,
    /// Chunks that somebody waited for and nobody had asked for before.
    pub(super) demanded: u64,
    /// Chunks that were fetched because they were predicted.
    pub(super) predicted: u64,
    /// Seconds that readers waited, summed.
    pub(super) stalled: f64,
}

impl Counts {
    /// Those on a page.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counts far below 2^53"
    )]
    pub(super) fn of(page: &str) -> anyhow::Result<Self> {
        let whole = |name| Ok::<_, anyhow::Error>(count(page, name)? as u64);
        Ok(Self {
            bytes: whole("forelayer_fetched_bytes_total")?,
            demanded: whole("forelayer_chunks_total{lane=\"demand\"}")?,
            predicted: whole("forelayer_chunks_total{lane=\"predicted\"}")?,
            stalled: count(page, "forelayer_stall_microseconds_total")? / 1e6,
        })
    }
}

/// The sum of a metric of the page, over those of its labels that the name leaves open.
pub(super) fn count(page: &str, name: &str) -> anyhow::Result<f64> {
    let mut sum = None;
    for line in page.lines() {
        let Some(rest) = line
            .strip_prefix(name)
            .filter(|r| r.starts_with([' ', '{']))
        else {
            continue;
        };
        let value: f64 = rest.rsplit(' ').next().unwrap_or_default().parse()?;
        sum = Some(sum.unwrap_or_default() + value);
    }
    sum.with_context(|| format!("the store counts no {name}"))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn counts_are_read_with_and_without_labels() {
        let page =
            "# TYPE a counter\na_total{lane=\"x\"} 3\na_total{lane=\"y\"} 4\nb 1.5\nbc 9\n# EOF\n";
        for (name, value) in [("a_total", 7.0), ("a_total{lane=\"y\"}", 4.0), ("b", 1.5)] {
            assert!((count(page, name).unwrap() - value).abs() < 1e-9, "{name}");
        }
        assert!(count(page, "a").is_err());
    }

    #[test]
    fn the_counts_are_those_that_a_store_writes() {
        let page = forelayer::metrics::Metrics::new().page();
        let counts = Counts::of(&page).unwrap();
        assert_eq!((counts.bytes, counts.demanded, counts.predicted), (0, 0, 0));
        for name in ["layers", "witness_connected", "traces_total"] {
            count(&page, &format!("forelayer_{name}")).unwrap();
        }
    }
}
