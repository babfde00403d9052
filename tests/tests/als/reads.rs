//! What readers get: every byte of the file, or an error.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    time::{Duration, Instant},
};

/// A bound against hanging.
const PATIENCE: Duration = Duration::from_secs(20);

use forelayer_tests::{
    fixtures::{Entry, Layer, Lazy},
    registry::{Fault, Rule},
};
use libtest_mimic::Failed;

use crate::lab::{Lab, noise};

pub(crate) fn whole() -> Result<(), Failed> {
    let mut lab = Lab::new();
    // Lengths around pages, chunks and the kernel's largest READ; zeros and text among the noise.
    let lengths = [
        0,
        1,
        4095,
        4096,
        4097,
        65_536,
        131_071,
        131_073,
        1 << 20,
        3_000_001,
    ];
    let mut files: Vec<(String, Vec<u8>)> = lengths
        .iter()
        .map(|&len| (format!("f{len}"), noise(len as u64, len)))
        .collect();
    let mut holes = noise(9, 3 << 20);
    holes[100_000..2_500_000].fill(0);
    files.push(("holes".to_owned(), holes));
    files.push(("zeros".to_owned(), vec![0; 1_500_000]));
    let entries: Vec<Entry> = files
        .iter()
        .map(|(name, content)| Entry::file(name, content.clone()))
        .collect();
    for lazy in [
        Lazy::Estargz {
            chunk_size: 100_000,
            landmark: forelayer_tests::fixtures::Landmark::None,
        },
        Lazy::zstd_chunked(),
    ] {
        let diff = lab.serve(&Layer::build(&entries, &lazy)?);
        for (name, content) in &files {
            let file = File::open(diff.join(name))?;
            // Scattered first, so that windows meet chunks in any way; then around and past the end; then all.
            for n in 0..40 {
                let offset = n * 7919 * 97 % (content.len() + 1);
                let mut buffer = vec![0; 10_000];
                let got = file.read_at(&mut buffer, offset as u64)?;
                let end = (offset + got).min(content.len());
                assert_eq!(buffer[..got], content[offset..end], "{name} at {offset}");
                assert!(got > 0 || offset == content.len());
            }
            let mut buffer = [7; 100];
            assert_eq!(file.read_at(&mut buffer, content.len() as u64)?, 0);
            assert_eq!(
                file.read_at(&mut buffer, content.len() as u64 + 1_000_000)?,
                0
            );
            assert!(fs::read(diff.join(name))? == *content, "{name}");
        }
    }
    let metrics = lab.store.metrics();
    assert_eq!(metrics["forelayer_read_errors_total"], 0);
    assert!(metrics["forelayer_cache_misses_total"] > 0);

    // Filled ahead, a file whose pages were dropped is read without a message.
    let warm = diff_of(&lab, &files[9].0);
    let slot = fs::canonicalize(&warm)?
        .components()
        .rev()
        .nth(2)
        .unwrap()
        .as_os_str()
        .to_owned();
    let file = File::open(&warm)?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    lab.store
        .say(&format!("warm {} {}", slot.to_str().unwrap(), files[9].0));
    assert_eq!(lab.store.line(), files[9].1.len().to_string());
    let before = lab.store.metrics();
    assert!(fs::read(&warm)? == files[9].1);
    let after = lab.store.metrics();
    let sent = crate::lab::messages(&before, &after, forelayer::mount::MountName::Plain);
    assert!(sent.is_empty(), "{sent:?}");
    Ok(())
}

/// A READ of what a window brought brings the next one, although it waits for nothing itself.
pub(crate) fn followed() -> Result<(), Failed> {
    const NEARBY: &str = "forelayer_chunks_total{lane=\"nearby\"}";
    const CHUNK: usize = 16 << 10;
    let mut lab = Lab::new();
    let content = noise(11, 4 << 20);
    let lazy = Lazy::Estargz {
        chunk_size: CHUNK,
        landmark: forelayer_tests::fixtures::Landmark::None,
    };
    let diff = lab.serve(&Layer::build(&[Entry::file("f", content.clone())], &lazy)?);
    let file = File::open(diff.join("f"))?;
    // One page a READ: nothing is read ahead by the kernel.
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random)?;
    let page = |chunk: usize| {
        let mut buffer = [0; 4096];
        file.read_exact_at(&mut buffer, (chunk * CHUNK) as u64)?;
        assert_eq!(buffer[..], content[chunk * CHUNK..][..4096]);
        Ok::<_, io::Error>(())
    };
    page(0)?;
    let until = Instant::now() + PATIENCE;
    let brought = |lab: &mut Lab, more: u64| loop {
        let metrics = lab.store.metrics();
        let chunks = metrics.get(NEARBY).copied().unwrap_or_default();
        if chunks > more {
            return (chunks, metrics["forelayer_cache_misses_total"]);
        }
        assert!(Instant::now() < until, "{more} chunks and no more");
    };
    // The first chunk behind the miss is where its window begins.
    let (_, misses) = brought(&mut lab, 0);
    assert_eq!(misses, 1);
    let window = loop {
        let before = brought(&mut lab, 0).0;
        std::thread::yield_now();
        if brought(&mut lab, 0).0 == before {
            break before;
        }
    };
    page(1)?;
    brought(&mut lab, window);
    Ok(())
}

/// A file of the layer that was served last.
fn diff_of(lab: &Lab, name: &str) -> std::path::PathBuf {
    let layers = lab.paths.mounts.join("layers/plain");
    // Slots count up; the mount lists none.
    (1..10)
        .rev()
        .map(|slot| layers.join(slot.to_string()).join("diff").join(name))
        .find(|path| path.exists())
        .unwrap()
}

pub(crate) fn wrong_bytes() -> Result<(), Failed> {
    let mut lab = Lab::new();
    let content = noise(5, 4 << 20);
    let entries = [
        Entry::file("big", content.clone()),
        Entry::file("after", "after"),
    ];
    for lazy in [Lazy::estargz(), Lazy::zstd_chunked()] {
        let layer = Layer::build(&entries, &lazy)?;
        let diff = lab.serve(&layer);
        for fault in [
            Fault::FlipBit { offset: 1 << 20 },
            Fault::Truncate { after: 10 },
            Fault::Html,
            Fault::Status {
                status: 403,
                retry_after: None,
            },
        ] {
            let shown = format!("{fault:?}");
            let before = lab.store.metrics()["forelayer_read_errors_total"];
            lab.server().faults().add(Rule::blob(&layer.digest, fault));
            let read = fs::read(diff.join("big"));
            let error = read
                .err()
                .ok_or_else(|| format!("{shown}: bytes were served"))?;
            assert_eq!(error.raw_os_error(), Some(libc::EIO), "{shown}");
            assert!(lab.store.metrics()["forelayer_read_errors_total"] > before);
            lab.server().faults().clear();
        }
        // The registry is sane again, and so is every byte.
        assert!(fs::read(diff.join("big"))? == content);
        assert_eq!(fs::read(diff.join("after"))?, b"after");
    }
    assert!(lab.store.metrics()["forelayer_verify_failures_total"] > 0);
    Ok(())
}

pub(crate) fn raw_blob() -> Result<(), Failed> {
    let lab = Lab::new();
    let layer = Layer::build(
        &[Entry::file("f", noise(5, 3 << 20))],
        &Lazy::zstd_chunked(),
    )?;
    let blob = lab.serve(&layer).with_file_name("blob");
    assert!(fs::read(&blob)? == *layer.blob);

    // Any order; the end first.
    let file = File::open(&blob)?;
    let len = layer.blob.len();
    let mut buffer = vec![0; 1000];
    for offset in [len - 1000, 0, len / 2, len - 500] {
        let got = file.read_at(&mut buffer, offset as u64)?;
        assert_eq!(buffer[..got], layer.blob[offset..(offset + 1000).min(len)]);
    }
    assert_eq!(file.read_at(&mut buffer, len as u64)?, 0);

    // A connection that breaks is no reason to fail; wrong bytes are, at the end and at every later try.
    let server = lab.server();
    let broken = Fault::Reset { after: 1 << 20 };
    server
        .faults()
        .add(Rule::blob(&layer.digest, broken).times(1));
    assert!(fs::read(&blob)? == *layer.blob);
    server.faults().clear();
    let flip = Fault::FlipBit { offset: 1 << 20 };
    server
        .faults()
        .add(Rule::blob(&layer.digest, flip).times(1));
    let file = File::open(&blob)?;
    let last = |file: &File| {
        let mut buffer = vec![0; 4096];
        file.read_exact_at(&mut buffer, (len - 4096) as u64)
            .map_err(|error: io::Error| error.raw_os_error())
    };
    assert_eq!(
        file.read_at(&mut buffer, 0)?,
        1000,
        "what is not the end is passed on"
    );
    assert_eq!(last(&file), Err(Some(libc::EIO)));
    assert_eq!(last(&file), Err(Some(libc::EIO)));
    server.faults().clear();
    assert!(fs::read(&blob)? == *layer.blob, "and nothing of it stays");
    Ok(())
}
