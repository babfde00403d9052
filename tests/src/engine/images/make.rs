//! The steps by which images are made: a Debian, layers upon it, each format by the tool that writes it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{
    super::{
        containerd::Containerd,
        namespace::Namespace,
        packages,
        podman::{Generation, Podman},
        process,
        work::WorkDir,
    },
    Format, reference,
};

/// The release the images are made of.
const SUITE: &str = "bookworm";

/// Podman 4.3.1 with `localhost/base:1`, on which layers are made. Dropping it deletes them.
#[derive(Debug)]
pub struct Maker<'a> {
    work: &'a WorkDir,
    namespace: &'a Namespace,
    podman: Podman<'a>,
}

/// The tree that a layer is made of, with what lies below it.
#[derive(Debug)]
pub struct Tree<'a> {
    maker: &'a Maker<'a>,
    inside: PathBuf,
}

impl Tree<'_> {
    /// Its path in this process's namespace.
    #[must_use]
    pub fn outside(&self) -> PathBuf {
        let inside = self.inside.strip_prefix("/").unwrap_or(&self.inside);
        self.maker.namespace.root().join(inside)
    }

    /// Its path for a [`Tree::command`].
    #[must_use]
    pub fn inside(&self) -> &Path {
        &self.inside
    }

    /// A program of this machine that sees the tree at [`Tree::inside`]. What asks for the real path of something
    /// [`Tree::outside`] is led astray.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        self.maker.namespace.command(program)
    }

    /// Installs Debian packages.
    ///
    /// # Errors
    /// When apt fails.
    pub fn install(&self, packages: &[&str]) -> Result<()> {
        let Maker {
            work, namespace, ..
        } = self.maker;
        packages::install_into(work, namespace, &self.inside, SUITE, packages)
    }

    /// An empty directory for what is needed to make the layer and is no part of it.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn scratch(&self, name: &str) -> Result<PathBuf> {
        self.maker.work.directory(format!("scratch-{name}"))
    }
}

impl<'a> Maker<'a> {
    /// Imports the base. `namespace` has the machine's own tree.
    ///
    /// # Errors
    /// When a tool fails.
    pub fn new(work: &'a WorkDir, namespace: &'a Namespace) -> Result<Self> {
        let tree = packages::tree(&format!("debian-{SUITE}-1"), SUITE, &[])?;
        let directory = work.path().join("build4");
        let podman = Podman::new(namespace, Generation::ByBlob, &directory, None)?;
        let tar = work.path().join("base.tar");
        process::run(
            process::command("tar")
                .args(["--numeric-owner", "--xattrs", "--xattrs-include=*", "-C"])
                .arg(&tree)
                .arg("-cf")
                .arg(&tar)
                .arg("."),
        )?;
        podman.run(&[
            "import",
            "--change",
            "CMD=[\"/bin/bash\"]",
            tar.to_str().context("the cache's path is not UTF-8")?,
            "localhost/base:1",
        ])?;
        fs::remove_file(&tar)?;
        Ok(Self {
            work,
            namespace,
            podman,
        })
    }

    /// Makes `localhost/NAME:1` from `localhost/BASE:1` and what `make` does to its tree. `change`: an instruction of a
    /// Containerfile.
    ///
    /// # Errors
    /// `make`'s and Podman's.
    pub fn layer(
        &self,
        base: &str,
        name: &str,
        change: &str,
        make: impl FnOnce(&Tree<'_>) -> Result<()>,
    ) -> Result<()> {
        println!("  layer {name}");
        let from = format!("localhost/{base}:1");
        self.podman
            .run(&["create", "--name", name, &from, "true"])?;
        let tree = Tree {
            maker: self,
            inside: self.podman.run(&["mount", name])?.into(),
        };
        make(&tree).with_context(|| format!("cannot make the layer {name}"))?;
        self.podman.run(&["unmount", name])?;
        let to = format!("localhost/{name}:1");
        self.podman
            .run(&["commit", "--quiet", "--change", change, name, &to])?;
        self.podman.run(&["rm", name])?;
        Ok(())
    }

    /// Pushes `localhost/IMAGE:1` in one of the formats that this Podman writes.
    ///
    /// # Errors
    /// Podman's.
    pub fn push(&self, host: &str, format: Format, image: &str) -> Result<()> {
        println!("  {}/{image}", format.name());
        let compression = match format {
            Format::Gzip => "gzip",
            _ => "zstd:chunked",
        };
        // Podman would reuse a blob that it remembers having pushed, in whatever format, and leave out the
        // annotations.
        let cache = self.work.path().join("private-build4/containers/cache");
        if cache.exists() {
            fs::remove_dir_all(&cache)?;
        }
        let from = format!("localhost/{image}:1");
        let to = format!("docker://{}", reference(host, format, image));
        let push = [
            "push",
            "--format",
            "oci",
            "--compression-format",
            compression,
        ];
        self.podman.run(&[&push[..], &[&from, &to]].concat())?;
        Ok(())
    }
}

/// Podman 5.4.2 with an empty storage, for [`zstd5`].
///
/// # Errors
/// When its files cannot be written.
pub fn newer<'a>(work: &WorkDir, namespace: &'a Namespace) -> Result<Podman<'a>> {
    let directory = work.path().join("build5");
    Podman::new(namespace, Generation::ByToc, &directory, None)
}

/// Makes `zstd5/IMAGE` of `gzip/IMAGE`.
///
/// # Errors
/// Podman's.
pub fn zstd5(podman: &Podman<'_>, host: &str, image: &str) -> Result<()> {
    println!("  {}/{image}", Format::Zstd5.name());
    let from = reference(host, Format::Gzip, image);
    let to = format!("docker://{}", reference(host, Format::Zstd5, image));
    podman.run(&["pull", &from])?;
    podman.run(&[
        "push",
        "--compression-format",
        "zstd:chunked",
        "--force-compression",
        &from,
        &to,
    ])?;
    Ok(())
}

/// Makes `estargz/IMAGE` of `gzip/IMAGE`.
///
/// # Errors
/// ctr-remote's.
pub fn estargz(containerd: &Containerd, host: &str, image: &str) -> Result<()> {
    println!("  {}/{image}", Format::Estargz.name());
    let from = reference(host, Format::Gzip, image);
    let to = reference(host, Format::Estargz, image);
    // The level says how long it takes, not what is written.
    containerd.convert(&from, &to, &["--estargz-compression-level", "3"])
}
