//! Every metric in one table: name, unit, help. Names are a public promise (docs/metrics.md).
//!
//! Rooms hold an `Arc<Metrics>` and count into typed fields; the page is written by `Metrics::page`.

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

/// Why bytes are fetched.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Lane {
    /// Somebody waits for them.
    Demand,
    /// A profile says they will be needed.
    Predicted,
    /// They lie behind a chunk that somebody waited for and no profile foresaw.
    Nearby,
    /// The rest of the image.
    Background,
    /// Bytes between wanted chunks, fetched along.
    Gap,
    /// The raw blob for an engine (save, push).
    Raw,
    /// Manifests, configs and TOCs.
    Metadata,
}

/// Label set of metrics by lane.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByLane {
    /// The lane.
    pub lane: Lane,
}

/// How a lookup of a layer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LookupResult {
    /// The layer is served.
    Served,
    /// An ordinary layer, or one the image does not have.
    No,
    /// The layer is lazy but was refused (malformed, unbound, over a limit).
    Refused,
    /// The registry could not be read in time.
    Failed,
}

/// Label set of lookups.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByLookup {
    /// The result.
    pub result: LookupResult,
}

/// What became of a predicted chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It was touched.
    Used,
    /// A reader had to wait for it.
    Late,
    /// Nothing touched it before the window closed.
    Waste,
}

/// Label set of predictions.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByOutcome {
    /// The outcome.
    pub outcome: Outcome,
}

/// Gives an enum's variants the names that labels, JSON and documents use.
macro_rules! label {
    ($kind:ident { $($variant:ident => $name:literal),+ $(,)? }) => {
        impl $kind {
            /// Every value.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The name that labels and documents use.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name),+
                }
            }
        }

        impl EncodeLabelValue for $kind {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
                self.name().encode(encoder)
            }
        }
    };
}

label!(Lane {
    Demand => "demand",
    Predicted => "predicted",
    Nearby => "nearby",
    Background => "background",
    Gap => "gap",
    Raw => "raw",
    Metadata => "metadata",
});
label!(LookupResult { Served => "served", No => "no", Refused => "refused", Failed => "failed" });
label!(Outcome { Used => "used", Late => "late", Waste => "waste" });

/// The table.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Requests to registries.
    pub requests: Family<ByLane, Counter>,
    /// Bytes received from registries (bodies).
    pub fetched_bytes: Family<ByLane, Counter>,
    /// READs answered from the cache at once.
    pub cache_hits: Counter,
    /// READs that had to wait for a chunk.
    pub cache_misses: Counter,
    /// Chunks brought, by the lane that asked first.
    pub chunks: Family<ByLane, Counter>,
    /// Chunks or blobs whose bytes did not match their digest.
    pub verify_failures: Counter,
    /// READs answered EIO.
    pub read_errors: Counter,
    /// Microseconds that READs waited for chunks.
    pub stall_microseconds: Counter,
    /// Lookups of layers.
    pub lookups: Family<ByLookup, Counter>,
    /// Chunks predicted, by what became of them.
    pub predictions: Family<ByOutcome, Counter>,
    /// Bytes (decoded) predicted, by what became of them.
    pub predicted_bytes: Family<ByOutcome, Counter>,
    /// Bytes put into the page cache ahead.
    pub warmed_bytes: Counter,
    /// Messages from the kernel on the data mounts.
    pub fuse_requests: Family<ByOp, Counter>,
    /// Traces taken in.
    pub traces: Counter,
    /// Touches in those traces.
    pub touches: Counter,
    /// Events that the kernel could not hand to the witness.
    pub events_lost: Counter,
    /// Whether a witness is connected.
    pub witness_connected: Gauge,
    /// Layers served.
    pub layers: Gauge,
}

/// Label set of FUSE messages: mount (`control`, `plain`, `xattr`) and operation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByOp {
    /// The mount.
    pub mount: &'static str,
    /// The operation in lower case (`lookup`, `read`, `statfs`...).
    pub op: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// The table with every metric at zero.
    #[must_use]
    pub fn new() -> Self {
        let mut r = Registry::with_prefix("forelayer");
        macro_rules! metric {
            ($name:literal, $help:literal) => {{
                let metric = Default::default();
                r.register($name, $help, Clone::clone(&metric));
                metric
            }};
            ($name:literal, $help:literal, $unit:expr) => {{
                let metric = Default::default();
                r.register_with_unit($name, $help, $unit, Clone::clone(&metric));
                metric
            }};
        }
        let requests: Family<ByLane, Counter> =
            metric!("requests", "Requests sent to registries by lane");
        let fetched_bytes: Family<ByLane, Counter> = metric!(
            "fetched",
            "Compressed bytes received from registries by lane",
            Unit::Bytes
        );
        let cache_hits: Counter = metric!("cache_hits", "Reads answered at once");
        let cache_misses: Counter = metric!("cache_misses", "Reads that waited for a chunk");
        let chunks: Family<ByLane, Counter> =
            metric!("chunks", "Chunks brought, verified and stored by lane");
        let verify_failures: Counter = metric!(
            "verify_failures",
            "Chunks or blobs that did not match their digest"
        );
        let read_errors: Counter =
            metric!("read_errors", "Reads answered with an input/output error");
        let stall_microseconds: Counter = metric!(
            "stall_microseconds",
            "Time that reads waited for chunks, summed"
        );
        let lookups: Family<ByLookup, Counter> =
            metric!("lookups", "First lookups of layers by result");
        let predictions: Family<ByOutcome, Counter> =
            metric!("predictions", "Predicted chunks by outcome");
        let predicted_bytes: Family<ByOutcome, Counter> = metric!(
            "predicted",
            "Decoded bytes of predicted chunks by outcome",
            Unit::Bytes
        );
        let warmed_bytes: Counter =
            metric!("warmed", "Bytes put into the page cache ahead", Unit::Bytes);
        let fuse_requests: Family<ByOp, Counter> = metric!(
            "fuse_requests",
            "Messages from the kernel by mount and operation"
        );
        let traces: Counter = metric!("traces", "Container starts recorded");
        let touches: Counter = metric!("touches", "First touches in recorded starts");
        let events_lost: Counter = metric!(
            "events_lost",
            "Events the kernel could not hand to the witness"
        );
        let witness_connected: Gauge =
            metric!("witness_connected", "1 while a witness is connected");
        let layers: Gauge = metric!("layers", "Layers served");
        // A series that appears only with its first event has no rate at that event: all are there from the start.
        for &lane in Lane::ALL {
            let by = ByLane { lane };
            // A gap is bytes of somebody's request, never a request or a chunk of its own.
            if lane != Lane::Gap {
                drop(requests.get_or_create(&by));
            }
            if !matches!(lane, Lane::Gap | Lane::Raw | Lane::Metadata) {
                drop(chunks.get_or_create(&by));
            }
            drop(fetched_bytes.get_or_create(&by));
        }
        for &result in LookupResult::ALL {
            drop(lookups.get_or_create(&ByLookup { result }));
        }
        for &outcome in Outcome::ALL {
            drop(predictions.get_or_create(&ByOutcome { outcome }));
            drop(predicted_bytes.get_or_create(&ByOutcome { outcome }));
        }
        for mount in ["control", "plain", "xattr"] {
            for op in ["lookup", "getattr", "read", "statfs"] {
                drop(fuse_requests.get_or_create(&ByOp { mount, op }));
            }
        }
        Self {
            registry: r,
            requests,
            fetched_bytes,
            cache_hits,
            cache_misses,
            chunks,
            verify_failures,
            read_errors,
            stall_microseconds,
            lookups,
            predictions,
            predicted_bytes,
            warmed_bytes,
            fuse_requests,
            traces,
            touches,
            events_lost,
            witness_connected,
            layers,
        }
    }

    /// The page in the OpenMetrics text format.
    #[must_use]
    pub fn page(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_metric_is_documented_and_every_documented_metric_exists() {
        let metrics = Metrics::new();
        let page = metrics.page();
        let exported: BTreeSet<&str> = page
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .filter_map(|rest| rest.split(' ').next())
            .collect();
        let text = include_str!("../../docs/metrics.md");
        let documented: BTreeSet<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("| `"))
            .filter_map(|row| row.split(['`', '{']).next())
            // What a scraper sees of a counter has the suffix; its declaration has not.
            .map(|name| name.strip_suffix("_total").unwrap_or(name))
            .collect();
        assert_eq!(documented, exported);
    }

    #[test]
    fn a_count_is_on_the_page() {
        let metrics = Metrics::new();
        metrics
            .requests
            .get_or_create(&ByLane {
                lane: Lane::Predicted,
            })
            .inc_by(3);
        metrics
            .fuse_requests
            .get_or_create(&ByOp {
                mount: "plain",
                op: "statfs",
            })
            .inc();
        let page = metrics.page();
        assert!(
            page.contains("forelayer_requests_total{lane=\"predicted\"} 3"),
            "{page}"
        );
        assert!(
            page.contains("forelayer_fuse_requests_total{mount=\"plain\",op=\"statfs\"} 1"),
            "{page}"
        );
    }
}
