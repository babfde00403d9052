//! What a child process does, in a cgroup of its own.
//!
//! The child is this same program, told by an environment variable to do so: a program of its own would need a place
//! in the virtual machine.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result, bail, ensure};

use crate::sys;
use crate::tree;

const VARIABLE: &str = "FORELAYER_WORKLOAD";

/// One thing to do.
#[derive(Debug, Clone)]
pub enum Step {
    /// One `pread` of so many pages from this page.
    Read(PathBuf, u64, u64),
    /// Map the whole file, read one byte of each of so many pages from this page.
    Map(PathBuf, u64, u64),
    /// Open, whatever comes of it.
    Open(PathBuf),
    /// Read one byte of every fourth MiB, so many times, from this one on.
    Stride(PathBuf, u64, u64),
    /// Move into a mount namespace of its own.
    Unshare,
    /// Become this program.
    Exec(PathBuf),
}

impl Step {
    fn encode(&self) -> String {
        match self {
            Self::Read(path, first, count) => format!("read\t{}\t{first}\t{count}", path.display()),
            Self::Map(path, first, count) => format!("map\t{}\t{first}\t{count}", path.display()),
            Self::Open(path) => format!("open\t{}", path.display()),
            Self::Stride(path, first, count) => {
                format!("stride\t{}\t{first}\t{count}", path.display())
            }
            Self::Unshare => "unshare".to_owned(),
            Self::Exec(path) => format!("exec\t{}", path.display()),
        }
    }

    fn decode(line: &str) -> Result<Self> {
        let parts: Vec<&str> = line.split('\t').collect();
        let number = |index: usize| {
            parts
                .get(index)
                .context("a number is missing")?
                .parse::<u64>()
                .context("no number")
        };
        let path =
            || Ok::<_, anyhow::Error>(PathBuf::from(parts.get(1).context("a path is missing")?));
        Ok(match parts[0] {
            "read" => Self::Read(path()?, number(2)?, number(3)?),
            "map" => Self::Map(path()?, number(2)?, number(3)?),
            "open" => Self::Open(path()?),
            "stride" => Self::Stride(path()?, number(2)?, number(3)?),
            "unshare" => Self::Unshare,
            "exec" => Self::Exec(path()?),
            other => bail!("no such step: {other}"),
        })
    }

    fn run(&self) -> Result<()> {
        match self {
            Self::Read(path, first, count) => {
                let mut bytes = vec![0; usize::try_from(count * 4096)?];
                let read = File::open(path)?.read_at(&mut bytes, first * 4096)?;
                ensure!(
                    read > 0,
                    "nothing was read from page {first} of {}",
                    path.display()
                );
                let right = bytes[..read]
                    .iter()
                    .zip(first * 4096..)
                    .all(|(byte, at)| *byte == tree::content(at));
                ensure!(right, "wrong bytes from page {first} of {}", path.display());
            }
            Self::Map(path, first, count) => {
                let file = File::open(path)?;
                let length = usize::try_from(file.metadata()?.len())?;
                let (first, count) = (usize::try_from(*first)?, usize::try_from(*count)?);
                sys::touch_mapped(&file, length, first..first + count)?;
            }
            Self::Open(path) => drop(File::open(path)),
            Self::Stride(path, first, count) => {
                let file = File::open(path)?;
                for block in *first..first + count {
                    ensure!(
                        file.read_at(&mut [0], block << 22)? == 1,
                        "the end of {}",
                        path.display()
                    );
                }
            }
            Self::Unshare => sys::unshare_mounts()?,
            Self::Exec(path) => return Err(Command::new(path).exec()).context("cannot exec"),
        }
        Ok(())
    }
}

/// In the child: does what it was told and ends. In any other process: returns.
pub fn run_if_child() {
    let Some(text) = std::env::var_os(VARIABLE) else {
        return;
    };
    let run = || -> Result<()> {
        let text = text.into_string().ok().context("not UTF-8")?;
        let mut lines = text.lines();
        let cgroup = Path::new(lines.next().context("no cgroup")?);
        fs::write(cgroup.join("cgroup.procs"), "0").context("cannot join the cgroup")?;
        lines.map(Step::decode).try_for_each(|step| {
            let step = step?;
            step.run().with_context(|| format!("{step:?}"))
        })
    };
    match run() {
        Ok(()) => std::process::exit(0),
        Err(error) => {
            eprintln!("workload: {error:#}");
            std::process::exit(1);
        }
    }
}

/// Starts a child that does this.
///
/// # Errors
/// It could not be started.
pub fn start(cgroup: &Cgroup, steps: &[Step]) -> Result<Child> {
    let mut text = cgroup.place.display().to_string();
    for step in steps {
        text.push('\n');
        text.push_str(&step.encode());
    }
    let program = std::env::current_exe().context("cannot find this program")?;
    Command::new(program)
        .env(VARIABLE, text)
        .spawn()
        .context("cannot start the child")
}

/// A cgroup (version 2) for one child; removed when dropped.
#[derive(Debug)]
pub struct Cgroup {
    place: PathBuf,
    id: u64,
}

impl Cgroup {
    /// Makes one.
    ///
    /// # Errors
    /// No cgroup-v2 hierarchy is mounted, or not privileged.
    pub fn new() -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let root = mounts
            .lines()
            .filter(|line| line.contains(" - cgroup2 "))
            .find_map(|line| line.split(' ').nth(4))
            .context("no cgroup-v2 hierarchy is mounted")?;
        let name = format!(
            "forelayer-test-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let place = Path::new(root).join(name);
        fs::create_dir(&place)
            .with_context(|| format!("cannot make the cgroup {}", place.display()))?;
        let id = fs::metadata(&place)?.ino();
        Ok(Self { place, id })
    }

    /// Its number, as events name it.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Fails while a process is in it; what is left then is an empty directory of a test that failed anyway.
        let _ = fs::remove_dir(&self.place);
    }
}
