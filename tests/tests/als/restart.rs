//! The store comes and goes; the mounts and what is known stay.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt},
};

use forelayer_tests::fixtures::{Entry, Layer, Lazy};
use libtest_mimic::Failed;

use crate::lab::{Lab, noise};

pub(crate) fn killed() -> Result<(), Failed> {
    let mut lab = Lab::new();
    let content = noise(1, 2 << 20);
    let layer = Layer::build(
        &[Entry::dir("d"), Entry::file("d/f", content.clone())],
        &Lazy::zstd_chunked(),
    )?;
    let diff = lab.serve(&layer);
    let file = File::open(diff.join("d/f"))?;
    let mut head = vec![0; 4096];
    file.read_exact_at(&mut head, 0)?;
    let inodes = || -> Vec<u64> {
        ["", "d", "d/f"]
            .map(|path| fs::metadata(diff.join(path)).unwrap().ino())
            .to_vec()
    };
    let before = inodes();
    for _ in 0..3 {
        lab.kill_and_restart();
        // The open file, what it did not read yet, and every path are as before.
        let mut all = vec![0; content.len()];
        file.read_exact_at(&mut all, 0)?;
        assert!(all == content);
        assert_eq!(inodes(), before);
        assert!(!diff.join("none").exists());
        let info = fs::read(diff.with_file_name("info"))?;
        assert!(info.starts_with(b"{"));
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    }
    let asked = lab.server().log().blob_bytes();
    assert!(
        asked < 2 * layer.blob.len() as u64,
        "what was fetched is fetched once: {asked} bytes"
    );
    Ok(())
}

pub(crate) fn without_network() -> Result<(), Failed> {
    let mut lab = Lab::new();
    let entries = [
        Entry::dir("d"),
        Entry::file("d/read", "read before"),
        Entry::file("d/not", "not read"),
        Entry::symlink("d/link", "read"),
    ];
    let layer = Layer::build(&entries, &Lazy::estargz())?;
    let reference = lab.publish("latest", std::slice::from_ref(&layer));
    let target = lab.target(&reference, &layer.digest);
    let diff = target.join("diff");
    assert_eq!(fs::read(diff.join("d/read"))?, b"read before");
    let inode = fs::metadata(&diff)?.ino();

    lab.server = None;
    lab.stop_and_restart();
    assert_eq!(fs::metadata(&diff)?.ino(), inode, "the slot stays");
    assert!(fs::metadata(target.join("blob"))?.len() > 0);
    assert!(fs::read(target.join("info"))?.starts_with(b"{"));
    assert_eq!(fs::read_dir(diff.join("d"))?.count(), 3);
    assert_eq!(fs::metadata(diff.join("d/not"))?.len(), 8);
    assert_eq!(fs::read(diff.join("d/link"))?, b"read before");
    Ok(())
}
