//! The kernel tests on other kernels: Debian's cloud kernels in virtual machines, without hardware acceleration.
//!
//! Each machine has one program, the statically linked test of `tests/kernel` as its init, and at most two modules. What
//! the test prints on the serial line is what is judged: a machine that says nothing has failed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::apt::{self, Apt, Unavailable};

mod cpio;

/// A kernel to test on.
struct Kernel {
    /// Its series, for people.
    series: &'static str,
    /// The Debian suite it is taken from.
    suite: &'static str,
    /// The rungs of the witness that must work there.
    levels: &'static str,
}

/// Linux 6.1 has no page-cache events but kprobes, 6.12 is the first long-term kernel with everything.
const KERNELS: [Kernel; 2] = [
    Kernel {
        series: "6.1",
        suite: "bookworm",
        levels: "kprobes,add",
    },
    Kernel {
        series: "6.12",
        suite: "trixie",
        levels: "tracepoints,kprobes,add",
    },
];

/// The package that depends on the suite's newest kernel.
const META: &str = "linux-image-cloud-amd64";
/// Modules the tests need, unless the kernel has them built in.
const MODULES: [&str; 2] = ["fuse", "overlay"];
/// The target the test is built for, whatever the default of cargo.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// A machine that takes longer hangs: usual are 20 s, on two busy processors a minute.
const PATIENCE: Duration = Duration::from_secs(600);

/// How the tests ended.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Tests that passed.
    pub(crate) passed: u32,
    /// Tests that failed, machines that said nothing among them.
    pub(crate) failed: u32,
    /// Tests that say nothing there.
    pub(crate) ignored: u32,
}

/// Runs the kernel tests on every kernel and prints one line with the sum of their results. Returns which kernels could
/// not be had, and why; empty if all ran.
///
/// # Errors
/// A test failed or could not be built. [`Unavailable`]: there is no emulator, or no kernel can be had, and none ran.
pub(crate) fn run() -> Result<String> {
    let version = Command::new("qemu-system-x86_64")
        .arg("--version")
        .stdout(Stdio::null())
        .status();
    if !version.is_ok_and(|status| status.success()) {
        return Err(
            Unavailable("no qemu-system-x86_64 (Debian: qemu-system-x86)".to_owned()).into(),
        );
    }
    let mut kernels = Vec::new();
    let mut reasons = Vec::new();
    for kernel in &KERNELS {
        match files_of(kernel) {
            Ok(files) => kernels.push((kernel, files)),
            Err(error) => match error.downcast::<Unavailable>() {
                Ok(Unavailable(reason)) => {
                    reasons.push(format!("kernel {}: {reason}", kernel.series));
                }
                Err(error) => return Err(error.context(format!("kernel {}", kernel.series))),
            },
        }
    }
    if kernels.is_empty() {
        return Err(Unavailable(reasons.join("; ")).into());
    }
    for reason in &reasons {
        println!("ignored: {reason}");
    }
    let test = build()?;
    let outputs = std::thread::scope(|scope| {
        let machines: Vec<_> = kernels
            .iter()
            .map(|(kernel, files)| (kernel, scope.spawn(|| boot(kernel, files, &test))))
            .collect();
        machines
            .into_iter()
            .map(|(kernel, machine)| {
                let output = machine
                    .join()
                    .unwrap_or_else(|_| Err(anyhow::anyhow!("the machine's thread panicked")));
                (*kernel, output)
            })
            .collect::<Vec<_>>()
    });
    let mut sum = Counts {
        ignored: u32::try_from(reasons.len()).unwrap_or(u32::MAX),
        ..Counts::default()
    };
    for (kernel, output) in outputs {
        let counts = match output {
            Ok(text) => report(kernel, &text),
            Err(error) => {
                println!("kernel {}: {error:#}", kernel.series);
                None
            }
        };
        let counts = counts.unwrap_or(Counts {
            failed: 1,
            ..Counts::default()
        });
        sum.passed += counts.passed;
        sum.failed += counts.failed;
        sum.ignored += counts.ignored;
    }
    let word = if sum.failed == 0 { "ok" } else { "FAILED" };
    println!(
        "test result: {word}. {} passed; {} failed; {} ignored",
        sum.passed, sum.failed, sum.ignored
    );
    ensure!(
        sum.failed == 0,
        "{} tests failed on other kernels",
        sum.failed
    );
    Ok(reasons.join("; "))
}

/// What a machine needs of a kernel.
struct Files {
    image: PathBuf,
    modules: Vec<PathBuf>,
}

/// A kernel's files from the cache, fetched the first time.
fn files_of(kernel: &Kernel) -> Result<Files> {
    let place =
        forelayer_tests::engine::cache::once(&format!("kernel-{}", kernel.series), |place| {
            let apt = Apt::new(place, kernel.suite)?;
            let depends = apt.depends(META)?;
            let image = depends
                .iter()
                .find(|package| package.starts_with(&format!("linux-image-{}.", kernel.series)))
                .with_context(|| format!("{META} of {} depends on {depends:?}", kernel.suite))?;
            let package = apt.download(image)?;
            apt::unpack(&package, place, "./boot/vmlinuz-*", 2)?;
            let tree = place.join("tree");
            fs::create_dir(&tree)?;
            for module in MODULES {
                // Absent where it is built in; a kernel that has it neither way fails the test that needs it.
                let _ = apt::unpack(&package, &tree, &format!("*/{module}.ko*"), 0);
            }
            for module in MODULES {
                for found in find(&tree, &format!("{module}.ko"))? {
                    plain(&found, &place.join(format!("{module}.ko")))?;
                }
            }
            fs::remove_dir_all(&tree)?;
            fs::remove_dir_all(place.join("apt"))?;
            fs::remove_file(&package)?;
            Ok(())
        })?;
    let image = fs::read_dir(&place)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))
        })
        .with_context(|| format!("no kernel in {}: remove the directory", place.display()))?;
    let modules = MODULES
        .iter()
        .map(|name| place.join(format!("{name}.ko")))
        .filter(|path| path.exists())
        .collect();
    Ok(Files { image, modules })
}

/// Files below a directory whose names begin so.
fn find(directory: &Path, start: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(find(&entry.path(), start)?);
        } else if entry.file_name().to_string_lossy().starts_with(start) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Copies a module, decompressed.
fn plain(module: &Path, to: &Path) -> Result<()> {
    if module
        .extension()
        .is_some_and(|extension| extension == "xz")
    {
        let output = Command::new("xz")
            .args(["--decompress", "--stdout"])
            .arg(module)
            .output();
        let output = output.context("cannot run xz")?;
        ensure!(
            output.status.success(),
            "xz cannot decompress {}",
            module.display()
        );
        fs::write(to, output.stdout)?;
    } else {
        fs::copy(module, to)?;
    }
    Ok(())
}

/// Builds the kernel test as one static file: its path.
fn build() -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("the crate `xtask` has no parent directory")?;
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args([
            "test",
            "--locked",
            "--no-run",
            "--quiet",
            "--package",
            "forelayer-kernel-tests",
            "--test",
            "witness",
        ])
        .args(["--target", TARGET, "--message-format", "json"])
        .env(
            "RUSTFLAGS",
            "-C target-feature=+crt-static -C strip=symbols",
        )
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .current_dir(root)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    ensure!(
        output.status.success(),
        "cargo cannot build the kernel test: {}",
        output.status
    );
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find(|message| message["target"]["name"] == "witness" && message["executable"].is_string())
        .and_then(|message| message["executable"].as_str().map(PathBuf::from))
        .context("cargo names no executable for the kernel test")
}

/// Boots a machine and lets it run to its end: what it printed.
fn boot(kernel: &Kernel, files: &Files, test: &Path) -> Result<String> {
    let directory = tempfile::tempdir()?;
    let initrd = directory.path().join("initrd");
    let mut archive = cpio::Archive::new(fs::File::create(&initrd)?);
    archive.directory("modules")?;
    for (number, module) in files.modules.iter().enumerate() {
        let name = module
            .file_name()
            .context("a module without a name")?
            .to_string_lossy();
        archive.file(
            &format!("modules/{number}-{name}"),
            0o644,
            &fs::read(module)?,
        )?;
    }
    archive.file("init", 0o755, &fs::read(test)?)?;
    archive.finish()?;

    let console = directory.path().join("console");
    let mut machine = Command::new("qemu-system-x86_64")
        // QEMU 7.2 emulates CMPXCHG16B wrongly now and then (kernel 6.12 then dies of a double fault in its memory
        // allocator, more often with two processors): the kernel has another way where the processor lacks it.
        .args([
            "-machine",
            "q35",
            "-accel",
            "tcg",
            "-cpu",
            "max,-cx16",
            "-smp",
            "1",
            "-m",
            "1024",
        ])
        .args(["-nodefaults", "-display", "none", "-no-reboot", "-serial"])
        .arg(format!("file:{}", console.display()))
        .arg("-kernel")
        .arg(&files.image)
        .arg("-initrd")
        .arg(&initrd)
        .arg("-append")
        .arg(format!(
            "console=ttyS0 panic=-1 quiet mitigations=off levels={}",
            kernel.levels
        ))
        .stdin(Stdio::null())
        .spawn()
        .context("cannot run qemu-system-x86_64")?;
    let deadline = std::time::Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = machine.try_wait()? {
            break Some(status);
        }
        if std::time::Instant::now() > deadline {
            machine.kill()?;
            machine.wait()?;
            break None;
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    let text = String::from_utf8_lossy(&fs::read(&console)?).replace('\r', "");
    match status {
        Some(status) if status.success() => Ok(text),
        Some(status) => bail!("the machine ended with {status} after saying:\n{text}"),
        None => bail!(
            "the machine did not end within {} s after saying:\n{text}",
            PATIENCE.as_secs()
        ),
    }
}

/// Prints what a machine said, and counts; `None` if it never came to its result.
fn report(kernel: &Kernel, text: &str) -> Option<Counts> {
    for line in text.lines() {
        println!("[{}] {line}", kernel.series);
    }
    let counts = text.lines().rev().find_map(counts_of);
    if counts.is_none() {
        println!("kernel {}: the tests never ended", kernel.series);
    }
    counts
}

/// The numbers of `test result: ok. 3 passed; 0 failed; 1 ignored; ...`.
fn counts_of(line: &str) -> Option<Counts> {
    let (_, rest) = line.split_once("test result: ")?.1.split_once(". ")?;
    let number = |word: &str| {
        rest.split(';')
            .find_map(|part| part.trim().strip_suffix(word)?.trim().parse::<u32>().ok())
    };
    Some(Counts {
        passed: number("passed")?,
        failed: number("failed")?,
        ignored: number("ignored")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_a_result_are_read() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; finished in 4s";
        assert_eq!(
            counts_of(line),
            Some(Counts {
                passed: 12,
                failed: 3,
                ignored: 1
            })
        );
        assert_eq!(counts_of("test result: ok."), None);
        assert_eq!(counts_of("12 passed; 0 failed; 0 ignored"), None);
    }
}
