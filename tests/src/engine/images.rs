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

use anyhow::Result;

use self::make::Maker;
use super::{
    cache, containerd::Containerd, distribution::Distribution, namespace::Namespace,
    podman::Podman, work::WorkDir,
};

mod hard;
pub mod make;

/// Changes whenever a recipe here does.
const VERSION: u32 = 2;
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

    println!("making the images (some minutes)");
    let namespace4 = Namespace::new(work, "build4", None)?;
    let maker = Maker::new(work, &namespace4)?;
    maker.layer(
        "base",
        "python",
        "CMD=[\"python3\",\"/usr/local/bin/workload.py\"]",
        |tree| {
            tree.install(&["python3", "python3-numpy", "python3-pil", "python3-yaml"])?;
            fs::write(tree.outside().join("usr/local/bin/workload.py"), WORKLOAD)?;
            Ok(())
        },
    )?;
    maker.layer(
        "base",
        "postgres",
        "CMD=[\"/usr/local/bin/answer\"]",
        |tree| {
            tree.install(&["postgresql"])?;
            let program = tree.outside().join("usr/local/bin/answer");
            fs::write(&program, POSTGRES)?;
            fs::set_permissions(
                &program,
                std::os::unix::fs::PermissionsExt::from_mode(0o755),
            )?;
            Ok(())
        },
    )?;
    maker.layer("base", "hard-below", "CMD=[\"/bin/bash\"]", |tree| {
        hard::below(&tree.outside())
    })?;
    maker.layer("hard-below", "hard", "CMD=[\"/bin/bash\"]", |tree| {
        hard::above(&tree.outside())
    })?;
    for format in [Format::Zstd4, Format::Gzip] {
        for image in IMAGES.into_iter().filter(|image| format.has(image)) {
            maker.push(&host, format, image)?;
        }
    }
    drop(maker);

    let namespace5 = Namespace::new(work, "build5", Some(debian13))?;
    let podman5 = make::newer(work, &namespace5)?;
    for image in IMAGES {
        make::zstd5(&podman5, &host, image)?;
    }
    podman5.wipe()?;

    let containerd = Containerd::start(work)?;
    for image in IMAGES {
        make::estargz(&containerd, &host, image)?;
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

/// Starts the cluster, asks it something and stops it: the start of a real server.
const POSTGRES: &str = "#!/bin/sh
set -eu
pg_ctlcluster 15 main start
su postgres -c \"psql --tuples-only --no-align --command='select 6 * 7'\"
pg_ctlcluster --mode fast 15 main stop
";
