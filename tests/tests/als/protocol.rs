//! The operations of an engine, in its order, and what they must get.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use forelayer_tests::fixtures::{Entry, Layer, Lazy};
use libtest_mimic::Failed;
use serde_json::Value;

use crate::lab::{Lab, noise};

fn layers() -> [Layer; 2] {
    let bottom = [Entry::dir("a"), Entry::file("a/one", noise(1, 100_000))];
    let top = [Entry::file("two", noise(2, 100_000))];
    [
        Layer::build(&bottom, &Lazy::estargz()).unwrap(),
        Layer::build(&top, &Lazy::zstd_chunked()).unwrap(),
    ]
}

pub(crate) fn by_blob_digest() -> Result<(), Failed> {
    replay(|layer| &layer.digest)
}

pub(crate) fn by_toc_digest() -> Result<(), Failed> {
    replay(|layer| &layer.toc_digest)
}

/// `open(use, O_RDWR|O_CREAT|O_TRUNC, 0666)`: must fail, and is counted.
fn use_layer(target: &Path) {
    let made = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o666)
        .open(target.join("use"));
    assert_eq!(made.unwrap_err().kind(), io::ErrorKind::NotFound);
}

fn release(target: &Path) {
    let removed = fs::remove_dir(target);
    assert_eq!(removed.unwrap_err().kind(), io::ErrorKind::NotFound);
}

fn info(target: &Path) -> Value {
    serde_json::from_slice(&fs::read(target.join("info")).unwrap()).unwrap()
}

/// The 14 steps of a pull, a container's mount and a removal, with a second pull and an engine that starts again.
fn replay(key: fn(&Layer) -> &String) -> Result<(), Failed> {
    let mut lab = Lab::new();
    let layers = layers();
    let reference = lab.publish("latest", &layers);
    let targets = layers
        .each_ref()
        .map(|layer| lab.target(&reference, key(layer)));
    for pull in 0..2 {
        lab.server().log().clear();
        for (target, layer) in targets.iter().zip(&layers) {
            // 1. Existence.
            for name in ["diff", "info", "blob"] {
                fs::metadata(target.join(name))?;
            }
            assert!(fs::metadata(target.join("diff"))?.is_dir());
            assert_eq!(
                fs::metadata(target.join("blob"))?.len(),
                layer.blob.len() as u64
            );
            // 2, 3. Use, then what the layer is.
            use_layer(target);
            let info = info(target);
            assert_eq!(info["toc-digest"], layer.toc_digest.as_str());
            assert_eq!(info["compressed-diff-digest"], layer.digest.as_str());
            assert_eq!(info["compressed-size"], layer.blob.len());
            assert!(info["compression"] == 2 || info["compression"] == 4);
            // 4 to 8. Commit: again what it is, the attributes of its root, again use.
            assert_eq!(self::info(target), info);
            let root = fs::metadata(target.join("diff"))?;
            assert_eq!(
                (root.uid(), root.gid(), root.mode() & 0o7777),
                (0, 0, 0o555)
            );
            use_layer(target);
        }
        // 9. The end of the pull gives one use back.
        targets.iter().for_each(|target| release(target));
        let log = lab.server().log();
        if pull == 0 {
            assert_eq!(
                log.manifest_requests().len(),
                1,
                "one resolution for all layers"
            );
        } else {
            assert_eq!(log.requests(), 0, "the second pull asks nobody");
        }
    }
    let uses = lab.store.events();
    let count = |what: &str| uses.iter().filter(|e| e.starts_with(what)).count();
    assert_eq!((count("used"), count("released")), (8, 4));

    // 10 to 13. A container's mount, by the links an engine makes; `diff1` must not be there.
    let links = lab.dir.path().join("l");
    fs::create_dir_all(&links)?;
    let mut lowers = Vec::new();
    for (n, target) in targets.iter().enumerate().rev() {
        let link = links.join(format!("L{n}"));
        std::os::unix::fs::symlink(target.join("diff"), &link)?;
        fs::metadata(&link)?;
        let next = fs::metadata(link.join("../diff1"));
        assert_eq!(next.unwrap_err().kind(), io::ErrorKind::NotFound);
        lowers.push(link);
    }
    let container = crate::overlay::Overlay::mount(&lab.dir.path().join("c"), &lowers);
    assert_eq!(
        fs::read(container.merged().join("a/one"))?,
        noise(1, 100_000)
    );
    assert_eq!(fs::read(container.merged().join("two"))?, noise(2, 100_000));
    let started = lab.store.events();
    let mounted = started.iter().filter(|e| e.starts_with("mounted")).count();
    assert_eq!(mounted, layers.len(), "one word a lower: {started:?}");
    drop(container);

    // 14. Removal, then the engine starts again and finds everything as it was.
    targets.iter().for_each(|target| release(target));
    for target in &targets {
        fs::metadata(target.join("diff"))?;
        release(target);
    }
    Ok(())
}

pub(crate) fn ordinary() -> Result<(), Failed> {
    let mut lab = Lab::new();
    let layer = Layer::build(&[Entry::file("f", noise(1, 1000))], &Lazy::No)?;
    let reference = lab.publish("latest", std::slice::from_ref(&layer));
    let target = lab.target(&reference, &layer.digest);
    for name in ["diff", "info", "blob", "diff1", "use"] {
        let found = fs::symlink_metadata(target.join(name));
        assert_eq!(found.unwrap_err().kind(), io::ErrorKind::NotFound, "{name}");
    }
    assert!(lab.server().log().blob_requests(&layer.digest).is_empty());
    assert_eq!(
        lab.store.metrics()["forelayer_lookups_total{result=\"no\"}"],
        1
    );
    // An image that is not there at all, and a registry that is not.
    let host = lab.server().host();
    for reference in [
        format!("{host}/no/such:tag"),
        "127.0.0.1:1/a/b:c".to_owned(),
    ] {
        let found = fs::metadata(lab.target(&reference, &layer.digest).join("diff"));
        assert_eq!(found.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
    // Pushed after the "no": it is served, for nothing is remembered for long.
    let lazy = Layer::build(&[Entry::file("f", "x")], &Lazy::estargz())?;
    let late = lab.publish("late", std::slice::from_ref(&lazy));
    fs::metadata(lab.target(&late, &lazy.digest).join("diff"))?;
    Ok(())
}

/// The first thing that an engine does with the store: `stat` of its directory. One that follows another within the time
/// for which the kernel believes an answer need not be seen.
pub(crate) fn engines_are_seen() -> Result<(), Failed> {
    let mut lab = Lab::new();
    let store = lab.paths.target(forelayer::mount::MountName::Control);
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(100));
        let mut stat = Command::new("stat");
        let mut engine = stat.arg(&store).stdout(Stdio::null()).spawn()?;
        assert!(engine.wait()?.success());
        let seen = format!("seen {}", engine.id());
        let heard = lab.store.events();
        assert!(heard.contains(&seen), "{seen}: {heard:?}");
    }
    Ok(())
}

pub(crate) fn refused_names() -> Result<(), Failed> {
    let lab = Lab::new();
    let layer = Layer::build(&[Entry::file("f", "x")], &Lazy::estargz())?;
    let reference = lab.publish("latest", std::slice::from_ref(&layer));
    let store = lab.paths.target(forelayer::mount::MountName::Control);
    let target = lab.target(&reference, &layer.digest);
    // storage.conf without `:ref`, a digest of another kind, a name that is none.
    for path in [
        store.join(&layer.digest).join("diff"),
        target.with_file_name("sha512:00").join("diff"),
        target.with_file_name("diff"),
        store.join("x"),
        target.join("other"),
    ] {
        let found = fs::symlink_metadata(&path);
        assert_eq!(
            found.unwrap_err().kind(),
            io::ErrorKind::NotFound,
            "{path:?}"
        );
    }
    fs::metadata(target.join("diff"))?;
    // Nothing can be made or changed.
    assert!(fs::write(target.join("info"), "x").is_err());
    assert!(fs::write(target.join("new"), "x").is_err());
    assert!(
        fs::DirBuilder::new()
            .mode(0o700)
            .create(store.join("d"))
            .is_err()
    );
    assert!(fs::remove_file(target.join("info")).is_err());
    let file = OpenOptions::new().append(true).open(target.join("diff/f"));
    assert_eq!(file.unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
    // What is there can be listed.
    let mut names: Vec<_> = fs::read_dir(&target)?
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["blob", "diff", "info"]);
    assert_eq!(fs::metadata(&store)?.mode() & 0o7777, 0o700);
    Ok(())
}
