//! The store and the witness as processes of the demo's own: configuration, start, metrics, stop.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::{
    full,
    machine::{Running, WorkDir},
    service::Service,
};

/// How long a service may take to stop; the store promises 5 s.
const STOP: Duration = Duration::from_secs(8);
/// How long a recording may take to reach the store after its container has ended.
const RECORDED: Duration = Duration::from_secs(40);

/// Where everything of the store lies, and how it is started.
#[derive(Debug)]
pub(crate) struct Setup<'a> {
    pub(crate) running: &'static Running,
    pub(crate) work: &'a WorkDir,
    /// The `forelayer` binary.
    pub(crate) program: PathBuf,
    /// Whether the rest of an image follows by itself.
    pub(crate) background: bool,
}

/// A running store, with the witness if the kernel lets it see.
#[derive(Debug)]
pub(crate) struct Store {
    running: &'static Running,
    // Dropped in this order: the witness speaks to the store until it ends.
    witness: Option<Service>,
    serve: Service,
    metrics: String,
}

/// What the store has counted.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    /// Chunks that were fetched because a reader waited.
    pub(crate) on_demand: u64,
    /// Decoded bytes that were predicted and, of those, not used.
    pub(crate) predicted: u64,
    pub(crate) waste: u64,
    /// How long readers waited, summed.
    pub(crate) stalled: Duration,
}

impl Setup<'_> {
    fn state(&self) -> PathBuf {
        self.work.path().join("state")
    }

    /// Where an engine finds the store's layers.
    pub(crate) fn store_dir(&self) -> PathBuf {
        self.state().join("store")
    }

    /// Takes everything of the store away but, if so wanted, what it has learned.
    pub(crate) fn wipe(&self, keep_profiles: bool) -> Result<()> {
        let (profiles, kept) = (
            self.state().join("profiles"),
            self.work.path().join("profiles"),
        );
        let move_over = |from: &Path, to: &Path| {
            fs::rename(from, to)
                .with_context(|| format!("cannot move {} to {}", from.display(), to.display()))
        };
        if keep_profiles {
            move_over(&profiles, &kept)?;
        }
        self.work.fresh("state")?;
        if keep_profiles {
            move_over(&kept, &profiles)?;
        }
        Ok(())
    }

    /// Starts the store and the witness. The text says why the kernel refused the latter, if it did.
    pub(crate) fn start(&self) -> Result<(Store, Option<String>)> {
        let run = self.work.fresh("run")?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let metrics = format!("127.0.0.1:{port}");
        let config = format!(
            "state_dir = {:?}\nrun_dir = {run:?}\n[fetch]\nbackground = {}\n[metrics]\nlisten = {metrics:?}\n",
            self.state(),
            self.background,
        );
        let config_file = run.join("config.toml");
        fs::write(&config_file, config)?;
        let service = |name| {
            Service::start(
                self.running,
                &self.program,
                name,
                &config_file,
                self.work.path(),
            )
        };
        let mut serve = service("serve")?;
        if !serve.ready()? {
            anyhow::bail!("forelayer serve ended at once:\n{}", serve.last_words());
        }
        let mut store = Store {
            running: self.running,
            witness: None,
            serve,
            metrics,
        };
        let mut witness = service("watch")?;
        if !witness.ready()? {
            return Ok((store, Some(witness.last_words())));
        }
        store.witness = Some(witness);
        self.running.wait_for(
            "the witness's connection to the store",
            Duration::from_secs(10),
            || Ok(store.counter("forelayer_witness_connected", "")? > 0),
        )?;
        Ok((store, None))
    }
}

impl Store {
    /// Waits until a start has been recorded and weighed.
    pub(crate) fn wait_recorded(&self) -> Result<()> {
        let recorded = || Ok(self.counter("forelayer_traces_total", "")? > 0);
        self.running
            .wait_for("the end of the recording", RECORDED, recorded)
            .with_context(|| {
                let witness = self.witness.as_ref().map(Service::last_words);
                format!("the witness said last:\n{}", witness.unwrap_or_default())
            })
    }

    /// What it has counted so far.
    pub(crate) fn counts(&self) -> Result<Counts> {
        let page = full::page(&self.metrics, "/metrics")?;
        let of = |name: &str, label: &str| value(&page, name, label);
        let predicted = "forelayer_predicted_bytes_total";
        let waste = of(predicted, "outcome=\"waste\"");
        Ok(Counts {
            on_demand: of("forelayer_chunks_total", "lane=\"demand\""),
            predicted: of(predicted, "outcome=\"used\"")
                + of(predicted, "outcome=\"late\"")
                + waste,
            waste,
            stalled: Duration::from_micros(of("forelayer_stall_microseconds_total", "")),
        })
    }

    fn counter(&self, name: &str, label: &str) -> Result<u64> {
        let page = full::page(&self.metrics, "/metrics")?;
        Ok(value(&page, name, label))
    }

    /// What the store said last, for messages.
    pub(crate) fn last_words(&self) -> String {
        self.serve.last_words()
    }

    /// Stops witness and store.
    pub(crate) fn stop(mut self) -> Result<()> {
        if let Some(witness) = self.witness.take() {
            witness.stop(STOP)?;
        }
        self.serve.stop(STOP)
    }
}

/// The value of a metric with a label, in a page of the OpenMetrics format; 0 where it was never counted.
fn value(page: &str, name: &str, label: &str) -> u64 {
    page.lines()
        .filter_map(|line| line.strip_prefix(name)?.rsplit_once(' '))
        .filter(|(labels, _)| {
            let exact = labels.is_empty() || labels.starts_with('{');
            exact && labels.contains(label)
        })
        .filter_map(|(_, value)| value.parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_read_by_name_and_label() {
        let page = "# TYPE a counter\na_total{lane=\"x\"} 3\na_total{lane=\"y\"} 4\na_total_other 9\nb 5\n# EOF\n";
        assert_eq!(value(page, "a_total", "lane=\"x\""), 3);
        assert_eq!(value(page, "a_total", ""), 7);
        assert_eq!(value(page, "b", ""), 5);
        assert_eq!(value(page, "c", ""), 0);
    }
}
