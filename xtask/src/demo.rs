//! `cargo xtask demo`: what the layer store is good for, on this machine, in a minute.
//!
//! One image built from this machine's programs is started cold in three ways from one slow registry: downloaded whole,
//! through the store for the first time, and through the store after it has seen one start. Everything it makes lies in
//! one directory and is gone at its end, also after a failure or Ctrl-C.

mod app;
mod container;
mod full;
mod image;
mod lazy;
mod machine;
mod podman;
mod service;
mod store;
mod table;

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use forelayer_tests::{
    fixtures::Lazy,
    registry::{Content, Server},
};

use self::{
    container::{Starter, Storage},
    image::Built,
    machine::{Running, WorkDir},
    podman::Podman,
    store::{Counts, Setup, Store},
    table::Row,
};

/// Repository and tag of the image.
const NAME: &str = "demo/app";
const TAG: &str = "1";
/// Exit code where the machine cannot run the demo (EX_UNAVAILABLE of sysexits.h).
const UNAVAILABLE: u8 = 69;

/// Arguments of `cargo xtask demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Milliseconds that the registry adds to each request
    #[arg(long, default_value_t = 50, value_name = "MS")]
    latency: u64,
    /// Megabits a second of the registry, over all connections; 0: as fast as it goes
    #[arg(long, default_value_t = 1000, value_name = "MBIT")]
    bandwidth: u64,
    /// Format of the image's layers
    #[arg(long, value_enum, default_value_t = Format::ZstdChunked)]
    format: Format,
    /// What starts the containers
    #[arg(long, value_enum, default_value_t = Engine::None)]
    engine: Engine,
    /// Let the rest of the image follow in the background, as the store does by default
    #[arg(long)]
    background: bool,
    /// Build the store with optimisation (takes minutes the first time)
    #[arg(long)]
    release: bool,
    /// Where to work: 1 GB on a disk, not in memory
    #[arg(long, default_value = "/var/tmp", value_name = "DIR")]
    dir: PathBuf,
    /// Leave logs and state in the directory for a look
    #[arg(long)]
    keep: bool,
    /// The inner half of a container (the demo starts itself with this)
    #[arg(long, hide = true, value_name = "SPEC")]
    enter: Option<PathBuf>,
}

/// In which format the layers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// As Podman writes it
    ZstdChunked,
    /// As stargz-snapshotter writes it
    Estargz,
}

/// Who mounts and starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Engine {
    /// The demo itself: namespaces and an overlay, no engine needed
    None,
    /// Podman
    Podman,
}

/// Runs the demo.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if let Some(spec) = &args.enter {
        return container::enter(spec).map(|()| ExitCode::SUCCESS);
    }
    let missing = machine::missing().or_else(|| match args.engine {
        Engine::Podman => Podman::missing(),
        Engine::None => None,
    });
    if let Some(reason) = missing {
        eprintln!("the demo cannot run here: {reason}");
        return Ok(ExitCode::from(UNAVAILABLE));
    }
    // Lives as long as the process; the signal thread refers to it.
    let running: &'static Running = Box::leak(Box::default());
    running.watch_signals()?;
    let program = binary(args.release)?;
    running.check()?;
    let work = WorkDir::make(&args.dir, args.keep)?;
    let demo = Demo::prepare(args, running, &work, program)?;
    demo.starts()
}

/// Everything that the starts share.
struct Demo<'a> {
    setup: Setup<'a>,
    built: Built,
    server: Server,
    cgroups: Option<PathBuf>,
    engine: Engine,
}

impl<'a> Demo<'a> {
    fn prepare(
        args: &Args,
        running: &'static Running,
        work: &'a WorkDir,
        program: PathBuf,
    ) -> Result<Self> {
        println!("building an image from this machine's programs ...");
        let lazy = match args.format {
            Format::ZstdChunked => Lazy::zstd_chunked(),
            Format::Estargz => Lazy::estargz(),
        };
        let built = image::build(&lazy)?;
        running.check()?;
        let content = Content::default();
        content.add_image(NAME, TAG, &built.image);
        let server = Server::start(content).context("cannot start the registry")?;
        server.set_latency(Duration::from_millis(args.latency));
        server.set_bandwidth((args.bandwidth > 0).then_some(args.bandwidth * 1_000_000 / 8));
        let compressed: usize = built.layers.iter().map(|layer| layer.blob.len()).sum();
        println!(
            "image: {} in {} files, {} layers, {} as {}; it starts {} with files of both",
            table::bytes(built.bytes),
            built.files,
            built.layers.len(),
            table::bytes(compressed as u64),
            args.format
                .to_possible_value()
                .map_or_else(String::new, |value| value.get_name().to_owned()),
            built.app.name(),
        );
        println!(
            "registry: {} ms a request, {}",
            args.latency,
            match args.bandwidth {
                0 => "as fast as it goes".to_owned(),
                rate => format!("{rate} Mbit/s"),
            }
        );
        Ok(Self {
            setup: Setup {
                running,
                work,
                program,
                background: args.background,
            },
            built,
            server,
            cgroups: machine::mount_cgroups(&work.path().join("cgroup")),
            engine: args.engine,
        })
    }

    fn reference(&self) -> String {
        format!("{}/{NAME}:{TAG}", self.server.host())
    }

    fn starts(&self) -> Result<ExitCode> {
        let mut rows = vec![self.full_download()?];
        self.setup.wipe(false)?;
        let (unlearned, refused) = self.through_the_store("unlearned", false)?;
        rows.push(unlearned);
        if refused.is_none() {
            self.setup.wipe(true)?;
            rows.push(self.through_the_store("learned", true)?.0);
        }
        println!("\n{}", table::text(&rows));
        println!(
            "ready: from the beginning of the pull to the program's ready line, everything cold."
        );
        if let Some(reason) = refused {
            eprintln!(
                "\nno learned start: the kernel does not let the witness see, so nothing was learned. It said:\n{reason}"
            );
            return Ok(ExitCode::FAILURE);
        }
        Ok(ExitCode::SUCCESS)
    }

    fn full_download(&self) -> Result<Row> {
        println!("starting it: downloaded whole ...");
        let name = "full download";
        let row = match self.engine {
            Engine::Podman => self.start_podman(name, None, || Ok(()))?,
            Engine::None => {
                let into = self.setup.work.fresh("full")?;
                let since = self.cold()?;
                let layers = &self.built.layers;
                let trees = full::pull(&self.server.host(), NAME, TAG, layers, &into)?;
                self.start(name, &trees, since, || Ok(()))?
            }
        };
        self.setup.work.wipe("full")?;
        Ok(row)
    }

    /// One cold start through the store, and why nothing is learned from it, if nothing is.
    fn through_the_store(
        &self,
        name: &'static str,
        learned: bool,
    ) -> Result<(Row, Option<String>)> {
        println!("starting it: through the store, {name} ...");
        let (store, refused) = self.setup.start()?;
        if learned && let Some(reason) = refused {
            bail!("the witness could see the first start but not the second: {reason}");
        }
        let row = self
            .lazy_start(name, &store, refused.is_none())
            .with_context(|| format!("the store said last:\n{}", store.last_words()));
        let stopped = store.stop();
        let row = row?;
        stopped?;
        Ok((row, refused))
    }

    fn lazy_start(&self, name: &'static str, store: &Store, recorded: bool) -> Result<Row> {
        let mut at_ready = Counts::default();
        let count = || {
            at_ready = store.counts()?;
            Ok(())
        };
        let dir = self.setup.store_dir();
        let mut row = match self.engine {
            Engine::Podman => self.start_podman(name, Some(&dir), count)?,
            Engine::None => {
                let since = self.cold()?;
                let trees = lazy::pull(&dir, &self.reference(), &self.built.layers)?;
                self.start(name, &trees, since, count)?
            }
        };
        if recorded {
            store.wait_recorded()?;
        }
        // What was predicted and not used is known when the recording has been weighed.
        let after = store.counts()?;
        row.lazy = Some(table::Lazy {
            on_demand: at_ready.on_demand,
            stalled: at_ready.stalled,
            predicted: after.predicted,
            waste: after.waste,
        });
        Ok(row)
    }

    /// Mounts and starts the image from these trees (bottom first).
    fn start(
        &self,
        name: &'static str,
        trees: &[PathBuf],
        since: Instant,
        at_ready: impl FnOnce() -> Result<()>,
    ) -> Result<Row> {
        let storage = Storage::make(&self.setup.work.fresh("storage")?)?;
        let mut lower = Vec::new();
        for (number, tree) in trees.iter().enumerate() {
            lower.push(storage.layer(number, tree)?);
        }
        lower.reverse();
        let starter = Starter {
            running: self.setup.running,
            storage,
            cgroups: self.cgroups.as_deref(),
            image: &self.reference(),
        };
        let row = self.row(name, at_ready, |ready| {
            starter.run(lower, &self.built.app.command(), since, ready)
        })?;
        self.setup.work.wipe("storage")?;
        Ok(row)
    }

    /// Has Podman pull and start the image.
    fn start_podman(
        &self,
        name: &'static str,
        store: Option<&Path>,
        at_ready: impl FnOnce() -> Result<()>,
    ) -> Result<Row> {
        let root = self.setup.work.fresh("podman")?;
        let podman = Podman::new(self.setup.running, &root, &self.server.host(), store)?;
        let since = self.cold()?;
        let reference = self.reference();
        let row = self.row(name, at_ready, |ready| podman.run(&reference, since, ready))?;
        self.setup.work.wipe("podman")?;
        Ok(row)
    }

    /// Takes down what the registry had sent in the moment in which the start is ready.
    fn row<'b>(
        &'b self,
        name: &'static str,
        at_ready: impl FnOnce() -> Result<()> + 'b,
        start: impl FnOnce(Box<dyn FnOnce() -> Result<()> + '_>) -> Result<Duration>,
    ) -> Result<Row> {
        let (mut bytes, mut requests) = (0, 0);
        let ready = start(Box::new(|| {
            let log = self.server.log();
            (bytes, requests) = (log.bytes(), log.requests());
            at_ready()
        }))?;
        Ok(Row {
            name,
            ready,
            bytes,
            requests,
            lazy: None,
        })
    }

    /// Nothing cached, nothing counted: the clock starts.
    fn cold(&self) -> Result<Instant> {
        self.setup.running.check()?;
        machine::drop_caches()?;
        self.server.log().clear();
        Ok(Instant::now())
    }
}

/// Builds the store's binary as this program was built, or for a release; its path.
pub(crate) fn binary(release: bool) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("a checkout")?;
    let mut build = Command::new(cargo);
    build
        .args([
            "build",
            "--locked",
            "--package",
            "forelayer",
            "--bin",
            "forelayer",
        ])
        .args(["--message-format", "json-render-diagnostics"])
        .current_dir(root)
        .stderr(std::process::Stdio::inherit());
    if release {
        build.arg("--release");
    }
    let output = build.output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("the store could not be built");
    }
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|message| Some(message.get("executable")?.as_str()?.into()))
        .next_back()
        .context("cargo did not say where the store's binary is")
}
