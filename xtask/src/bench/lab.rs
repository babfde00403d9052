//! What all starts share: the images behind a registry with a link of its own, and an engine.

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
    _registry: Distribution,
    stored: Stored,
    engine: Namespace,
    work: WorkDir,
}

impl Lab {
    pub(super) fn new(link: Link) -> Result<Self> {
        let environment = environment::prepare()?;
        let work = WorkDir::new(&cache::directory())?;
        let registry = Distribution::start(&work, "images", &environment.images, true)?;
        let proxy = Server::start_proxy(&registry.host())?;
        let lab = Self {
            link,
            proxy,
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

    /// Empties the machine's page cache, and fills it with what a registry elsewhere would have in its own: the blobs.
    pub(super) fn cold(&self, format: Format, image: &str) -> Result<()> {
        store::drop_caches()?;
        let platform = images::architecture();
        for layer in self.stored.image(format, image, platform)?.layers {
            let mut blob = std::fs::File::open(self.stored.blob(&layer.blob)?)?;
            std::io::copy(&mut blob, &mut std::io::sink())?;
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
        Store::new(&self.work, name, "[witness]\nquiet = 3\n")
    }
}
