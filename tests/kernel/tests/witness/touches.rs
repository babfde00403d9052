//! Touches: by read, by mapping, by exec; through an overlay; of two containers; once a window; of our devices only.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use forelayer_kernel_tests::program;
use forelayer_kernel_tests::trace::collect;
use forelayer_kernel_tests::tree::{Kind, Tree, pages};
use forelayer_kernel_tests::workload::{Cgroup, Step, start};
use forelayer_profiler::protocol::Access;

use crate::bench::{Bench, Outcome, range, show};
use crate::overlay::Overlay;

pub(crate) fn reads(bench: &mut Bench) -> Result<Outcome> {
    let ino = bench.tree.fresh(Kind::Plain);
    let path = bench.tree.path(ino);
    let steps = [
        Step::Read(path.clone(), 0, 1),
        Step::Read(path.clone(), 50, 1),
        // Across a word of the bitmap, and more than one batch of the kernel.
        Step::Read(path.clone(), 60, 100),
        // Past the end of the file.
        Step::Read(path, 298, 40),
    ];
    let done = range(Access::Read, &[0..1, 50..51, 60..160, 298..301]);
    bench.cold_and_warm(&steps, ino, Kind::Plain, &done)?;
    Ok(Outcome::Passed)
}

pub(crate) fn maps(bench: &mut Bench) -> Result<Outcome> {
    let ino = bench.tree.fresh(Kind::Plain);
    let path = bench.tree.path(ino);
    // Whole fault-around windows: which fault maps which of their pages does not matter then.
    let steps = [Step::Map(path.clone(), 32, 16), Step::Map(path, 160, 64)];
    let done = range(Access::Map, &[32..48, 160..224]);
    bench.cold_and_warm(&steps, ino, Kind::Plain, &done)?;
    Ok(Outcome::Passed)
}

pub(crate) fn execs(bench: &mut Bench) -> Result<Outcome> {
    let ino = bench.tree.fresh(Kind::Program);
    let path = bench.tree.path(ino);
    let steps = [Step::Exec(path.clone())];
    bench.cold_and_warm(&steps, ino, Kind::Program, &program::touches())?;
    let seen = bench.run(&steps)?;
    ensure!(
        seen.execs.contains(&path),
        "the exec of {} is not among {:?}",
        path.display(),
        seen.execs
    );
    Ok(Outcome::Passed)
}

pub(crate) fn through_an_overlay(bench: &mut Bench) -> Result<Outcome> {
    let overlay = Overlay::mount(bench.tree.place())?;
    let (plain, program) = (
        bench.tree.fresh(Kind::Plain),
        bench.tree.fresh(Kind::Program),
    );
    let (plain_path, program_path) = (
        Tree::path_in(overlay.place(), plain),
        Tree::path_in(overlay.place(), program),
    );
    let steps = [
        Step::Read(plain_path.clone(), 7, 3),
        Step::Map(plain_path, 96, 16),
        Step::Exec(program_path),
    ];
    let seen = bench.run(&steps)?;
    let mut done = range(Access::Read, &[7..10]);
    done.extend(range(Access::Map, &[96..112]));
    bench.compare(&seen, plain, Kind::Plain, &done)?;
    bench.compare(&seen, program, Kind::Program, &program::touches())?;
    Ok(Outcome::Passed)
}

pub(crate) fn two_containers(bench: &mut Bench) -> Result<Outcome> {
    let ino = bench.tree.fresh(Kind::Plain);
    let path = bench.tree.path(ino);
    let cgroups = [Cgroup::new()?, Cgroup::new()?];
    // They share a part of what they read, so that only one of them finds it cold.
    let steps = [
        [
            Step::Read(path.clone(), 0, 64),
            Step::Map(path.clone(), 128, 16),
        ],
        [Step::Read(path.clone(), 32, 64), Step::Map(path, 128, 32)],
    ];
    let mut children = Vec::new();
    for (cgroup, steps) in cgroups.iter().zip(&steps) {
        children.push(start(cgroup, steps)?);
    }
    for child in &mut children {
        let status = child.wait()?;
        ensure!(status.success(), "a child ended with {status}");
    }
    let ids = children.iter().map(std::process::Child::id).collect();
    let all = bench
        .runtime
        .block_on(collect(&mut bench.events, bench.tree.device(), ids))?;
    let of = |cgroup: &Cgroup| {
        all.get(&cgroup.id())
            .map(|seen| seen.pages(ino, pages(Kind::Plain)))
            .unwrap_or_default()
    };
    let mut done = [
        range(Access::Read, &[0..64]),
        range(Access::Read, &[32..96]),
    ];
    done[0].extend(range(Access::Map, &[128..144]));
    done[1].extend(range(Access::Map, &[128..160]));
    if bench.is_exact() {
        for (cgroup, done) in cgroups.iter().zip(&done) {
            ensure!(
                of(cgroup) == *done,
                "seen {}, done {}",
                show(&of(cgroup)),
                show(done)
            );
        }
    } else {
        // A page enters the page cache once, whoever of the two was first.
        let [first, second] = [of(&cgroups[0]), of(&cgroups[1])];
        let missing: Vec<_> = done
            .iter()
            .flat_map(BTreeMap::keys)
            .filter(|page| !first.contains_key(page) && !second.contains_key(page))
            .collect();
        ensure!(missing.is_empty(), "not seen: {missing:?}");
    }
    Ok(Outcome::Passed)
}

pub(crate) fn once_a_window(bench: &mut Bench) -> Result<Outcome> {
    let ino = bench.tree.fresh(Kind::Plain);
    let steps = [Step::Read(bench.tree.path(ino), 10, 20)];
    let cgroup = Cgroup::new()?;
    let done = range(Access::Read, &[10..30]);
    let first = bench.run_in(&cgroup, &steps)?;
    bench.compare(&first, ino, Kind::Plain, &done)?;
    let again = bench.run_in(&cgroup, &steps)?;
    ensure!(
        again.touches.is_empty(),
        "reported again: {:?}",
        again.touches
    );
    if bench.is_exact() {
        bench.witness.forget(cgroup.id(), own_mount_namespace()?)?;
        let forgotten = bench.run_in(&cgroup, &steps)?;
        bench
            .compare(&forgotten, ino, Kind::Plain, &done)
            .context("after forgetting the container")?;
        bench.new_window()?;
        let reset = bench.run_in(&cgroup, &steps)?;
        bench
            .compare(&reset, ino, Kind::Plain, &done)
            .context("after a new window")?;
    }
    Ok(Outcome::Passed)
}

pub(crate) fn windows(bench: &mut Bench) -> Result<Outcome> {
    for _ in 0..3 {
        // Opening at once takes back what is not detached yet; the kernel refuses a program that still hangs there.
        bench.witness.detach();
        bench.witness.attach()?;
        bench.witness.attach()?;
        let ino = bench.tree.fresh(Kind::Plain);
        let seen = bench.run(&[Step::Read(bench.tree.path(ino), 3, 5)])?;
        bench.compare(&seen, ino, Kind::Plain, &range(Access::Read, &[3..8]))?;
        let exits = seen.exits.len();
        ensure!(
            exits == 1,
            "the end of one process was reported {exits} times"
        );
    }
    Ok(Outcome::Passed)
}

pub(crate) fn other_devices(bench: &mut Bench) -> Result<Outcome> {
    let directory = tempfile::tempdir()?;
    let other = Tree::mount(directory.path())?;
    let ino = other.fresh(Kind::Plain);
    let steps = [Step::Read(other.path(ino), 0, 8)];
    let seen = bench.run(&steps)?;
    ensure!(seen.touches.is_empty(), "seen: {:?}", seen.touches);
    // And it is seen once it is watched, the first tree no longer.
    bench.witness.watch_devices(&[other.device()])?;
    bench.new_window()?;
    let (unseen, fresh) = (bench.tree.fresh(Kind::Plain), other.fresh(Kind::Plain));
    let steps = [
        Step::Read(bench.tree.path(unseen), 0, 8),
        Step::Read(other.path(fresh), 0, 8),
    ];
    let cgroup = Cgroup::new()?;
    let mut child = start(&cgroup, &steps)?;
    child.wait()?;
    let all = bench
        .runtime
        .block_on(collect(&mut bench.events, other.device(), vec![child.id()]));
    bench.witness.watch_devices(&[bench.tree.device()])?;
    let seen = all?.remove(&cgroup.id()).unwrap_or_default();
    bench.compare(&seen, fresh, Kind::Plain, &range(Access::Read, &[0..8]))?;
    Ok(Outcome::Passed)
}

fn own_mount_namespace() -> Result<u32> {
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Ok(0);
    }
    let link = std::fs::read_link("/proc/self/ns/mnt")?;
    let text = link
        .to_str()
        .and_then(|text| text.strip_prefix("mnt:[")?.strip_suffix(']'))
        .context("no number")?;
    Ok(text.parse()?)
}
