//! The tree of a layer is what its tar says.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::CString,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::Path,
};

use forelayer_tests::fixtures::{Entry, Kind, Layer, Lazy, ZstdNames};
use libtest_mimic::Failed;

use crate::lab::{Lab, noise};

pub(crate) fn estargz() -> Result<(), Failed> {
    compare(&Lazy::estargz())
}

pub(crate) fn zstd_chunked() -> Result<(), Failed> {
    compare(&Lazy::zstd_chunked())
}

pub(crate) fn old_zstd_chunked() -> Result<(), Failed> {
    compare(&Lazy::ZstdChunked {
        chunk_size: 64 << 10,
        names: ZstdNames::Old,
    })
}

/// One of everything; with `xattrs` also what puts a layer on the other data mount.
fn everything(xattrs: bool) -> Vec<Entry> {
    let long = "n".repeat(255);
    let mut entries = vec![
        Entry::dir("bin").mode(0o755),
        Entry::file("bin/su", noise(1, 300_000)).mode(0o4755),
        Entry::file("bin/wall", noise(2, 10))
            .mode(0o2755)
            .owner(0, 5),
        Entry::hardlink("bin/su2", "bin/su"),
        Entry::hardlink("bin/su3", "bin/su"),
        Entry::dir("dev").mode(0o700).owner(1000, 1001),
        Entry::char_device("dev/null", 1, 3).mode(0o666),
        Entry::block_device("dev/disk", 254, 1000).mode(0o660),
        Entry::fifo("dev/pipe").mode(0o600),
        Entry::dir("etc").mtime(1),
        Entry::file("etc/empty", ""),
        Entry::file("etc/one", "1").mtime(0).owner(65534, 4_000_000),
        Entry::symlink("etc/absolute", "/bin/su"),
        Entry::symlink("etc/relative", "../bin/none"),
        Entry::symlink("etc/long", "x/".repeat(500)),
        Entry::dir("etc/nothing-in-it"),
        Entry::file(format!("etc/{long}"), "long"),
        Entry::file("etc/with space\u{e4}\u{1f600}", "odd"),
        Entry::file("big", noise(3, 5 << 20)),
        Entry::dir("tmp").mode(0o1777),
        Entry::whiteout("etc/gone"),
        Entry::whiteout("gone"),
    ];
    if xattrs {
        entries.push(
            Entry::file("bin/ping", "ping")
                .xattr(
                    "security.capability",
                    b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
                )
                .xattr("user.note", b"hello"),
        );
        entries.push(Entry::dir("opaque"));
        entries.push(Entry::opaque("opaque"));
        entries.push(Entry::file("opaque/new", "new"));
    }
    entries
}

/// What `stat` and its kin say of a path.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    kind: String,
    mode: u32,
    owner: (u32, u32),
    size: u64,
    mtime: i64,
    links: u64,
    content: Vec<u8>,
    xattrs: BTreeMap<String, Vec<u8>>,
}

fn expected(entries: &[Entry]) -> BTreeMap<String, Seen> {
    let mut all = BTreeMap::new();
    let links = |path: &str| {
        entries
            .iter()
            .filter(|entry| matches!(&entry.kind, Kind::Hardlink(to) if to == path))
            .count() as u64
    };
    for entry in entries {
        let mut path = entry.path.clone();
        if path.ends_with(".wh..wh..opq") {
            continue;
        }
        let of = match &entry.kind {
            Kind::Hardlink(target) => entries.iter().find(|e| e.path == *target).unwrap(),
            _ => entry,
        };
        let (mut kind, content) = match &of.kind {
            Kind::Dir => ("directory".to_owned(), Vec::new()),
            Kind::File(content) => ("file".to_owned(), content.to_vec()),
            Kind::Symlink(target) => ("link".to_owned(), target.clone().into_bytes()),
            Kind::Char(major, minor) => (format!("char {major}:{minor}"), Vec::new()),
            Kind::Block(major, minor) => (format!("block {major}:{minor}"), Vec::new()),
            Kind::Fifo => ("fifo".to_owned(), Vec::new()),
            Kind::Hardlink(_) => unreachable!("links to links are not in these layers"),
        };
        let mut mode = of.mode;
        if path.contains(".wh.") {
            path = path.replace(".wh.", "");
            kind = "char 0:0".to_owned();
            mode = 0;
        }
        all.insert(
            path,
            Seen {
                kind,
                mode,
                owner: (of.uid, of.gid),
                size: content.len() as u64,
                mtime: of.mtime,
                links: 1 + links(&of.path),
                content,
                xattrs: of
                    .xattrs
                    .iter()
                    .map(|(name, value)| (name.clone(), value.clone()))
                    .collect(),
            },
        );
    }
    all
}

fn seen(root: &Path) -> BTreeMap<String, Seen> {
    let mut all = BTreeMap::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let stat = fs::symlink_metadata(&path).unwrap();
            let kind = stat.file_type();
            let (major, minor) = (
                rustix::fs::major(stat.rdev()),
                rustix::fs::minor(stat.rdev()),
            );
            let (kind, content) = if kind.is_dir() {
                waiting.push(path.clone());
                ("directory".to_owned(), Vec::new())
            } else if kind.is_file() {
                ("file".to_owned(), fs::read(&path).unwrap())
            } else if kind.is_symlink() {
                let target = fs::read_link(&path).unwrap();
                ("link".to_owned(), target.as_os_str().as_bytes().to_vec())
            } else if kind.is_char_device() {
                (format!("char {major}:{minor}"), Vec::new())
            } else if kind.is_block_device() {
                (format!("block {major}:{minor}"), Vec::new())
            } else {
                assert!(kind.is_fifo());
                ("fifo".to_owned(), Vec::new())
            };
            let directory = kind == "directory";
            let name = path.strip_prefix(root).unwrap().to_str().unwrap();
            all.insert(
                name.to_owned(),
                Seen {
                    kind,
                    mode: stat.mode() & 0o7777,
                    owner: (stat.uid(), stat.gid()),
                    size: stat.size(),
                    mtime: stat.mtime(),
                    // File systems differ in what they count for directories.
                    links: if directory { 1 } else { stat.nlink() },
                    content,
                    xattrs: xattrs(&path),
                },
            );
        }
    }
    all
}

/// All extended attributes; "not supported" counts as none.
fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut names = vec![0; 64 << 10];
    let len = match rustix::fs::llistxattr(&path, &mut names) {
        Err(rustix::io::Errno::NOTSUP) => 0,
        len => len.unwrap(),
    };
    // The size alone is the same.
    match rustix::fs::llistxattr_query(&path) {
        Err(rustix::io::Errno::NOTSUP) => {}
        size => assert_eq!(size.unwrap(), len),
    }
    names[..len]
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let name = String::from_utf8(name.to_vec()).unwrap();
            let mut value = vec![0; 64 << 10];
            let len = rustix::fs::lgetxattr(&path, name.as_str(), &mut value).unwrap();
            value.truncate(len);
            let mut small = vec![0; len.saturating_sub(1)];
            if small.len() == 1.max(small.len()) {
                // One byte too little is an error, not a part of the value.
                let cut = rustix::fs::lgetxattr(&path, name.as_str(), &mut small);
                assert_eq!(cut.unwrap_err(), rustix::io::Errno::RANGE);
            }
            (name, value)
        })
        .collect()
}

fn compare(lazy: &Lazy) -> Result<(), Failed> {
    let lab = Lab::new();
    let plain = everything(false);
    let rich = everything(true);
    let layers = [Layer::build(&plain, lazy)?, Layer::build(&rich, lazy)?];
    let reference = lab.publish("latest", &layers);
    for (layer, entries) in layers.iter().zip([plain, rich]) {
        let diff = lab.target(&reference, &layer.digest).join("diff");
        let mut seen = seen(&diff);
        let expected = expected(&entries);
        if let Some(opaque) = seen.get_mut("opaque") {
            let mark = opaque.xattrs.remove("trusted.overlay.opaque");
            assert_eq!(mark.as_deref(), Some(b"y".as_slice()));
            // Asked for by overlays mounted with `userxattr`, and not listed for the others.
            let mut value = [0; 8];
            let path = diff.join("opaque");
            let len = rustix::fs::lgetxattr(&path, "user.overlay.opaque", &mut value)?;
            assert_eq!(&value[..len], b"y");
        }
        let names: BTreeSet<_> = seen.keys().collect();
        let expected_names: BTreeSet<_> = expected.keys().collect();
        assert_eq!(names, expected_names);
        for (path, expected) in &expected {
            let mut seen = seen.remove(path).unwrap();
            if expected.kind == "char 0:0" {
                // Nothing but its type matters to overlayfs.
                seen = Seen {
                    mode: expected.mode,
                    mtime: expected.mtime,
                    ..seen
                };
            }
            if seen.content != expected.content {
                return Err(format!("{path}: other content").into());
            }
            assert_eq!(seen, *expected, "{path}");
        }
        let root = fs::metadata(&diff)?;
        assert_eq!(
            (root.mode() & 0o7777, root.uid(), root.gid()),
            (0o555, 0, 0)
        );
        let su = fs::metadata(diff.join("bin/su"))?;
        let su3 = fs::metadata(diff.join("bin/su3"))?;
        assert_eq!(su.ino(), su3.ino(), "names of one file");
    }
    Ok(())
}

pub(crate) fn ten_thousand_names() -> Result<(), Failed> {
    let lab = Lab::new();
    let mut entries = vec![Entry::dir("many")];
    let names: BTreeSet<String> = (0..10_000)
        .map(|n| format!("{n}-{}", "x".repeat(n % 200)))
        .collect();
    entries.extend(
        names
            .iter()
            .map(|name| Entry::file(format!("many/{name}"), "")),
    );
    for lazy in [Lazy::estargz(), Lazy::zstd_chunked()] {
        let many = lab.serve(&Layer::build(&entries, &lazy)?).join("many");
        // Cold, from the kernel's cache, and by several at once.
        let list = |many: &Path| -> BTreeSet<String> {
            let mut listed = BTreeSet::new();
            for entry in fs::read_dir(many).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                assert!(listed.insert(name), "a name is listed twice");
            }
            listed
        };
        std::thread::scope(|scope| {
            let lists: Vec<_> = (0..3).map(|_| scope.spawn(|| list(&many))).collect();
            for listed in lists {
                assert_eq!(listed.join().unwrap(), names);
            }
        });
        assert_eq!(list(&many), names);
    }
    Ok(())
}

/// What the store's own child does ahead of a start, so that the start sends nothing.
pub(crate) fn looked_up_ahead() -> Result<(), Failed> {
    let mut lab = Lab::new();
    let mut entries = vec![Entry::dir("listed"), Entry::dir("named")];
    for n in 0..200 {
        entries.push(Entry::file(format!("listed/{n}"), "content"));
        entries.push(Entry::file(format!("named/{n}"), "content"));
    }
    let diff = lab.serve(&Layer::build(&entries, &Lazy::zstd_chunked())?);
    let diff = fs::canonicalize(diff)?;
    let layers = diff.ancestors().nth(3).unwrap();
    let below = diff.strip_prefix(layers)?.to_str().unwrap();
    let input = format!("{below}/listed/\0{below}/named/7\0{below}/none\0");
    forelayer::prefetch::warm::look_up(layers, input.as_bytes())?;
    let before = lab.store.metrics();
    for n in 0..200 {
        fs::symlink_metadata(diff.join(format!("listed/{n}")))?;
    }
    fs::symlink_metadata(diff.join("named/7"))?;
    assert!(!diff.join("none").exists());
    let after = lab.store.metrics();
    let sent = crate::lab::messages(&before, &after, forelayer::mount::MountName::Plain);
    assert!(sent.is_empty(), "{sent:?}");
    fs::symlink_metadata(diff.join("named/8"))?;
    let later = lab.store.metrics();
    let sent = crate::lab::messages(&after, &later, forelayer::mount::MountName::Plain);
    assert_eq!(sent.get("lookup"), Some(&1), "{sent:?}");
    Ok(())
}

pub(crate) fn two_references() -> Result<(), Failed> {
    let lab = Lab::new();
    let entries = everything(false);
    let layer = Layer::build(&entries, &Lazy::zstd_chunked())?;
    let other = Layer::build(&[Entry::file("other", "other")], &Lazy::zstd_chunked())?;
    let one = lab.publish("one", std::slice::from_ref(&layer));
    let two = lab.publish("two", &[layer.clone(), other]);
    let trees = [&one, &two].map(|reference| lab.target(reference, &layer.digest).join("diff"));
    let expected = expected(&entries).len();
    std::thread::scope(|scope| {
        let walks: Vec<_> = trees
            .iter()
            .cycle()
            .take(6)
            .map(|tree| scope.spawn(|| seen(tree).len()))
            .collect();
        for walk in walks {
            assert_eq!(walk.join().unwrap(), expected);
        }
    });
    let inodes = trees
        .each_ref()
        .map(|tree| fs::metadata(tree).unwrap().ino());
    assert_eq!(inodes[0], inodes[1], "one tree a blob");
    Ok(())
}
