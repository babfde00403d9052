//! The table that the demo prints.

use std::{fmt::Write as _, time::Duration};

/// One start.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// From the beginning of the pull to the program's ready line.
    pub(crate) ready: Duration,
    /// What the registry had sent by then, and in answer to how many requests.
    pub(crate) bytes: u64,
    pub(crate) requests: usize,
    /// `None` where nothing is lazy.
    pub(crate) lazy: Option<Lazy>,
}

/// What only a lazy start has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lazy {
    /// Chunks that a reader waited for.
    pub(crate) on_demand: u64,
    /// How long readers waited, summed.
    pub(crate) stalled: Duration,
    /// Decoded bytes that were predicted, and of those not used.
    pub(crate) predicted: u64,
    pub(crate) waste: u64,
}

/// The rows as text.
pub(crate) fn text(rows: &[Row]) -> String {
    let head = [
        "start",
        "ready",
        "bytes",
        "requests",
        "on demand",
        "stalled",
        "predicted",
        "waste",
    ]
    .map(str::to_owned);
    let mut lines = vec![head];
    for row in rows {
        let lazy = |told: fn(&Lazy) -> String| row.lazy.as_ref().map_or("-".to_owned(), told);
        lines.push([
            row.name.to_owned(),
            seconds(row.ready),
            bytes(row.bytes),
            row.requests.to_string(),
            lazy(|lazy| format!("{} chunks", lazy.on_demand)),
            lazy(|lazy| seconds(lazy.stalled)),
            lazy(|lazy| bytes(lazy.predicted)),
            lazy(|lazy| bytes(lazy.waste)),
        ]);
    }
    let mut widths = [0; 8];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = cell.len().max(*width);
        }
    }
    let mut text = String::new();
    for line in &lines {
        for (number, (width, cell)) in widths.iter().zip(line).enumerate() {
            // Names to the left, numbers to the right. Writing to a String cannot fail.
            let _ = match number {
                0 => write!(text, "{cell:<width$}"),
                _ => write!(text, "  {cell:>width$}"),
            };
        }
        text.push('\n');
    }
    text
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

/// Bytes as people read them.
pub(crate) fn bytes(count: u64) -> String {
    let tenths = count.saturating_mul(10) / 1_000_000;
    format!("{}.{} MB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [
            Row {
                name: "full download",
                ready: Duration::from_millis(3250),
                bytes: 52_340_000,
                requests: 4,
                lazy: None,
            },
            Row {
                name: "learned",
                ready: Duration::from_millis(900),
                bytes: 9_950_000,
                requests: 17,
                lazy: Some(Lazy {
                    on_demand: 3,
                    stalled: Duration::from_millis(40),
                    predicted: 25_000_000,
                    waste: 0,
                }),
            },
        ];
        assert_eq!(
            text(&rows),
            "start           ready    bytes  requests  on demand  stalled  predicted   waste\n\
             full download  3.25 s  52.3 MB         4          -        -          -       -\n\
             learned        0.90 s   9.9 MB        17   3 chunks   0.04 s    25.0 MB  0.0 MB\n"
        );
    }
}
