//! Containers see layers through overlayfs.

use std::{
    ffi::CString,
    fs, io,
    path::{Path, PathBuf},
};

use forelayer::mount::MountName;
use forelayer_tests::fixtures::{Entry, Layer, Lazy};
use libtest_mimic::Failed;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::lab::{Lab, messages, noise};

/// A mounted overlay; dropping it unmounts.
pub(crate) struct Overlay {
    dir: PathBuf,
}

impl Overlay {
    /// Mounts these lowers (top first) at `<dir>/merged`.
    pub(crate) fn mount(dir: &Path, lowers: &[PathBuf]) -> Self {
        for name in ["merged", "upper", "work"] {
            fs::create_dir_all(dir.join(name)).unwrap();
        }
        let lowers: Vec<_> = lowers.iter().map(|lower| lower.to_str().unwrap()).collect();
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lowers.join(":"),
            dir.join("upper").display(),
            dir.join("work").display(),
        );
        let options = CString::new(options).unwrap();
        let merged = dir.join("merged");
        rustix::mount::mount(
            "overlay",
            &merged,
            "overlay",
            MountFlags::empty(),
            options.as_c_str(),
        )
        .unwrap();
        Self {
            dir: dir.to_owned(),
        }
    }

    pub(crate) fn merged(&self) -> PathBuf {
        self.dir.join("merged")
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.merged(), UnmountFlags::DETACH);
    }
}

/// Links as an engine makes them: digests hold colons, which lowerdir cannot.
fn links(lab: &Lab, reference: &str, layers: &[Layer]) -> Vec<PathBuf> {
    let dir = lab.dir.path().join("l");
    fs::create_dir_all(&dir).unwrap();
    layers
        .iter()
        .enumerate()
        .rev()
        .map(|(n, layer)| {
            let link = dir.join(format!("L{n}"));
            let _ = fs::remove_file(&link);
            let diff = lab.target(reference, &layer.digest).join("diff");
            fs::metadata(&diff).unwrap();
            std::os::unix::fs::symlink(diff, &link).unwrap();
            link
        })
        .collect()
}

/// Everything a start may do: list, stat, read, and ask for what is not there.
fn walk(root: &Path) -> u64 {
    let mut bytes = 0;
    let mut waiting = vec![root.to_owned()];
    while let Some(dir) = waiting.pop() {
        assert!(!dir.join("not-there").exists());
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                waiting.push(entry.path());
            } else {
                bytes += fs::read(entry.path()).unwrap().len() as u64;
            }
        }
    }
    bytes
}

pub(crate) fn second_mount() -> Result<(), Failed> {
    let mut lab = Lab::new();
    let tree = |seed: u64| -> Vec<Entry> {
        let mut entries = Vec::new();
        for d in 0..10 {
            entries.push(Entry::dir(format!("d{d}")));
            entries.extend((0..20).map(|f| {
                Entry::file(
                    format!("d{d}/l{seed}-{f}"),
                    noise(seed * 1000 + d * 20 + f, 9_000),
                )
            }));
        }
        entries
    };
    let layers = [
        Layer::build(&tree(1), &Lazy::estargz())?,
        Layer::build(&tree(2), &Lazy::zstd_chunked())?,
    ];
    let reference = lab.publish("latest", &layers);
    let lowers = links(&lab, &reference, &layers);
    let before = lab.store.metrics();
    let first = Overlay::mount(&lab.dir.path().join("c1"), &lowers);
    let bytes = walk(&first.merged());
    assert_eq!(bytes, 2 * 200 * 9_000);
    drop(first);
    let between = lab.store.metrics();
    let second = Overlay::mount(&lab.dir.path().join("c2"), &lowers);
    assert_eq!(walk(&second.merged()), bytes);
    drop(second);
    let after = lab.store.metrics();
    let first = messages(&before, &between, MountName::Plain);
    assert!(first["lookup"] > 0 && first["read"] > 0, "{first:?}");
    let mut second = messages(&between, &after, MountName::Plain);
    // Pages that the machine reclaimed in between are no metadata.
    second.remove("read");
    assert_eq!(
        second.into_iter().collect::<Vec<_>>(),
        [("statfs".to_owned(), layers.len() as u64)]
    );
    Ok(())
}

pub(crate) fn whiteouts() -> Result<(), Failed> {
    let lab = Lab::new();
    let bottom = [
        Entry::dir("kept"),
        Entry::file("kept/a", "a"),
        Entry::file("kept/b", "b"),
        Entry::dir("replaced"),
        Entry::file("replaced/old", "old"),
        Entry::file("gone", "gone"),
        Entry::file("tool", "tool").mode(0o4755),
    ];
    let top = [
        Entry::whiteout("kept/a"),
        Entry::whiteout("gone"),
        Entry::dir("replaced"),
        Entry::opaque("replaced"),
        Entry::file("replaced/new", "new"),
    ];
    for lazy in [Lazy::estargz(), Lazy::zstd_chunked()] {
        let layers = [Layer::build(&bottom, &lazy)?, Layer::build(&top, &lazy)?];
        let reference = lab.publish("latest", &layers);
        let lowers = links(&lab, &reference, &layers);
        let dir = tempfile::tempdir()?;
        let container = Overlay::mount(dir.path(), &lowers);
        let root = container.merged();
        let list = |dir: &str| -> io::Result<Vec<String>> {
            let mut names: Vec<_> = fs::read_dir(root.join(dir))?
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            Ok(names)
        };
        assert_eq!(list("")?, ["kept", "replaced", "tool"]);
        assert_eq!(list("kept")?, ["b"]);
        assert_eq!(list("replaced")?, ["new"]);
        // An ordinary pull leaves no marks that a container could see.
        let mut names = [0; 1000];
        let len = rustix::fs::listxattr(root.join("replaced"), &mut names)?;
        assert_eq!(names[..len].escape_ascii().to_string(), "");
        // Written to, it is copied up as any other file.
        fs::write(root.join("kept/b"), "changed")?;
        assert_eq!(fs::read(root.join("kept/b"))?, b"changed");
        fs::remove_dir_all(root.join("replaced"))?;
        assert_eq!(list("")?, ["kept", "tool"]);
    }
    Ok(())
}
