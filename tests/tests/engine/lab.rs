//! What all tests share: the engines' namespaces, the registry with the images, and one to push to.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Result, ensure};
use forelayer_tests::engine::{
    cache,
    distribution::Distribution,
    environment,
    images::{self, Format},
    namespace::Namespace,
    podman::{Generation, Podman},
    store::Store,
    stored::{Stored, StoredImage},
    tree::{self, Tree},
    work::WorkDir,
};

/// Options of a store that fetches what is asked for and nothing else.
pub(crate) const DEMAND_ONLY: &str = "[fetch]\nbackground = false\n[prefetch]\nenabled = false\n";

/// Shared by all tests of a run. The fields are dropped in this order.
pub(crate) struct Lab {
    /// Holds the images; read-only.
    pub(crate) images: Distribution,
    /// Takes pushes; empty at first.
    pub(crate) pushes: Distribution,
    by_blob: Namespace,
    by_toc: Namespace,
    /// The images' files.
    pub(crate) stored: Stored,
    /// What was pushed.
    pub(crate) pushed: Stored,
    number: AtomicU32,
    /// What normal pulls gave, so that each image is pulled normally once.
    trees: Mutex<BTreeMap<String, Arc<Tree>>>,
    /// The run's directory.
    pub(crate) work: WorkDir,
}

impl Lab {
    pub(crate) fn new() -> Result<Self> {
        let environment = environment::prepare()?;
        let work = WorkDir::new(&cache::directory())?;
        let pushed = work.directory("pushed")?;
        Ok(Self {
            images: Distribution::start(&work, "images", &environment.images, true)?,
            pushes: Distribution::start(&work, "pushes", &pushed, false)?,
            by_blob: Namespace::new(&work, "podman4", None)?,
            by_toc: Namespace::new(&work, "podman5", Some(&environment.debian13))?,
            stored: Stored::new(&environment.images),
            pushed: Stored::new(&pushed),
            number: AtomicU32::new(0),
            trees: Mutex::default(),
            work,
        })
    }

    /// A name that no other part of this run has.
    fn name(&self, what: &str) -> String {
        format!("{what}{}", self.number.fetch_add(1, Ordering::Relaxed))
    }

    /// Podman with an empty storage.
    pub(crate) fn podman(
        &self,
        generation: Generation,
        store: Option<&Path>,
    ) -> Result<Podman<'_>> {
        let namespace = match generation {
            Generation::ByBlob => &self.by_blob,
            Generation::ByToc => &self.by_toc,
        };
        let directory = self.work.path().join(self.name("p"));
        Podman::new(namespace, generation, &directory, store)
    }

    /// A stopped store.
    pub(crate) fn store(&self, options: &str) -> Result<Store<'_>> {
        Store::new(&self.work, &self.name("s"), options)
    }

    /// A running store.
    pub(crate) fn running(&self, options: &str) -> Result<Store<'_>> {
        let mut store = self.store(options)?;
        store.start()?;
        Ok(store)
    }

    /// An image's reference at the registry.
    pub(crate) fn reference(&self, format: Format, image: &str) -> String {
        images::reference(&self.images.host(), format, image)
    }

    /// The tree of an image after a normal pull. All formats hold the same files (and say so in images.rs), so the
    /// ordinary one stands for all.
    pub(crate) fn tree(&self, image: &str) -> Result<Arc<Tree>> {
        let mut trees = self.trees.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tree) = trees.get(image) {
            return Ok(Arc::clone(tree));
        }
        let reference = self.reference(Format::Gzip, image);
        let podman = self.podman(Generation::ByToc, None)?;
        podman.run(&["pull", &reference])?;
        let tree = Arc::new(podman.with_image(&reference, tree::read)?);
        trees.insert(image.to_owned(), Arc::clone(&tree));
        Ok(tree)
    }

    /// An image as the registry has it.
    pub(crate) fn image(&self, format: Format, image: &str) -> Result<StoredImage> {
        self.stored.image(format, image, images::architecture())
    }

    /// Fails if any of these layers came whole, or more of them than their TOCs and the ends of the blobs.
    pub(crate) fn check_only_metadata(
        &self,
        mark: u64,
        image: &StoredImage,
        tail: u64,
    ) -> Result<()> {
        let requests = self.images.requests_since(mark)?;
        for layer in &image.layers {
            let hex = layer.blob.trim_start_matches("sha256:");
            let toc = toc_bytes(layer);
            let came: u64 = requests
                .iter()
                .filter(|request| request.blob() == Some(hex))
                .map(|request| request.bytes)
                .sum();
            // The footer may be asked for beside the TOC; a TOC that is larger than the guess needs its rest.
            let allowed = (toc + tail).min(layer.size);
            ensure!(
                came <= allowed,
                "{came} bytes of the layer {} came, its TOC has {toc}: {requests:#?}",
                layer.blob
            );
            ensure!(
                layer.size <= tail || came < layer.size / 4,
                "{came} of {} bytes of the layer {} came",
                layer.size,
                layer.blob
            );
        }
        Ok(())
    }
}

/// Compressed bytes of a TOC, where the annotations tell.
fn toc_bytes(layer: &forelayer_tests::engine::stored::StoredLayer) -> u64 {
    [
        "io.github.containers.zstd-chunked.manifest-position",
        "io.containers.zstd-chunked.manifest-position",
    ]
    .iter()
    .find_map(|name| {
        layer
            .annotations
            .get(*name)?
            .as_str()?
            .split(':')
            .nth(1)?
            .parse()
            .ok()
    })
    .unwrap_or(0)
}

/// The last line of a program's output: the Python image's program imports modules that print a line of their own.
pub(crate) fn last_line(output: &str) -> &str {
    output.lines().last().unwrap_or_default()
}
