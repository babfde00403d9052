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
    /// vllm 0.11.0 from its Python package, about 10 GB, as eStargz only: imports its API server
    Vllm,
}

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

    /// Whether it is there in this format. Of the biggest there is one for all: the peer reads
    /// only this one, and it needs 40 GB of disk while it is made.
    pub(super) fn has(self, format: Format) -> bool {
        self != Self::Vllm || format != Format::Zstd5
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
        cache::once(&name, |path| {
            let work = WorkDir::new(&cache::directory())?;
            self.build(&recipe, &work, &environment.debian13, path)
        })
    }

    /// Makes it in all formats that it has.
    fn build(self, recipe: &Recipe, work: &WorkDir, debian13: &Path, storage: &Path) -> Result<()> {
        let image = self.name();
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

        if self.has(Format::Zstd5) {
            let namespace = Namespace::new(work, "build5", Some(debian13))?;
            make::zstd5(&make::newer(work, &namespace)?, &host, image)?;
        }
        make::estargz(&Containerd::start(work)?, &host, image)
    }
}
