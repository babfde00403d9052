//! Processes that this program starts of itself: the store (so that it can be killed, and because a process that serves
//! a mount must not use it) and the holder.

use std::{
    io::{self, BufRead, Write},
    os::fd::AsFd,
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use forelayer::{
    als,
    cache::Cache,
    config::Config,
    fetch::Fetcher,
    image::{Images, Layer},
    metrics::Metrics,
    mount::{
        Paths,
        client::{self, HolderCommand, READY},
        holder,
    },
    registry,
};
use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

pub(crate) const STORE: &str = "--as-store";
pub(crate) const HOLDER: &str = "--as-holder";

/// Plays the part that the command line names; `None` for the tests themselves.
pub(crate) fn play() -> Option<ExitCode> {
    let args: Vec<String> = std::env::args().collect();
    let dir = Path::new(args.get(2)?);
    match args.get(1)?.as_str() {
        STORE => store(dir),
        HOLDER => {
            let (stop, _writer) = io::pipe().unwrap();
            holder::run(&paths(dir), holder::Mode::Child, stop.as_fd(), || {
                say(READY);
                Ok(())
            })
            .unwrap();
        }
        _ => return None,
    }
    Some(ExitCode::SUCCESS)
}

pub(crate) fn config(dir: &Path) -> Config {
    let mut config = Config {
        state_dir: dir.join("state"),
        run_dir: dir.join("run"),
        ..Config::default()
    };
    config.fetch.demand_attempts = 2;
    config
}

pub(crate) fn paths(dir: &Path) -> Paths {
    Paths::new(&config(dir))
}

fn say(text: &str) {
    println!("{text}");
    io::stdout().flush().unwrap();
}

/// Tells the test what the mounts hear.
struct Told;

impl als::Hooks for Told {
    fn seen(&self, pid: u32) {
        say(&format!("event seen {pid}"));
    }
    fn mounted(&self, layer: &Arc<Layer>) -> Option<BoxFuture<'static, ()>> {
        say(&format!("event mounted {}", layer.slot));
        // Made where it is awaited: this is called on a thread outside the runtime.
        Some(Box::pin(async {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }))
    }
    fn used(&self, reference: &str, key: &forelayer::digest::Digest) {
        say(&format!("event used {reference} {key}"));
    }
    fn released(&self, reference: &str, key: &forelayer::digest::Digest) {
        say(&format!("event released {reference} {key}"));
    }
}

/// The store without prefetch, background and witness. Says `serving adopt=...`, then obeys one command a line.
fn store(dir: &Path) {
    let config = config(dir);
    std::fs::create_dir_all(&config.state_dir).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let _inside = runtime.enter();
    let metrics = Arc::new(Metrics::new());
    let cache = Arc::new(Cache::open(&config.state_dir).unwrap());
    let client = registry::Client::new(&config.registry, Arc::clone(&metrics)).unwrap();
    let images = Images::open(
        &config.state_dir,
        &config.lookup,
        &config.limits,
        Arc::clone(&cache),
        client.clone(),
        Arc::clone(&metrics),
    )
    .unwrap();
    let stop = CancellationToken::new();
    let fetcher =
        Fetcher::start(&config.fetch, client, Arc::clone(&metrics), stop.clone()).unwrap();
    let holder = HolderCommand {
        program: std::env::current_exe().unwrap(),
        args: vec![HOLDER.into(), dir.into()],
    };
    let mounts = client::connect(&paths(dir), Some(&holder)).unwrap();
    let images = Arc::new(images);
    let parts = als::Parts {
        images: Arc::clone(&images),
        fetcher,
        metrics: Arc::clone(&metrics),
        hooks: Arc::new(Told),
        runtime: runtime.handle().clone(),
        state_dir: config.state_dir.clone(),
        attach_wait: config.witness.attach_wait,
    };
    let served = als::serve(parts, &mounts).unwrap();
    say(&format!("serving adopt={}", mounts.adopt));
    for line in io::stdin().lock().lines() {
        let line = line.unwrap();
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["metrics"] => {
                say(&metrics.page());
                say(".");
            }
            // Puts a file of the cache into the page cache.
            ["warm", slot, path] => {
                let layer = images.layer(slot.parse().unwrap()).unwrap();
                let node = layer.index.find(path.as_bytes()).unwrap().unwrap();
                let entry = layer.index.entry(node).unwrap().unwrap();
                let first = layer.index.chunk(entry.chunks.start).unwrap().unwrap();
                let mut bytes = vec![0; entry.size as usize];
                layer.cache.read_at(first.data_offset, &mut bytes).unwrap();
                say(&served
                    .warm
                    .store(&layer, node, 0, &bytes)
                    .unwrap()
                    .to_string());
            }
            ["stop"] => break,
            _ => panic!("unknown command {line:?}"),
        }
    }
    mounts.stop().unwrap();
    stop.cancel();
    cache.close().unwrap();
}
