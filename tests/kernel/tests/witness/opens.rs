//! Opens: of those that are watched, found or not.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use forelayer_kernel_tests::trace::Seen;
use forelayer_kernel_tests::tree::Kind;
use forelayer_kernel_tests::workload::{Cgroup, Step};
use forelayer_profiler::witness::Watched;

use crate::bench::{Bench, Outcome};

pub(crate) fn opens(bench: &mut Bench) -> Result<Outcome> {
    let ino = bench.tree.fresh(Kind::Plain);
    let (found, missing) = (
        bench.tree.path(ino),
        bench.tree.place().join("nothing-here"),
    );
    let steps = [Step::Open(found.clone()), Step::Open(missing.clone())];
    let quiet = bench.run(&steps)?;
    ensure!(quiet.opens.is_empty(), "nobody asked for {:?}", quiet.opens);

    let cgroup = Cgroup::new()?;
    bench.witness.watch(Watched::Cgroup(cgroup.id()))?;
    let seen = bench.run_in(&cgroup, &steps)?;
    ensure_opens(&seen, &found, &missing)?;

    bench.witness.unwatch(Watched::Cgroup(cgroup.id()));
    let quiet = bench.run_in(&cgroup, &steps)?;
    ensure!(
        quiet.opens.is_empty(),
        "nobody asks any more for {:?}",
        quiet.opens
    );
    Ok(Outcome::Passed)
}

/// A mount namespace of its own that touches a watched device is a container's, and its opens count from then on.
pub(crate) fn opens_without_asking(bench: &mut Bench) -> Result<Outcome> {
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Ok(Outcome::Pointless(
            "without BTF no record names its mount namespace",
        ));
    }
    let (touched, opened) = (bench.tree.fresh(Kind::Plain), bench.tree.fresh(Kind::Plain));
    let (found, missing) = (
        bench.tree.path(opened),
        bench.tree.place().join("nothing-here"),
    );
    let before = PathBuf::from("/proc/self/status");
    let steps = [
        Step::Unshare,
        Step::Open(before.clone()),
        Step::Read(bench.tree.path(touched), 0, 1),
        Step::Open(found.clone()),
        Step::Open(missing.clone()),
    ];
    let seen = bench.run(&steps)?;
    ensure!(
        !seen.opens.iter().any(|(path, _)| *path == before),
        "no container yet, but {:?}",
        seen.opens
    );
    ensure_opens(&seen, &found, &missing)?;
    Ok(Outcome::Passed)
}

fn ensure_opens(seen: &Seen, found: &Path, missing: &Path) -> Result<()> {
    let result = |wanted: &Path| {
        seen.opens
            .iter()
            .find(|(path, _)| path == wanted)
            .map(|(_, result)| *result)
    };
    ensure!(
        result(found).is_some_and(|result| result >= 0),
        "{} is not among {:?}",
        found.display(),
        seen.opens
    );
    ensure!(
        result(missing) == Some(-libc::ENOENT),
        "{} is not among {:?}",
        missing.display(),
        seen.opens
    );
    Ok(())
}
