//! What all starts share: the images behind a registry with a link of its own, and an engine.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use anyhow::Result;
use forelayer_tests::{
    engine::{
        cache,
        distribution::Distribution,
        environment,
        images::{self, Format},
        namespace::Namespace,
        podman::{Generation, Podman},
        store::{self, Store},
        stored::Stored,
        work::WorkDir,
    },
    registry::Server,
};

use super::Link;

/// The fields are dropped in this order.
pub(super) struct Lab {
    pub(super) link: Link,
    /// In front of the registry; everybody asks here.
    pub(super) proxy: Server,
    program: PathBuf,
    /// What a node has in memory before any container starts.
    resident: Vec<PathBuf>,
    _registry: Distribution,
    stored: Stored,
    engine: Namespace,
    work: WorkDir,
}

impl Lab {
    pub(super) fn new(link: Link, program: PathBuf) -> Result<Self> {
        let environment = environment::prepare()?;
        let work = WorkDir::new(&cache::directory())?;
        let registry = Distribution::start(&work, "images", &environment.images, true)?;
        let proxy = Server::start_proxy(&registry.host())?;
        let mut resident = engine_files(&environment.debian13)?;
        resident.push(program.clone());
        let lab = Self {
            link,
            proxy,
            program,
            resident,
            _registry: registry,
            stored: Stored::new(&environment.images),
            engine: Namespace::new(&work, "podman5", Some(&environment.debian13))?,
            work,
        };
        lab.shape(true);
        Ok(lab)
    }

    /// Makes the link as slow as it is meant to be, or as fast as it goes.
    pub(super) fn shape(&self, on: bool) {
        let latency = if on {
            self.link.latency
        } else {
            std::time::Duration::ZERO
        };
        self.proxy.set_latency(latency);
        self.proxy.set_connection_latency(latency);
        self.proxy.set_bandwidth(self.link.bandwidth.filter(|_| on));
    }

    /// Empties the machine's page cache, and fills it with what is there before a start: on a registry elsewhere the
    /// blobs, on the node the engine and the store. Reading an engine from a disk is not what is measured, and the
    /// limit does not have it either.
    pub(super) fn cold(&self, format: Format, image: &str) -> Result<()> {
        store::drop_caches()?;
        for path in &self.resident {
            io::copy(&mut File::open(path)?, &mut io::sink())?;
        }
        let platform = images::architecture();
        for layer in self.stored.image(format, image, platform)?.layers {
            let path = self.stored.blob(&layer.blob)?;
            // Not through the registry's own program, whose work would be done by other machines.
            if !self.proxy.content().has_blob(&layer.blob) {
                self.proxy.content().add_blob_file(&path)?;
            }
            io::copy(&mut File::open(path)?, &mut io::sink())?;
        }
        Ok(())
    }

    /// Podman with an empty storage, with the store or without.
    pub(super) fn podman(&self, name: &str, store: Option<&Store<'_>>) -> Result<Podman<'_>> {
        let directory = self.work.path().join(name);
        let mount = store.map(Store::mount);
        Podman::new(
            &self.engine,
            Generation::ByToc,
            &directory,
            mount.as_deref(),
        )
    }

    /// A store that does not run yet.
    pub(super) fn store(&self, name: &str) -> Result<Store<'_>> {
        let mut store = Store::new(&self.work, name, "[witness]\nquiet = 3\n")?;
        store.set_program(&self.program);
        Ok(store)
    }
}

/// The engine's programs and everything they may load, below the root of its Debian.
fn engine_files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for program in ["bin/podman", "bin/conmon", "bin/crun", "sbin/runc"] {
        found.push(root.join("usr").join(program));
    }
    let libraries = root
        .join("usr/lib")
        .join(format!("{}-linux-gnu", std::env::consts::ARCH));
    let mut directories = vec![root.join("usr/libexec/podman"), libraries];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_file() {
                found.push(entry.path());
            } else if kind.is_dir() {
                directories.push(entry.path());
            }
        }
    }
    found.retain(|path| path.is_file());
    Ok(found)
}
