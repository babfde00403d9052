//! What all starts share: the images behind a registry with a link of its own, and an engine.

use std::{
    cell::Cell,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;
use forelayer_tests::{
    engine::{
        cache,
        distribution::Distribution,
        images::{self, Format},
        namespace::Namespace,
        podman::{Generation, Podman},
        store::{self, Store},
        stored::Stored,
        work::WorkDir,
    },
    registry::Server,
};

use super::{link::Link, peer::Peer};

/// The fields are dropped in this order.
pub(super) struct Lab {
    link: Cell<Option<Link>>,
    /// In front of the registry; everybody asks here.
    pub(super) proxy: Server,
    program: PathBuf,
    peer: Option<PathBuf>,
    /// What a node has in memory before any container starts.
    resident: Vec<PathBuf>,
    _registry: Distribution,
    stored: Stored,
    engine: Namespace,
    work: WorkDir,
}

impl Lab {
    /// With the images in a registry's storage directory. `peer`: the program stargz-store.
    pub(super) fn new(
        debian13: &Path,
        images: &Path,
        program: &Path,
        peer: Option<&Path>,
    ) -> Result<Self> {
        let work = WorkDir::new(&cache::directory())?;
        let registry = Distribution::start(&work, "images", images, true)?;
        let proxy = Server::start_proxy(&registry.host())?;
        let mut resident = engine_files(debian13)?;
        resident.push(program.to_path_buf());
        resident.extend(peer.map(Path::to_path_buf));
        Ok(Self {
            link: Cell::new(None),
            proxy,
            program: program.to_path_buf(),
            peer: peer.map(Path::to_path_buf),
            resident,
            _registry: registry,
            stored: Stored::new(images),
            engine: Namespace::new(&work, "podman5", Some(debian13))?,
            work,
        })
    }

    /// The link from now on.
    pub(super) fn set_link(&self, link: Link) {
        self.link.set(Some(link));
        self.shape(true);
    }

    /// Seconds that the link adds to a request.
    pub(super) fn latency(&self) -> f64 {
        self.link
            .get()
            .map_or(0.0, |link| link.latency().as_secs_f64())
    }

    /// Bytes a second of the link; `None`: as fast as it goes.
    pub(super) fn bandwidth(&self) -> Option<u64> {
        self.link.get().and_then(Link::bandwidth)
    }

    /// Makes the link as slow as it is meant to be, or as fast as it goes.
    pub(super) fn shape(&self, on: bool) {
        let link = self.link.get().filter(|_| on);
        let latency = link.map_or(Duration::ZERO, Link::latency);
        self.proxy.set_latency(latency);
        self.proxy.set_connection_latency(latency);
        self.proxy.set_bandwidth(link.and_then(Link::bandwidth));
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

    /// Podman with an empty storage, with the layer store mounted there or without.
    pub(super) fn podman(&self, name: &str, store: Option<&Path>) -> Result<Podman<'_>> {
        let directory = self.work.path().join(name);
        Podman::new(&self.engine, Generation::ByToc, &directory, store)
    }

    /// stargz-store, running, with nothing cached; `None` where there is none.
    pub(super) fn peer(&self, name: &str) -> Result<Option<Peer>> {
        let program = self.peer.as_deref();
        program
            .map(|program| Peer::start(&self.work, program, name))
            .transpose()
    }

    /// Whether there is a stargz-store.
    pub(super) fn has_peer(&self) -> bool {
        self.peer.is_some()
    }

    /// A store that does not run yet.
    pub(super) fn store(&self, name: &str) -> Result<Store<'_>> {
        // Not the one beside this program, which need not be built.
        Store::with_program(&self.work, name, "[witness]\nquiet = 3\n", &self.program)
    }
}

/// The engine's programs and everything they may load, below the root of its Debian.
pub(super) fn engine_files(root: &Path) -> Result<Vec<PathBuf>> {
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
