//! The test images: real Debian trees, in every format by the tool that writes it. Built once, kept as a registry's
//! storage directory ([`Format::has`] says which image is there in which format).
//!
//! | repository | what |
//! |---|---|
//! | `<format>/base` | Debian, 1 layer |
//! | `<format>/python` | `base` and a layer with Python, NumPy and a program that uses much of both |
//! | `<format>/postgres` | `base` and a layer with PostgreSQL and a cluster |
//! | `<format>/multi` | an index: `python` for this machine, `base` for another |
//! | `<format>/hard` | `base`, a layer of everything that is difficult in a layer, and one that takes half of it away |

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

use super::{
    cache,
    containerd::Containerd,
    distribution::Distribution,
    namespace::Namespace,
    packages,
    podman::{Generation, Podman},
    process,
    work::WorkDir,
};

mod hard;

/// Changes whenever a recipe here does.
const VERSION: u32 = 2;
/// The release the images are made of.
const SUITE: &str = "bookworm";
/// The program of the Python image.
const WORKLOAD: &str = include_str!("images/workload.py");

/// How the layers of an image are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// Ordinary gzip layers, by Podman 4.3.1.
    Gzip,
    /// zstd:chunked with the old annotations, by Podman 4.3.1.
    Zstd4,
    /// zstd:chunked with today's annotations, by Podman 5.4.2.
    Zstd5,
    /// eStargz, by ctr-remote.
    Estargz,
}

impl Format {
    /// Those a layer store can serve.
    pub const LAZY: [Self; 3] = [Self::Zstd4, Self::Zstd5, Self::Estargz];

    /// First part of the repository.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd4 => "zstd4",
            Self::Zstd5 => "zstd5",
            Self::Estargz => "estargz",
        }
    }

    /// Whether the image is there in this format. The biggest is not written in the oldest: it would show nothing that
    /// the others do not, and takes a minute.
    #[must_use]
    pub fn has(self, image: &str) -> bool {
        match image {
            "postgres" => self != Self::Zstd4,
            "multi" => matches!(self, Self::Zstd5 | Self::Estargz),
            _ => IMAGES.contains(&image),
        }
    }
}

/// The names of the images.
pub const IMAGES: [&str; 4] = ["base", "python", "postgres", "hard"];

/// `HOST/FORMAT/IMAGE:1`.
#[must_use]
pub fn reference(host: &str, format: Format, image: &str) -> String {
    format!("{host}/{}/{image}:1", format.name())
}

/// This machine's architecture as manifests write it.
#[must_use]
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Makes the images unless the cache has them; returns the storage directory for a registry.
///
/// # Errors
/// When a tool fails.
pub fn storage(debian13: &Path) -> Result<std::path::PathBuf> {
    cache::once(&format!("images-{VERSION}"), |path| {
        let work = WorkDir::new(&cache::directory())?;
        build(&work, debian13, path)
    })
}

fn build(work: &WorkDir, debian13: &Path, storage: &Path) -> Result<()> {
    let registry = Distribution::start(work, "images", storage, false)?;
    let host = registry.host();
    let tree = packages::tree(&format!("debian-{SUITE}-1"), SUITE, &[])?;

    println!("making the images (some minutes)");
    let namespace4 = Namespace::new(work, "build4", None)?;
    let podman4 = Podman::new(
        &namespace4,
        Generation::ByBlob,
        &work.path().join("build4"),
        None,
    )?;
    let tar = work.path().join("base.tar");
    process::run(
        process::command("tar")
            .args(["--numeric-owner", "--xattrs", "--xattrs-include=*", "-C"])
            .arg(&tree)
            .arg("-cf")
            .arg(&tar)
            .arg("."),
    )?;
    let tar_name = tar.to_str().context("the cache's path is not UTF-8")?;
    podman4.run(&[
        "import",
        "--change",
        "CMD=[\"/bin/bash\"]",
        tar_name,
        "localhost/base:1",
    ])?;
    fs::remove_file(&tar)?;
    layer(
        &podman4,
        "base",
        "python",
        "CMD=[\"python3\",\"/usr/local/bin/workload.py\"]",
        |tree| {
            packages::install_into(
                work,
                &namespace4,
                tree,
                SUITE,
                &["python3", "python3-numpy", "python3-pil", "python3-yaml"],
            )?;
            let program = outside(&namespace4, tree).join("usr/local/bin/workload.py");
            fs::write(program, WORKLOAD)?;
            Ok(())
        },
    )?;
    layer(
        &podman4,
        "base",
        "postgres",
        "CMD=[\"/usr/local/bin/answer\"]",
        |tree| {
            packages::install_into(work, &namespace4, tree, SUITE, &["postgresql"])?;
            let program = outside(&namespace4, tree).join("usr/local/bin/answer");
            fs::write(&program, POSTGRES)?;
            fs::set_permissions(
                &program,
                std::os::unix::fs::PermissionsExt::from_mode(0o755),
            )?;
            Ok(())
        },
    )?;
    layer(
        &podman4,
        "base",
        "hard-below",
        "CMD=[\"/bin/bash\"]",
        |tree| hard::below(&outside(&namespace4, tree)),
    )?;
    layer(
        &podman4,
        "hard-below",
        "hard",
        "CMD=[\"/bin/bash\"]",
        |tree| hard::above(&outside(&namespace4, tree)),
    )?;

    for (format, options) in [
        (Format::Zstd4, &["--compression-format", "zstd:chunked"][..]),
        (Format::Gzip, &["--compression-format", "gzip"][..]),
    ] {
        for image in IMAGES {
            if !format.has(image) {
                continue;
            }
            println!("  {}/{image}", format.name());
            // Podman would reuse a blob that it remembers having pushed, in whatever format, and leave out the
            // annotations.
            forget_blobs(work, "build4")?;
            let from = format!("localhost/{image}:1");
            let to = format!("docker://{}", reference(&host, format, image));
            podman4.run(&[&["push", "--format", "oci"], options, &[&from, &to]].concat())?;
        }
    }
    podman4.wipe()?;

    let namespace5 = Namespace::new(work, "build5", Some(debian13))?;
    let podman5 = Podman::new(
        &namespace5,
        Generation::ByToc,
        &work.path().join("build5"),
        None,
    )?;
    for image in IMAGES {
        println!("  {}/{image}", Format::Zstd5.name());
        let from = reference(&host, Format::Gzip, image);
        let to = format!("docker://{}", reference(&host, Format::Zstd5, image));
        podman5.run(&["pull", &from])?;
        let push = [
            "push",
            "--compression-format",
            "zstd:chunked",
            "--force-compression",
        ];
        podman5.run(&[&push[..], &[&from, &to]].concat())?;
    }
    podman5.wipe()?;

    let containerd = Containerd::start(work)?;
    for image in IMAGES {
        println!("  {}/{image}", Format::Estargz.name());
        let from = reference(&host, Format::Gzip, image);
        let to = reference(&host, Format::Estargz, image);
        // The level says how long it takes, not what is written.
        containerd.convert(&from, &to, &["--estargz-compression-level", "3"])?;
    }
    for format in [Format::Zstd5, Format::Estargz] {
        many_platforms(&podman5, &host, format)?;
    }
    Ok(())
}

/// Makes `<format>/multi`: `python` for this machine's platform, `base` for another.
fn many_platforms(podman: &Podman<'_>, host: &str, format: Format) -> Result<()> {
    println!("  {}/multi", format.name());
    let here = podman.run(&["info", "--format", "{{.Host.Arch}}"])?;
    let list = "localhost/multi:1";
    podman.run(&["manifest", "create", list])?;
    for (architecture, image) in [(here.as_str(), "python"), ("s390x", "base")] {
        let from = format!("docker://{}", reference(host, format, image));
        podman.run(&[
            "manifest",
            "add",
            "--os",
            "linux",
            "--arch",
            architecture,
            list,
            &from,
        ])?;
    }
    let to = format!("docker://{}", reference(host, format, "multi"));
    podman.run(&["manifest", "push", "--all", list, &to])?;
    podman.run(&["manifest", "rm", list])?;
    Ok(())
}

/// Makes `localhost/NAME:1` from `localhost/BASE:1` and what `change` does to its tree (a path inside the namespace).
fn layer(
    podman: &Podman<'_>,
    base: &str,
    name: &str,
    change: &str,
    make: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    println!("  layer {name}");
    podman.run(&[
        "create",
        "--name",
        name,
        &format!("localhost/{base}:1"),
        "true",
    ])?;
    let tree = podman.run(&["mount", name])?;
    make(Path::new(&tree)).with_context(|| format!("cannot make the layer {name}"))?;
    podman.run(&["unmount", name])?;
    podman.run(&[
        "commit",
        "--quiet",
        "--change",
        change,
        name,
        &format!("localhost/{name}:1"),
    ])?;
    podman.run(&["rm", name])?;
    Ok(())
}

/// A path inside a namespace as seen from here.
fn outside(namespace: &Namespace, path: &Path) -> std::path::PathBuf {
    namespace
        .root()
        .join(path.strip_prefix("/").unwrap_or(path))
}

/// Deletes what an engine remembers of blobs in registries.
fn forget_blobs(work: &WorkDir, namespace: &str) -> Result<()> {
    let cache = work
        .path()
        .join(format!("private-{namespace}/containers/cache"));
    if cache.exists() {
        fs::remove_dir_all(&cache)?;
    }
    Ok(())
}

/// Starts the cluster, asks it something and stops it: the start of a real server.
const POSTGRES: &str = "#!/bin/sh
set -eu
pg_ctlcluster 15 main start
su postgres -c \"psql --tuples-only --no-align --command='select 6 * 7'\"
pg_ctlcluster --mode fast 15 main stop
";
