//! The demo as a user runs it: the table where everything works, one clear sentence and a non-zero end where not.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use forelayer_tests::engine::environment;

use super::Outcome;

/// Exit code of a demo that cannot run on a machine.
const UNAVAILABLE: i32 = 69;
/// Anybody but root.
const NOBODY: u32 = 65534;

/// What a demo printed and how it ended.
struct Run {
    code: Option<i32>,
    out: String,
    err: String,
}

/// A test: its name, and what it does with this program.
type Test = (&'static str, fn(&Path) -> Result<()>);

pub(super) fn run() -> Result<Outcome> {
    if let Some(reason) = environment::missing() {
        return Ok(Outcome::Skipped(reason.to_owned()));
    }
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let tests: [Test; 5] = [
        ("zstd_chunked", |program| learns(program, "zstd-chunked")),
        ("estargz", |program| learns(program, "estargz")),
        ("without_root", without_root),
        ("without_fuse", without_fuse),
        ("without_ebpf", without_ebpf),
    ];
    let mut failed = 0;
    for (name, test) in &tests {
        match test(&program) {
            Ok(()) => println!("test demo::{name} ... ok"),
            Err(error) => {
                failed += 1;
                println!("test demo::{name} ... FAILED: {error:#}");
            }
        }
    }
    let passed = tests.len() - failed;
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {word}. {passed} passed; {failed} failed; 0 ignored");
    ensure!(failed == 0, "{failed} of {} demos", tests.len());
    Ok(Outcome::Passed)
}

fn demo(command: &mut Command) -> Result<Run> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .context("cannot start the demo")?;
    Ok(Run {
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// A row of the table, its cells separated by two spaces or more.
fn row<'a>(run: &'a Run, name: &str) -> Result<Vec<&'a str>> {
    let line = run.out.lines().find(|line| line.starts_with(name));
    let line = line.with_context(|| format!("no row {name:?} in:\n{}{}", run.out, run.err))?;
    Ok(line
        .split("  ")
        .map(str::trim)
        .filter(|cell| !cell.is_empty())
        .collect())
}

/// A learned start finds nearly everything fetched ahead.
fn learns(program: &Path, format: &str) -> Result<()> {
    let run = demo(Command::new(program).args(["demo", "--format", format]))?;
    ensure!(
        run.code == Some(0),
        "ended with {:?}:\n{}{}",
        run.code,
        run.out,
        run.err
    );
    row(&run, "full download")?;
    let chunks = |name: &str| -> Result<u64> {
        let row = row(&run, name)?;
        let cell = row.iter().find_map(|cell| cell.strip_suffix(" chunks"));
        let cell = cell.with_context(|| format!("no chunks in {row:?}"))?;
        cell.trim().parse().context(row.join(" | "))
    };
    let (unlearned, learned) = (chunks("unlearned")?, chunks("learned")?);
    ensure!(
        unlearned > 0 && learned * 4 <= unlearned,
        "{learned} chunks on demand once learned, {unlearned} before"
    );
    let learned = row(&run, "learned")?;
    ensure!(
        learned
            .iter()
            .rev()
            .nth(1)
            .is_some_and(|predicted| *predicted != "0.0 MB"),
        "nothing was predicted: {learned:?}"
    );
    Ok(())
}

fn refused(run: &Run, code: i32, sentence: &str) -> Result<()> {
    ensure!(
        run.code == Some(code) && run.err.contains(sentence),
        "ended with {:?} and said {:?}",
        run.code,
        run.err
    );
    ensure!(
        !run.out.lines().any(|line| line.starts_with("learned")),
        "a learned row all the same:\n{}",
        run.out
    );
    Ok(())
}

fn without_root(program: &Path) -> Result<()> {
    // A copy: the checkout may lie where only root can look.
    let dir = tempfile::tempdir()?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    let copy = dir.path().join("xtask");
    fs::copy(program, &copy)?;
    let mut command = Command::new(&copy);
    command.arg("demo").uid(NOBODY).gid(NOBODY).current_dir("/");
    refused(&demo(&mut command)?, UNAVAILABLE, "run it as root")
}

/// The demo in a mount namespace of its own, prepared by a line of shell.
fn prepared(program: &Path, prepare: &str) -> Result<Run> {
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "sh", "-c"])
        .arg(format!("set -e; {prepare}; exec \"$0\" demo"))
        .arg(program);
    let run = demo(&mut command)?;
    if run.err.contains("unshare:") {
        bail!("{}", run.err);
    }
    Ok(run)
}

fn without_fuse(program: &Path) -> Result<()> {
    let run = prepared(
        program,
        "mount -t tmpfs tmpfs /mnt; touch /mnt/null; mount --bind /dev/null /mnt/null; mount --move /mnt /dev",
    )?;
    refused(&run, UNAVAILABLE, "there is no /dev/fuse")
}

fn without_ebpf(program: &Path) -> Result<()> {
    // Neither tracefs nor a place to mount it.
    let run = prepared(program, "mount -t tmpfs tmpfs /sys/kernel")?;
    refused(&run, 1, "the kernel does not let the witness see")
}
