//! A real image from the programs of this machine: two layers, at least 100 MB and 500 files, and a start that touches
//! at least 20 MB in 300 files of both.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use forelayer_tests::fixtures::{Entry, HostTree, Image, ImageConfig, Layer, Lazy};

use super::{
    app::{App, LIST},
    machine::{command_path, quietly},
};

/// What the issue of the demo is: an image worth not downloading.
const MIN_BYTES: u64 = 100 << 20;
const MIN_FILES: usize = 500;
/// What a start reads besides its own libraries.
const READ_BYTES: u64 = 22 << 20;
const READ_FILES: usize = 320;
/// A file that a start reads whole is at most this large.
const READ_LARGEST: u64 = 512 << 10;
/// No single file of more than this: a pull would be about one file.
const LARGEST: u64 = 48 << 20;

/// Programs for the lower layer, those that are there.
const PROGRAMS: &[&str] = &[
    "sh", "bash", "cat", "ls", "cp", "mv", "rm", "mkdir", "ln", "chmod", "chown", "date", "df",
    "du", "echo", "env", "head", "tail", "id", "sort", "uniq", "wc", "tr", "cut", "tee", "test",
    "touch", "uname", "find", "xargs", "grep", "sed", "awk", "tar", "gzip", "bzip2", "xz", "zstd",
    "ps", "top", "ip", "ss", "mount", "openssl", "curl", "wget", "ssh", "git", "perl", "make",
    "file", "less", "vi", "gpg", "rsync", "jq", "sqlite3",
];

/// An image and what a start of it does.
#[derive(Debug)]
pub(crate) struct Built {
    pub(crate) image: Image,
    pub(crate) layers: Vec<Layer>,
    pub(crate) app: App,
    pub(crate) bytes: u64,
    pub(crate) files: usize,
}

/// Builds it.
pub(crate) fn build(lazy: &Lazy) -> Result<Built> {
    let programs: Vec<PathBuf> = PROGRAMS
        .iter()
        .filter_map(|name| command_path(name))
        .collect();
    let app = App::choose(&programs).context("this machine has not even a shell")?;
    let mut lower = Part::default();
    for program in &programs {
        lower.program(program)?;
    }
    for file in [
        "/etc/ld.so.cache",
        "/etc/passwd",
        "/etc/group",
        "/etc/nsswitch.conf",
        "/etc/ssl/openssl.cnf",
        "/etc/localtime",
    ] {
        lower.optional(Path::new(file))?;
    }
    for dir in [
        "/usr/share/zoneinfo",
        "/usr/lib/locale",
        "/usr/share/terminfo",
        "/lib/terminfo",
    ] {
        lower.tree(Path::new(dir), &BTreeSet::new(), 16 << 20)?;
    }
    let libraries = library_dirs();
    lower.largest(&libraries, MIN_BYTES * 6 / 10, &BTreeSet::new())?;

    let mut upper = Part::default();
    match &app {
        App::Python { program, library } => {
            upper.program(program)?;
            upper.tree(library, &lower.paths, 48 << 20)?;
            let modules = library.join("lib-dynload");
            for module in fs::read_dir(&modules).into_iter().flatten().flatten() {
                upper.libraries(&module.path())?;
            }
        }
        App::Shell { .. } => {
            for dir in ["/usr/share/perl", "/usr/share/perl5", "/usr/lib/git-core"] {
                upper.tree(Path::new(dir), &lower.paths, 48 << 20)?;
            }
        }
    }
    let enough = (MIN_BYTES + (4 << 20)).saturating_sub(lower.bytes);
    upper.largest(&libraries, enough, &lower.paths)?;
    for dir in ["/usr/share", "/usr/lib", "/usr/local"] {
        if lower.files() + upper.files() < MIN_FILES + 100 {
            upper.tree(Path::new(dir), &lower.paths, 8 << 20)?;
        }
    }
    if lower.bytes + upper.bytes < MIN_BYTES
        && let Ok(sysroot) = quietly(Command::new("rustc").args(["--print", "sysroot"]))
    {
        upper.tree(
            &Path::new(sysroot.trim()).join("lib"),
            &lower.paths,
            MIN_BYTES,
        )?;
    }
    let (bytes, files) = (lower.bytes + upper.bytes, lower.files() + upper.files());
    if bytes < MIN_BYTES || files < MIN_FILES {
        bail!(
            "this machine's programs make an image of only {bytes} bytes in {files} files; the demo wants {MIN_BYTES} bytes in {MIN_FILES} files"
        );
    }
    let read = to_read(&lower, &upper)?;
    finish(&lower, &upper, &read, app, lazy)
}

fn finish(lower: &Part, upper: &Part, read: &[PathBuf], app: App, lazy: &Lazy) -> Result<Built> {
    let mut bottom = lower.entries()?;
    for dir in ["proc", "dev", "sys", "tmp", "root", "run"] {
        if !bottom.iter().any(|entry| entry.path == dir) {
            bottom.push(Entry::dir(dir));
        }
    }
    let mut top = upper.entries()?;
    let list: String = read
        .iter()
        .map(|path| format!("{}\n", path.display()))
        .collect();
    let (script, text) = app.script();
    top.extend([
        Entry::dir("app"),
        Entry::file(LIST, list),
        Entry::file(script, text),
    ]);
    // Two cores at least are the rule, and the layers are independent.
    let layers = std::thread::scope(|scope| {
        let bottom = scope.spawn(|| Layer::build(&bottom, lazy));
        let top = Layer::build(&top, lazy);
        let bottom = bottom
            .join()
            .unwrap_or_else(|_| bail!("the thread that builds a layer panicked"));
        Ok::<_, anyhow::Error>(vec![bottom?, top?])
    })?;
    let config = ImageConfig {
        cmd: app.command(),
        ..ImageConfig::default()
    };
    Ok(Built {
        image: Image::new(&layers, &config)?,
        bytes: lower.bytes + upper.bytes,
        files: lower.files() + upper.files(),
        layers,
        app,
    })
}

/// Files of both layers that a start reads whole: spread over each layer, a bit more from the upper one.
fn to_read(lower: &Part, upper: &Part) -> Result<Vec<PathBuf>> {
    let mut chosen = Vec::new();
    let mut bytes = 0;
    for (part, files, wanted) in [
        (upper, READ_FILES * 6 / 10, READ_BYTES * 6 / 10),
        (lower, READ_FILES * 4 / 10 + 1, READ_BYTES * 4 / 10),
    ] {
        let mut fitting: VecDeque<(u64, &PathBuf)> = part
            .sizes
            .iter()
            .filter(|(path, size)| {
                (1..=READ_LARGEST).contains(*size) && !path.to_string_lossy().contains('\n')
            })
            .map(|(path, size)| (*size, path))
            .collect();
        fitting.make_contiguous().sort();
        // Large ones until the bytes are there, then small ones until the number is: real starts read both.
        let (mut count, mut sum) = (0, 0);
        while let Some((size, path)) = match (sum < wanted, count < files) {
            (true, _) => fitting.pop_back(),
            (false, true) => fitting.pop_front(),
            (false, false) => None,
        } {
            chosen.push(path.clone());
            count += 1;
            sum += size;
        }
        bytes += sum;
    }
    if chosen.len() < 300 || bytes < 20 << 20 {
        bail!(
            "the image has only {} files ({bytes} bytes) that a start could read; the demo wants 300 files and 20 MiB",
            chosen.len()
        );
    }
    // By name, as programs that walk directories do, and so that the layers take turns.
    chosen.sort();
    Ok(chosen)
}

/// One layer to be.
#[derive(Debug, Default)]
struct Part {
    /// Regular files and their sizes.
    sizes: BTreeMap<PathBuf, u64>,
    /// Everything that was asked for, links included.
    paths: BTreeSet<PathBuf>,
    bytes: u64,
}

impl Part {
    fn files(&self) -> usize {
        self.sizes.len()
    }

    /// One path; links are followed when the entries are made.
    fn path(&mut self, path: &Path) -> Result<()> {
        if !self.paths.insert(path.to_owned()) {
            return Ok(());
        }
        let real = path
            .canonicalize()
            .with_context(|| format!("cannot resolve {}", path.display()))?;
        let meta = real.metadata()?;
        if meta.is_file() && self.sizes.insert(real, meta.size()).is_none() {
            self.bytes += meta.size();
        }
        Ok(())
    }

    fn optional(&mut self, path: &Path) -> Result<()> {
        if path.exists() {
            self.path(path)
        } else {
            Ok(())
        }
    }

    /// A program and the libraries it is linked with.
    fn program(&mut self, path: &Path) -> Result<()> {
        self.path(path)?;
        self.libraries(path)
    }

    fn libraries(&mut self, of: &Path) -> Result<()> {
        // Scripts and static programs have none, and ldd says so with an error.
        let Ok(told) = quietly(Command::new("ldd").arg(of)) else {
            return Ok(());
        };
        for line in told.lines() {
            let path = match line.split_once("=>") {
                Some((_, rest)) => rest,
                None => line,
            };
            if let Some(path) = path.split_whitespace().next()
                && path.starts_with('/')
            {
                self.optional(Path::new(path))?;
            }
        }
        Ok(())
    }

    /// Files below a directory, by name, up to a number of bytes, without those that `other` has.
    fn tree(&mut self, dir: &Path, other: &BTreeSet<PathBuf>, most: u64) -> Result<()> {
        let end = self.bytes + most;
        let mut waiting = vec![dir.to_owned()];
        while let Some(dir) = waiting.pop() {
            let Ok(read) = fs::read_dir(&dir) else {
                continue;
            };
            let mut children: Vec<PathBuf> = read.flatten().map(|child| child.path()).collect();
            children.sort();
            for child in children {
                let Ok(meta) = fs::symlink_metadata(&child) else {
                    continue;
                };
                let name = child.file_name().and_then(|name| name.to_str());
                let Some(name) = name else { continue };
                if meta.is_dir() {
                    let unwanted = ["test", "tests", "idlelib", "site-packages", "dist-packages"];
                    if !unwanted.contains(&name) && !name.starts_with("config-") {
                        waiting.push(child);
                    }
                } else if meta.is_file()
                    && meta.size() <= LARGEST
                    && self.bytes + meta.size() <= end
                    && !other.contains(&child)
                {
                    self.path(&child)?;
                }
            }
        }
        Ok(())
    }

    /// The largest shared libraries of these directories, until there are `wanted` bytes.
    fn largest(&mut self, dirs: &[PathBuf], wanted: u64, other: &BTreeSet<PathBuf>) -> Result<()> {
        let mut found: Vec<(u64, PathBuf)> = dirs
            .iter()
            .flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten())
            .filter_map(|child| {
                let meta = fs::symlink_metadata(child.path()).ok()?;
                let library = child.file_name().to_str()?.contains(".so");
                (library && meta.is_file() && meta.size() <= LARGEST / 4)
                    .then(|| (meta.size(), child.path()))
            })
            .collect();
        found.sort();
        while self.bytes < wanted
            && let Some((_, path)) = found.pop()
        {
            if !other.contains(&path) {
                self.path(&path)?;
            }
        }
        Ok(())
    }

    fn entries(&self) -> Result<Vec<Entry>> {
        let mut tree = HostTree::new();
        for path in &self.paths {
            tree.file(path)?;
        }
        Ok(tree.entries())
    }
}

/// Where this machine keeps shared libraries.
fn library_dirs() -> Vec<PathBuf> {
    let triplets = fs::read_dir("/usr/lib")
        .into_iter()
        .flatten()
        .flatten()
        .map(|child| child.path())
        .filter(|path| path.to_string_lossy().ends_with("-linux-gnu"));
    triplets
        .chain(["/usr/lib64", "/usr/lib", "/usr/local/lib"].map(PathBuf::from))
        .collect()
}
