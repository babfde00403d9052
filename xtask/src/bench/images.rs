//! What is started: two of the tests' images and some that only the bench has. Each of those is a registry's storage
//! directory of its own in the cache, made when it is first asked for, so that the tests need not wait for them.

mod jvm;
mod node;
mod science;
mod vllm;

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::ValueEnum;
use forelayer_tests::engine::{
    cache,
    containerd::Containerd,
    distribution::Distribution,
    environment::Environment,
    images::{
        Format,
        make::{self, Maker, Tree},
    },
    namespace::Namespace,
    process,
    work::WorkDir,
};

/// Changes whenever a recipe here does.
const VERSION: u32 = 1;

/// What is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Image {
    /// Debian with Python: imports the standard library, NumPy and more
    Python,
    /// Debian with PostgreSQL: to its first answered query
    Postgres,
    /// Debian with Node and a tree of 25,000 files: compiles a page and answers its first request
    Node,
    /// Debian with a JVM and Spring Boot: to its first answered request
    Jvm,
    /// Debian with NumPy, SciPy, pandas, Matplotlib, scikit-learn and more: fits and draws something
    Science,
    /// vllm 0.11.0 from its Python package, about 10 GB: imports its API server
    Vllm,
}

/// What a single step of making one may take: the biggest needs an hour on a slow machine.
const LIMIT_SECONDS: u64 = 2 * 3600;

/// How an image is made that only the bench has.
struct Recipe {
    /// The command, as a list in JSON.
    command: &'static str,
    /// Makes its only layer upon the base.
    layer: fn(&Tree<'_>) -> Result<()>,
}

impl Image {
    /// What is started unless something is asked for.
    pub(super) const DEFAULT: [Self; 5] = [
        Self::Python,
        Self::Postgres,
        Self::Node,
        Self::Jvm,
        Self::Science,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::Postgres => "postgres",
            Self::Node => "node",
            Self::Jvm => "jvm",
            Self::Science => "science",
            Self::Vllm => "vllm",
        }
    }

    /// How the line begins that says that the program is ready.
    pub(super) fn ready(self) -> &'static str {
        match self {
            Self::Postgres => "42",
            _ => "ready ",
        }
    }

    /// `None` for an image of the tests.
    fn recipe(self) -> Option<Recipe> {
        match self {
            Self::Python | Self::Postgres => None,
            Self::Node => Some(node::RECIPE),
            Self::Jvm => Some(jvm::RECIPE),
            Self::Science => Some(science::RECIPE),
            Self::Vllm => Some(vllm::RECIPE),
        }
    }

    /// The storage directory of a registry that has it.
    pub(super) fn storage(self, environment: &Environment) -> Result<PathBuf> {
        let Some(recipe) = self.recipe() else {
            return Ok(environment.images.clone());
        };
        let name = format!("bench-images-{VERSION}-{}", self.name());
        let storage = cache::once(&name, |path| {
            self.build(&recipe, &WorkDir::new(&cache::directory())?, path)
        })?;
        // By itself: what the biggest image needs of the disk meanwhile is gone by then.
        cache::once(&format!("{name}-zstd"), |_| {
            let work = WorkDir::new(&cache::directory())?;
            self.build_zstd(&work, &environment.debian13, &storage)
        })?;
        Ok(storage)
    }

    /// Makes it as zstd:chunked of the ordinary one, unless it is there.
    fn build_zstd(self, work: &WorkDir, debian13: &Path, storage: &Path) -> Result<()> {
        let image = self.name();
        let tag = format!(
            "repositories/{}/{image}/_manifests/tags/1",
            Format::Zstd5.name()
        );
        if storage.join("docker/registry/v2").join(tag).exists() {
            return Ok(());
        }
        process::allow(LIMIT_SECONDS);
        let registry = Distribution::start(work, image, storage, false)?;
        let namespace = Namespace::new(work, "build5", Some(debian13))?;
        make::zstd5(&make::newer(work, &namespace)?, &registry.host(), image)
    }

    /// Makes it in the other formats.
    fn build(self, recipe: &Recipe, work: &WorkDir, storage: &Path) -> Result<()> {
        let image = self.name();
        process::allow(LIMIT_SECONDS);
        println!("making the image {image} (some minutes)");
        let registry = Distribution::start(work, image, storage, false)?;
        let host = registry.host();
        let namespace = Namespace::new(work, "build4", None)?;
        let maker = Maker::new(work, &namespace)?;
        let command = format!("CMD={}", recipe.command);
        maker.layer("base", image, &command, recipe.layer)?;
        maker.push(&host, Format::Gzip, image)?;
        // Before the next storage grows.
        drop(maker);

        make::estargz(&Containerd::start(work)?, &host, image)
    }
}
