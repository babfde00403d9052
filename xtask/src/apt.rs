//! Debian packages, unpacked somewhere and never installed.
//!
//! Invariant kept here: apt works on lists of its own below the caller's directory; the system's stay as they are. The
//! mirror is the machine's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail};

/// A package cannot be had here: no mirror, no network, or it is not there any more. A test that needs it is ignored.
#[derive(Debug)]
pub(crate) struct Unavailable(pub(crate) String);

impl std::fmt::Display for Unavailable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unavailable {}

/// One suite of the archive, with lists of its own.
pub(crate) struct Apt {
    place: PathBuf,
}

impl Apt {
    /// Fetches the lists of a suite into `place`.
    ///
    /// # Errors
    /// [`Unavailable`], or `place` cannot be written.
    pub(crate) fn new(place: &Path, suite: &str) -> Result<Self> {
        let mirror = mirror().ok_or_else(|| {
            Unavailable("no Debian mirror among this machine's package sources".to_owned())
        })?;
        for directory in ["apt/lists/partial", "apt/archives/partial"] {
            let directory = place.join(directory);
            fs::create_dir_all(&directory)
                .with_context(|| format!("cannot make {}", directory.display()))?;
        }
        let apt = Self {
            place: place.to_owned(),
        };
        let text = format!(
            "Types: deb\nURIs: {mirror}\nSuites: {suite}\nComponents: main\n\
             Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
        );
        let sources = apt.sources();
        fs::write(&sources, text).with_context(|| format!("cannot write {}", sources.display()))?;
        apt.run("apt-get", &["--quiet=2", "update"])?;
        Ok(apt)
    }

    /// Downloads a package (`name` or `name=version`): its file.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub(crate) fn download(&self, package: &str) -> Result<PathBuf> {
        let name = package.split('=').next().unwrap_or(package);
        self.run("apt-get", &["--quiet=2", "download", package])?;
        fs::read_dir(&self.place)?
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .find(|path| {
                let file = path
                    .file_name()
                    .map(|file| file.to_string_lossy().into_owned())
                    .unwrap_or_default();
                file.starts_with(&format!("{name}_")) && file.ends_with(".deb")
            })
            .with_context(|| format!("apt-get downloaded no {package}"))
    }

    /// What a package depends on, by name.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub(crate) fn depends(&self, package: &str) -> Result<Vec<String>> {
        let output = self.run("apt-cache", &["depends", package])?;
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .map(str::to_owned)
            .collect())
    }

    fn sources(&self) -> PathBuf {
        self.place.join("forelayer.sources")
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<Output> {
        let shown = format!("{program} {}", arguments.join(" "));
        let options = [
            format!("Dir::Etc::sourcelist={}", self.sources().display()),
            "Dir::Etc::sourceparts=-".to_owned(),
            format!(
                "Dir::State::lists={}",
                self.place.join("apt/lists").display()
            ),
            format!("Dir::Cache={}", self.place.join("apt").display()),
            // As the user who runs this: the sandbox's own could not write here.
            format!("APT::Sandbox::User={}", user()),
        ];
        let output = Command::new(program)
            .args(options.iter().flat_map(|option| ["-o", option]))
            .args(arguments)
            .current_dir(&self.place)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| Unavailable(format!("{shown}: {error}")))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr)
                .trim()
                .replace('\n', "; ");
            return Err(Unavailable(format!("{shown}: {said}")).into());
        }
        Ok(output)
    }
}

/// Unpacks the files of a package that match a pattern of tar's, without their first `strip` directories.
pub(crate) fn unpack(package: &Path, place: &Path, pattern: &str, strip: usize) -> Result<()> {
    let mut dpkg = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run dpkg-deb")?;
    let stream = dpkg.stdout.take().context("dpkg-deb has no output")?;
    let status = Command::new("tar")
        .args(["-x", "--wildcards", "-C"])
        .arg(place)
        .arg(format!("--strip-components={strip}"))
        .arg(pattern)
        .stdin(stream)
        .status()
        .context("cannot run tar")?;
    let unpacked = dpkg.wait().context("cannot wait for dpkg-deb")?;
    if !status.success() || !unpacked.success() {
        bail!(
            "unpacking {}: dpkg-deb {unpacked}, tar {status}",
            package.display()
        );
    }
    Ok(())
}

/// The address of Debian's archive in the machine's own package sources.
fn mirror() -> Option<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(directory) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(directory.filter_map(Result::ok).map(|entry| entry.path()));
    }
    files.sort();
    files
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .find_map(|text| {
            text.lines()
                .filter(|line| !line.trim_start().starts_with('#'))
                .flat_map(str::split_whitespace)
                .find(|word| {
                    word.contains("://") && word.trim_end_matches('/').ends_with("/debian")
                })
                .map(str::to_owned)
        })
}

/// Who runs this.
fn user() -> String {
    let output = Command::new("id").arg("-un").output();
    output.map_or_else(
        |_| "root".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}
