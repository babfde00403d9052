//! Podman of either generation, each with a storage of its own for each test.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{
    namespace::Namespace,
    process::{self, Output},
};

/// Which protocol Podman speaks to an additional layer store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Generation {
    /// Podman 4.3.1 (Debian 12): paths by blob digest, every layer is asked for.
    ByBlob,
    /// Podman 5.4.2 (Debian 13): paths by TOC digest, only annotated layers are asked for.
    ByToc,
}

impl Generation {
    /// Both.
    pub const ALL: [Self; 2] = [Self::ByBlob, Self::ByToc];

    /// For names of tests and directories.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ByBlob => "podman4",
            Self::ByToc => "podman5",
        }
    }
}

/// Podman with one storage. Dropping it removes its containers, unmounts what is left and deletes the storage.
#[derive(Debug)]
pub struct Podman<'a> {
    namespace: &'a Namespace,
    generation: Generation,
    directory: PathBuf,
}

impl<'a> Podman<'a> {
    /// A new, empty storage at `directory` (which must not exist), with the layer store at `store` (the control mount's
    /// path) or none.
    ///
    /// # Errors
    /// When its files cannot be written.
    pub fn new(
        namespace: &'a Namespace,
        generation: Generation,
        directory: &Path,
        store: Option<&Path>,
    ) -> Result<Self> {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let podman = Self {
            namespace,
            generation,
            directory: directory.to_path_buf(),
        };
        let shown = directory.display();
        let stores = store.map_or_else(String::new, |path| format!("\"{}:ref\"", path.display()));
        fs::write(
            directory.join("storage.conf"),
            format!(
                "[storage]\ndriver = \"overlay\"\ngraphroot = \"{shown}/graph\"\nrunroot = \"{shown}/run\"\n\
                 [storage.options]\nadditionallayerstores = [{stores}]\n"
            ),
        )?;
        fs::write(
            directory.join("registries.conf"),
            "unqualified-search-registries = []\n[[registry]]\nlocation = \"127.0.0.1\"\ninsecure = true\n\
             [[registry]]\nprefix = \"*.invalid\"\nblocked = true\n",
        )?;
        fs::write(
            directory.join("containers.conf"),
            // No CAP_SYS_RESOURCE is needed with these limits; cgroups without systemd. The static directory must be
            // where Podman 4.3.1's own clean-up after a container looks for it, which is told nothing but `--root`:
            // else each `podman run` waits 20 s for a clean-up that finds no such container.
            format!(
                "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1000:1000\"]\npids_limit = 0\n\
                 netns = \"host\"\nlog_driver = \"k8s-file\"\nutsns = \"private\"\n\
                 [engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\n\
                 static_dir = \"{shown}/graph/libpod\"\ntmp_dir = \"{shown}/tmp\"\nvolume_path = \"{shown}/volumes\"\n"
            ),
        )?;
        Ok(podman)
    }

    /// Its generation.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The storage's directory; `graph` in it is the graph root.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The namespace it runs in.
    #[must_use]
    pub fn namespace(&self) -> &'a Namespace {
        self.namespace
    }

    /// A `podman` command with this storage.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.namespace.command("podman");
        command
            .args(arguments)
            .env(
                "CONTAINERS_STORAGE_CONF",
                self.directory.join("storage.conf"),
            )
            .env(
                "CONTAINERS_REGISTRIES_CONF",
                self.directory.join("registries.conf"),
            )
            .env("CONTAINERS_CONF", self.directory.join("containers.conf"))
            .env("HOME", "/root")
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    /// Runs it and returns what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        process::run(&mut self.command(arguments))
            .with_context(|| format!("{}: podman {}", self.generation.name(), arguments.join(" ")))
    }

    /// Runs it, also to a failure.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn output(&self, arguments: &[&str]) -> Result<Output> {
        process::output(&mut self.command(arguments))
    }

    /// Mounts an image, calls `use_it` with the mounted tree as this process can reach it, and unmounts.
    ///
    /// # Errors
    /// Podman's, or `use_it`'s.
    pub fn with_image<T>(&self, image: &str, use_it: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        let inside = self.run(&["image", "mount", image])?;
        let path = self.namespace.root().join(inside.trim_start_matches('/'));
        let result = use_it(&path);
        let unmounted = self.run(&["image", "unmount", image]);
        let result = result?;
        unmounted?;
        Ok(result)
    }

    /// Removes everything from the storage and deletes it.
    ///
    /// # Errors
    /// When something is left.
    pub fn wipe(&self) -> Result<()> {
        if self.directory.join("graph").exists() {
            // A storage that a failed test left broken must not keep the files from being deleted.
            let _ = self.output(&["rm", "--all", "--force", "--time", "0"]);
        }
        self.namespace.unmount_below(&self.directory)?;
        for name in ["graph", "run", "tmp", "volumes"] {
            let path = self.directory.join(name);
            if path.exists() {
                fs::remove_dir_all(&path)
                    .with_context(|| format!("cannot delete {}", path.display()))?;
            }
        }
        Ok(())
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.wipe() {
            eprintln!("{error:#}");
        }
    }
}
