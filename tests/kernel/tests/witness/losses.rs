//! Losses: counted, and said in the log.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use anyhow::{Result, ensure};
use forelayer_kernel_tests::machine;
use forelayer_kernel_tests::tree::Kind;
use forelayer_kernel_tests::workload::{Cgroup, Step, start};
use forelayer_profiler::witness::Event;

use crate::bench::{Bench, Outcome};

/// More blocks than the bitmap has places for: what is lost is counted, and a warning reaches `tracing`.
pub(crate) fn full_bitmap(bench: &mut Bench) -> Result<Outcome> {
    if machine::is_init() {
        return Ok(Outcome::Pointless(
            "65,600 requests take minutes under emulation",
        ));
    }
    let said = Said::capture();
    let before = bench.witness.lost();
    let ino = bench.tree.fresh(Kind::Huge);
    let cgroup = Cgroup::new()?;
    let mut child = start(&cgroup, &[Step::Stride(bench.tree.path(ino), 0, 65_600)])?;
    let mut seen = 0;
    bench.runtime.block_on(async {
        while let Some(event) = bench.events.recv().await {
            match event {
                Event::Touch { origin, .. } if origin.cgroup == cgroup.id() => seen += 1,
                Event::Exit { origin } if origin.pid == child.id() => break,
                _ => {}
            }
        }
    });
    ensure!(child.wait()?.success(), "the child failed");
    let lost = bench.witness.lost() - before;
    // On `add` the kernel's readahead brings a few pages more.
    let complete = if bench.is_exact() {
        seen + lost == 65_600
    } else {
        seen + lost >= 65_600
    };
    ensure!(
        lost > 0 && complete,
        "{seen} touches were seen and {lost} lost, of 65600"
    );
    ensure!(
        said.contains("first-touch bitmap is full"),
        "no warning reached the log"
    );
    bench.new_window()?;
    let ino = bench.tree.fresh(Kind::Huge);
    let again = bench.run(&[Step::Stride(bench.tree.path(ino), 0, 4)])?;
    ensure!(
        again
            .touches
            .get(&ino)
            .is_some_and(|pages| pages.len() >= 4),
        "the new window has no room: {again:?}"
    );
    Ok(Outcome::Passed)
}

/// What went to the log since.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl Said {
    /// Captures the log of the whole process from now on; the first call's text counts for all.
    fn capture() -> Self {
        static SAID: OnceLock<Said> = OnceLock::new();
        SAID.get_or_init(|| {
            let said = Self::default();
            let writer = said.clone();
            let subscriber = tracing_subscriber::fmt()
                .with_writer(move || writer.clone())
                .with_ansi(false)
                .finish();
            // Fails only if the process has a log already, which no test makes.
            let _ = tracing::subscriber::set_global_default(subscriber);
            said
        })
        .clone()
    }

    fn contains(&self, text: &str) -> bool {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
            .contains(text)
    }
}

impl std::io::Write for Said {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
