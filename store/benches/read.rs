//! What a container waits for when everything is there: reads and lookups of a layer through a real mount.
//!
//! `cargo bench -p forelayer --bench read`, as root and with /dev/fuse; otherwise it says so and measures nothing. The
//! store runs in a process of its own, as in life (and a process that serves a mount must not use it), with a holder
//! and a registry that is asked only before the first measurement. How many messages of the kernel each measurement
//! takes is counted by the store and checked, so that nothing is measured that the page cache answered.

#![allow(clippy::unwrap_used, reason = "benches")]

use std::{
    cell::Cell,
    fs::File,
    hint::black_box,
    io::{self, BufRead, BufReader, Write},
    os::{fd::AsFd, unix::fs::FileExt},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use criterion::{Criterion, Throughput, criterion_group};
use forelayer::{
    als,
    cache::Cache,
    config::Config,
    fetch::Fetcher,
    image::Images,
    metrics::Metrics,
    mount::{
        MountName, Paths,
        client::{self, HolderCommand, READY},
        holder,
    },
    registry,
};
use forelayer_tests::{
    fixtures::{Entry, Image, ImageConfig, Layer, Lazy},
    registry::{Content, Server},
};
use rustix::fs::{Advice, fadvise};
use tokio_util::sync::CancellationToken;

const STORE: &str = "--as-store";
const HOLDER: &str = "--as-holder";

/// Names in the directory that lookups go to.
const NAMES: usize = 1_000;
/// The file that is read.
const FILE: usize = 8 << 20;

fn config(dir: &Path) -> Config {
    Config {
        state_dir: dir.join("state"),
        run_dir: dir.join("run"),
        ..Config::default()
    }
}

fn say(text: &str) {
    println!("{text}");
    io::stdout().flush().unwrap();
}

/// The process that holds the mounts.
fn hold(dir: &Path) {
    let (stop, _writer) = io::pipe().unwrap();
    let paths = Paths::new(&config(dir));
    holder::run(&paths, holder::Mode::Child, stop.as_fd(), || {
        say(READY);
        Ok(())
    })
    .unwrap();
}

/// The process that serves them. Answers each line of its input with its metrics and a dot; unmounts at the end of it.
fn serve(dir: &Path) {
    let config = config(dir);
    std::fs::create_dir_all(&config.state_dir).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
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
    let command = HolderCommand {
        program: std::env::current_exe().unwrap(),
        args: vec![HOLDER.into(), dir.into()],
    };
    let mounts = client::connect(&Paths::new(&config), Some(&command)).unwrap();
    let parts = als::Parts {
        images: Arc::new(images),
        fetcher,
        metrics: Arc::clone(&metrics),
        hooks: Arc::new(()),
        runtime: runtime.handle().clone(),
        state_dir: config.state_dir.clone(),
        attach_wait: config.witness.attach_wait,
    };
    let _served = als::serve(parts, &mounts).unwrap();
    say("serving");
    for line in io::stdin().lock().lines() {
        line.unwrap();
        say(&metrics.page());
        say(".");
    }
    mounts.stop().unwrap();
    stop.cancel();
    cache.close().unwrap();
}

/// A running store and its registry; unmounted when it is dropped, also after a panic.
struct Lab {
    store: Child,
    output: BufReader<ChildStdout>,
    server: Server,
    dir: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Command::new(std::env::current_exe().unwrap())
            .arg(STORE)
            .arg(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(store.stdout.take().unwrap());
        let mut lab = Self {
            store,
            output,
            server: Server::start(Content::default()).unwrap(),
            dir,
        };
        assert_eq!(lab.line(), "serving");
        lab
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        let read = self.output.read_line(&mut line).unwrap();
        assert_ne!(read, 0, "the store ended");
        line.trim_end().to_owned()
    }

    /// Messages of one kind that the kernel has sent on all mounts.
    fn messages(&mut self, op: &str) -> u64 {
        writeln!(self.store.stdin.as_mut().unwrap()).unwrap();
        let op = format!("op=\"{op}\"");
        let mut sum = 0;
        loop {
            let line = self.line();
            if line == "." {
                return sum;
            }
            if line.starts_with("forelayer_fuse_requests_total{") && line.contains(&op) {
                sum += line.rsplit(' ').next().unwrap().parse::<u64>().unwrap();
            }
        }
    }

    /// Publishes an image of this layer and looks its tree up, as an engine does.
    fn tree(&self, layer: &Layer) -> PathBuf {
        let image = Image::new(std::slice::from_ref(layer), &ImageConfig::default()).unwrap();
        let content = self.server.content();
        for blob in image.blobs.values() {
            content.add_blob(blob.clone());
        }
        for manifest in &image.manifests {
            content.add_manifest(&manifest.media_type, manifest.bytes.clone());
        }
        content.tag("bench/image", "latest", &image.root().digest);
        let reference = format!("{}/bench/image:latest", self.server.host());
        let tree = Paths::new(&config(self.dir.path()))
            .target(MountName::Control)
            .join(STANDARD.encode(reference))
            .join(&layer.digest)
            .join("diff");
        // Past the control mount's link: what is measured is the data mount.
        std::fs::canonicalize(tree).unwrap()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // The end of its input is the word to stop.
        drop(self.store.stdin.take());
        if !self.store.wait().is_ok_and(|status| status.success()) {
            let paths = Paths::new(&config(self.dir.path()));
            if let Ok(mounts) = client::connect(&paths, None) {
                let _ = mounts.stop();
            }
            let _ = holder::release(&paths);
        }
    }
}

/// Bytes that no codec makes smaller.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

fn bench(criterion: &mut Criterion) {
    let mut entries = vec![Entry::file("file", noise(FILE)), Entry::dir("names")];
    entries.extend((0..NAMES).map(|n| Entry::file(format!("names/{n:05}"), "content")));
    let mut lab = Lab::new();
    let tree = lab.tree(&Layer::build(&entries, &Lazy::estargz()).unwrap());
    // Brings all of it into the store's cache.
    assert_eq!(std::fs::read(tree.join("file")).unwrap().len(), FILE);
    let file = File::open(tree.join("file")).unwrap();
    // No read-ahead: a read is a message of just its pages.
    fadvise(&file, 0, None, Advice::Random).unwrap();
    let calls = Cell::new(0_u64);
    let mut group = criterion.benchmark_group("through the mount");
    for kib in [4, 128] {
        let mut buffer = vec![0; kib << 10];
        let places = FILE / buffer.len();
        let place = |call: u64| (call as usize * 7919 % places * (kib << 10)) as u64;
        group.throughput(Throughput::Bytes(buffer.len() as u64));
        calls.set(0);
        let before = lab.messages("read");
        group.bench_function(
            format!("READ of {kib} KiB, in the store's cache"),
            |bencher| {
                bencher.iter(|| {
                    let at = place(calls.replace(calls.get() + 1));
                    fadvise(
                        &file,
                        at,
                        (buffer.len() as u64).try_into().ok(),
                        Advice::DontNeed,
                    )
                    .unwrap();
                    file.read_exact_at(black_box(&mut buffer), at).unwrap();
                });
            },
        );
        let messages = lab.messages("read") - before;
        println!("{messages} READs for {} reads of {kib} KiB", calls.get());
        assert!(
            messages >= calls.get(),
            "some reads were answered by the page cache"
        );
    }
    // What of the above is not the store.
    let mut buffer = vec![0; 4096];
    file.read_exact_at(&mut buffer, 0).unwrap();
    group.throughput(Throughput::Bytes(4096));
    let before = lab.messages("read");
    group.bench_function("read of 4 KiB, in the page cache", |bencher| {
        bencher.iter(|| file.read_exact_at(black_box(&mut buffer), 0).unwrap());
    });
    assert_eq!(lab.messages("read"), before, "the page cache answers");
    group.finish();

    let mut group = criterion.benchmark_group("through the mount, a directory of 1,000 names");
    // The kernel asks for each name once and remembers it for ever, also that it is not there: a new name every time.
    calls.set(0);
    let before = lab.messages("lookup");
    group.bench_function("LOOKUP of a name that is not there", |bencher| {
        bencher.iter(|| {
            let call = calls.replace(calls.get() + 1);
            let missing = std::fs::symlink_metadata(tree.join(format!("names/{call:05}.none")));
            assert_eq!(missing.unwrap_err().kind(), io::ErrorKind::NotFound);
        });
    });
    let messages = lab.messages("lookup") - before;
    println!("{messages} LOOKUPs for {} names", calls.get());
    assert!(
        messages >= calls.get(),
        "some names were known to the kernel"
    );
    let known = tree.join("names/00500");
    std::fs::symlink_metadata(&known).unwrap();
    let before = lab.messages("lookup");
    group.bench_function("stat of a name that the kernel knows", |bencher| {
        bencher.iter(|| std::fs::symlink_metadata(black_box(&known)).unwrap());
    });
    assert_eq!(lab.messages("lookup"), before, "the kernel answers");
    group.finish();
}

/// Why nothing can be mounted here.
fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root: mounts".to_owned());
    }
    File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .err()
        .map(|error| format!("needs /dev/fuse: {error}"))
}

criterion_group!(benches, bench);

fn main() {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1..3) {
        Some([part, dir]) if part == STORE => return serve(Path::new(dir)),
        Some([part, dir]) if part == HOLDER => return hold(Path::new(dir)),
        _ => {}
    }
    if let Some(missing) = missing() {
        println!("not measured: {missing}");
        return;
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
}
