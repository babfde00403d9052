//! Debian packages and Debian trees, from the archive the machine itself uses.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::{cache, namespace::Namespace, process, work::WorkDir};

/// What the engine tests call, by package.
pub const NEEDED: &[&str] = &[
    "attr",
    "ca-certificates",
    "conmon",
    "containerd",
    "debootstrap",
    "debian-archive-keyring",
    "docker-registry",
    "fuse3",
    "libcap2-bin",
    "podman",
    "runc",
    "stargz-snapshotter",
    "util-linux",
];

/// Installs those of the packages that are missing.
///
/// # Errors
/// When apt cannot install one.
pub fn install(packages: &[&str]) -> Result<()> {
    let missing: Vec<&str> = packages
        .iter()
        .filter(|package| !is_installed(package))
        .copied()
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("installing {}", missing.join(" "));
    process::run(apt().arg("update"))?;
    process::run(
        apt()
            .args(["install", "--yes", "--no-install-recommends"])
            .args(&missing),
    )
    .with_context(|| format!("cannot install {}", missing.join(" ")))?;
    Ok(())
}

fn apt() -> Command {
    let mut command = process::command("apt-get");
    command
        .arg("-qq")
        .env("DEBIAN_FRONTEND", "noninteractive")
        // A fresh machine's own updater may hold the lock for a while.
        .args(["-o", "DPkg::Lock::Timeout=300"]);
    command
}

fn is_installed(package: &str) -> bool {
    process::output(process::command("dpkg-query").args([
        "--show",
        "--showformat=${db:Status-Status}",
        package,
    ]))
    .is_ok_and(|output| output.success && output.stdout == "installed")
}

/// The address of the Debian archive that this machine's apt uses for its own release.
///
/// # Errors
/// When its configuration names none.
pub fn mirror() -> Result<String> {
    let release = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let suite = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .context("/etc/os-release names no release")?
        .trim_matches('"');
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
    }
    for file in files {
        let text = fs::read_to_string(&file).unwrap_or_default();
        let found = match file.extension().and_then(|extension| extension.to_str()) {
            Some("sources") => in_stanzas(&text, suite),
            Some("list") => in_lines(&text, suite),
            _ => None,
        };
        if let Some(address) = found {
            return Ok(address);
        }
    }
    bail!("no source in /etc/apt/sources.list or /etc/apt/sources.list.d offers `{suite} main`")
}

/// `URIs:`, `Suites:` and `Components:` of deb822 files.
fn in_stanzas(text: &str, suite: &str) -> Option<String> {
    text.split("\n\n").find_map(|stanza| {
        let field = |name: &str| {
            stanza
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .map(str::split_whitespace)
        };
        let fits = field("Suites:")?.any(|word| word == suite)
            && field("Components:")?.any(|word| word == "main");
        fits.then(|| field("URIs:")?.next().map(str::to_owned))?
    })
}

/// `deb [options] address suite components` of old files.
fn in_lines(text: &str, suite: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let rest = line.trim().strip_prefix("deb ")?;
        let rest = match rest.trim_start().strip_prefix('[') {
            Some(options) => options.split_once(']')?.1,
            None => rest,
        };
        let mut words = rest.split_whitespace();
        let address = words.next()?;
        (words.next()? == suite && words.any(|word| word == "main")).then(|| address.to_owned())
    })
}

/// A Debian tree of `suite` with `packages`, made once under `name` in the cache.
///
/// # Errors
/// When debootstrap fails; the tree is then not kept.
pub fn tree(name: &str, suite: &str, packages: &[&str]) -> Result<PathBuf> {
    cache::once(name, |path| {
        println!("making a Debian {suite} tree (about a minute)");
        let mut command = process::command("debootstrap");
        command.arg("--variant=minbase");
        if !packages.is_empty() {
            command.arg(format!("--include={}", packages.join(",")));
        }
        command.arg(suite).arg(path).arg(mirror()?);
        if let Some(proxy) = proxy()? {
            command.env("http_proxy", &proxy).env("https_proxy", proxy);
        }
        process::run(&mut command)?;
        // What was downloaded is installed; the archive's address is this machine's own affair.
        fs::remove_dir_all(path.join("var/cache/apt"))?;
        fs::create_dir_all(path.join("var/cache/apt/archives/partial"))?;
        for list in fs::read_dir(path.join("var/lib/apt/lists"))? {
            let list = list?;
            if list.file_type()?.is_file() {
                fs::remove_file(list.path())?;
            }
        }
        fs::write(path.join("etc/apt/sources.list"), "")?;
        Ok(())
    })
}

/// The proxy that apt is told to use; debootstrap does not ask apt.
fn proxy() -> Result<Option<String>> {
    let text = process::run(process::command("apt-config").args([
        "shell",
        "PROXY",
        "Acquire::http::Proxy",
    ]))?;
    Ok(text
        .trim()
        .strip_prefix("PROXY='")
        .and_then(|rest| rest.strip_suffix('\''))
        .filter(|proxy| !proxy.is_empty() && *proxy != "DIRECT")
        .map(str::to_owned))
}

/// Installs packages into a tree of `suite` that lies in an engine's namespace, leaving nothing there but what they
/// bring.
///
/// # Errors
/// When apt in the tree fails.
pub fn install_into(
    work: &WorkDir,
    namespace: &Namespace,
    tree: &Path,
    suite: &str,
    packages: &[&str],
) -> Result<()> {
    // Everything that apt itself writes goes to the lent directory; the mounts go away with the inner namespace.
    const SCRIPT: &str = r#"set -eu
tree=$1 lent=$2
shift 2
mount --bind "$lent" "$tree/mnt"
mount --bind /etc/ssl/certs "$tree/mnt/certs"
mount -t proc proc "$tree/proc"
mount -t tmpfs tmpfs "$tree/tmp"
mount --rbind /dev "$tree/dev"
apt() {
    chroot "$tree" apt-get -qq \
        -o Dir::Etc::sourcelist=/mnt/sources.list -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::State::lists=/mnt/lists -o Dir::Cache=/mnt/cache -o Dir::Log=/mnt/log \
        -o Acquire::https::CaPath=/mnt/certs -o Acquire::Check-Valid-Until=false -o Acquire::Check-Date=false \
        -o APT::Sandbox::User=root -o DPkg::Use-Pty=0 "$@"
}
apt update
apt install --yes --no-install-recommends "$@"
"#;
    let lent = work.directory("lent")?;
    for name in ["lists/partial", "cache/archives/partial", "log", "certs"] {
        fs::create_dir_all(lent.join(name))?;
    }
    fs::write(
        lent.join("sources.list"),
        format!("deb {} {suite} main\n", mirror()?),
    )?;
    let mut command = namespace.command("unshare");
    command
        .args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            SCRIPT,
            "sh",
        ])
        .arg(tree)
        .arg(&lent)
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C");
    if let Some(proxy) = proxy()? {
        command.env("http_proxy", &proxy).env("https_proxy", proxy);
    }
    process::run(&mut command)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_source_files_are_read() {
        let lines = "# deb http://no.invalid/debian bookworm main\n\
            deb http://other.invalid/debian trixie main\n\
            deb [signed-by=/k] http://archive.invalid/debian bookworm main contrib\n";
        assert_eq!(
            in_lines(lines, "bookworm").as_deref(),
            Some("http://archive.invalid/debian")
        );
        let stanzas = "Types: deb\nURIs: http://security.invalid\nSuites: bookworm-security\nComponents: main\n\n\
            Types: deb\nURIs: http://archive.invalid/debian\nSuites: bookworm bookworm-updates\nComponents: main\n";
        assert_eq!(
            in_stanzas(stanzas, "bookworm").as_deref(),
            Some("http://archive.invalid/debian")
        );
        assert_eq!(in_stanzas(stanzas, "trixie"), None);
    }
}
