//! The image of everything that is difficult in a layer, made in a mounted container so that the engine's own tar
//! writer and overlayfs's own whiteouts are tested, not ours.

use std::{
    ffi::CString,
    fs,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{PermissionsExt as _, symlink},
    },
    path::Path,
};

use anyhow::{Context as _, Result};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};

/// `cap_dac_override=ep` as `security.capability` (revision 2, effective).
const DAC_OVERRIDE: [u8; 20] = [1, 0, 0, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// The layer with everything in it.
pub(super) fn below(root: &Path) -> Result<()> {
    let top = root.join("hard");
    fs::create_dir(&top)?;
    contents(&top)?;
    names(&top)?;
    links_and_devices(&top)?;
    permissions(root, &top)?;
    extended_attributes(&top)?;
    times(&top)?;
    let many = top.join("many");
    fs::create_dir(&many)?;
    for number in 0..10_000 {
        fs::write(many.join(format!("entry-{number:05}")), [])?;
    }
    doomed(&top)
}

/// The layer that takes away, hides and replaces.
pub(super) fn above(root: &Path) -> Result<()> {
    let top = root.join("hard/doomed");
    fs::remove_file(top.join("file"))?;
    fs::remove_dir_all(top.join("directory"))?;
    // Removed and made again: an opaque directory.
    fs::remove_dir_all(top.join("opaque"))?;
    fs::create_dir(top.join("opaque"))?;
    fs::write(top.join("opaque/new"), "only this one\n")?;
    fs::create_dir(top.join("opaque/below"))?;
    fs::write(top.join("opaque/below/new"), "and this one\n")?;
    fs::remove_dir_all(top.join("empty-opaque"))?;
    fs::create_dir(top.join("empty-opaque"))?;
    // Each kind becomes another.
    fs::remove_file(top.join("file-to-directory"))?;
    fs::create_dir(top.join("file-to-directory"))?;
    fs::write(top.join("file-to-directory/inside"), "x")?;
    fs::remove_dir_all(top.join("directory-to-file"))?;
    fs::write(top.join("directory-to-file"), "a file now\n")?;
    fs::remove_dir_all(top.join("directory-to-link"))?;
    symlink("opaque", top.join("directory-to-link"))?;
    // Changed in place, by content and by mode only.
    fs::write(top.join("changed"), "changed\n")?;
    fs::set_permissions(top.join("mode"), fs::Permissions::from_mode(0o640))?;
    // Merged: one gone, one new, one untouched.
    fs::remove_file(top.join("merged/gone"))?;
    fs::write(top.join("merged/new"), "new\n")?;
    // One name of three goes; the others stay links of each other.
    fs::remove_file(root.join("hard/links/second"))?;
    Ok(())
}

fn doomed(top: &Path) -> Result<()> {
    let doomed = top.join("doomed");
    for directory in [
        "directory/deep",
        "opaque/below",
        "opaque/old-directory",
        "empty-opaque/old",
        "directory-to-file/deep",
        "directory-to-link",
        "merged",
    ] {
        fs::create_dir_all(doomed.join(directory))?;
    }
    for file in [
        "file",
        "directory/file",
        "directory/deep/file",
        "opaque/old",
        "opaque/below/old",
        "opaque/old-directory/old",
        "empty-opaque/old/old",
        "file-to-directory",
        "directory-to-file/deep/file",
        "directory-to-link/file",
        "changed",
        "mode",
        "merged/gone",
        "merged/kept",
    ] {
        fs::write(doomed.join(file), format!("old {file}\n"))?;
    }
    Ok(())
}

/// Bytes that no codec shrinks, the same at every build.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        // xorshift64*
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Files around the sizes at which chunks and pages begin and end.
fn contents(top: &Path) -> Result<()> {
    let directory = top.join("contents");
    fs::create_dir(&directory)?;
    for (number, length) in [
        0,
        1,
        511,
        512,
        513,
        4095,
        4096,
        4097,
        65_535,
        65_536,
        1 << 20,
        (4 << 20) - 1,
        4 << 20,
        (4 << 20) + 1,
        9 << 20,
    ]
    .into_iter()
    .enumerate()
    {
        fs::write(
            directory.join(format!("noise-{length}")),
            noise(length, number as u64 + 1),
        )?;
    }
    fs::write(
        directory.join("text"),
        "the same line again and again\n".repeat(50_000),
    )?;
    fs::write(directory.join("zeros"), vec![0; 3 << 20])?;
    let mut holes = noise(100_000, 77);
    holes.extend(vec![0; 5 << 20]);
    holes.extend(noise(100_000, 78));
    holes.extend(vec![0; 2000]);
    holes.extend(noise(10, 79));
    holes.extend(vec![0; 70_000]);
    fs::write(directory.join("holes"), holes)?;
    // A real hole, at the end as well.
    let file = fs::File::create(directory.join("sparse"))?;
    std::os::unix::fs::FileExt::write_all_at(&file, b"in the middle", 6 << 20)?;
    file.set_len(12 << 20)?;
    // The same content twice, in two files of one layer.
    fs::write(directory.join("twin-a"), noise(200_000, 99))?;
    fs::write(directory.join("twin-b"), noise(200_000, 99))?;
    Ok(())
}

fn names(top: &Path) -> Result<()> {
    let directory = top.join("names");
    fs::create_dir(&directory)?;
    for length in [99, 100, 101, 154, 155, 156, 254, 255] {
        fs::write(directory.join("n".repeat(length)), format!("{length}\n"))?;
    }
    for name in [
        "with blank",
        "with\nline end",
        "with\ttab",
        "back\\slash",
        "quote\"s'",
        "umlaut-äöü",
        "字",
        "\u{1f40b}",
        "-dash",
        ".hidden",
        "...",
        "wh.harmless",
        "a:b@c",
        "colon:",
        "stargz.index.json",
    ] {
        fs::write(directory.join(name), format!("{name}\n"))?;
    }
    let mut deep = directory.join("deep");
    for level in 0..40 {
        deep.push(format!("level-{level:02}-of-a-long-path"));
    }
    // About 900 bytes: far beyond what a plain tar header holds.
    fs::create_dir_all(&deep)?;
    fs::write(deep.join("file"), "deep\n")?;
    symlink("y".repeat(300), directory.join("long-target"))?;
    Ok(())
}

fn links_and_devices(top: &Path) -> Result<()> {
    let links = top.join("links");
    fs::create_dir(&links)?;
    fs::write(links.join("first"), "three names\n")?;
    fs::hard_link(links.join("first"), links.join("second"))?;
    fs::create_dir(links.join("aside"))?;
    fs::hard_link(links.join("first"), links.join("aside/third"))?;
    fs::write(links.join("empty"), "")?;
    fs::hard_link(links.join("empty"), links.join("empty-too"))?;
    symlink("first", links.join("relative"))?;
    symlink("/hard/links/first", links.join("absolute"))?;
    symlink("nowhere/at/all", links.join("dangling"))?;
    symlink(".", links.join("self"))?;

    let devices = top.join("devices");
    fs::create_dir(&devices)?;
    let make = |name: &str, kind: FileType, mode: u32, major: u32, minor: u32| {
        rustix::fs::mknodat(
            CWD,
            devices.join(name),
            kind,
            Mode::from_raw_mode(mode),
            rustix::fs::makedev(major, minor),
        )
        .with_context(|| format!("cannot make the device {name}"))
    };
    make("null", FileType::CharacterDevice, 0o666, 1, 3)?;
    make("wide", FileType::CharacterDevice, 0o600, 511, 70_000)?;
    make("loop", FileType::BlockDevice, 0o660, 7, 0)?;
    make("fifo", FileType::Fifo, 0o622, 0, 0)
}

fn permissions(root: &Path, top: &Path) -> Result<()> {
    let directory = top.join("permissions");
    fs::create_dir(&directory)?;
    for mode in [
        0o000, 0o400, 0o644, 0o755, 0o1644, 0o2755, 0o4755, 0o6711, 0o7777,
    ] {
        let path = directory.join(format!("mode-{mode:04o}"));
        fs::write(&path, "mode\n")?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    }
    for mode in [0o700, 0o1777, 0o2775] {
        let path = directory.join(format!("directory-{mode:04o}"));
        fs::create_dir(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    }
    for (name, uid, gid) in [
        ("user", 1000, 1000),
        ("nobody", 65_534, 65_534),
        ("big", 2_000_000, 3_000_000),
        ("mixed", 0, 42),
    ] {
        let path = directory.join(name);
        fs::write(&path, name)?;
        std::os::unix::fs::chown(&path, Some(uid), Some(gid))?;
        let link = directory.join(format!("{name}-link"));
        symlink(name, &link)?;
        rustix::fs::chownat(
            CWD,
            &link,
            Some(Uid::from_raw(uid)),
            Some(Gid::from_raw(gid)),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
    }
    // A program that says whose rights it has, and one that may read what its caller may not.
    let setuid = directory.join("id-setuid");
    fs::copy(root.join("usr/bin/id"), &setuid)?;
    fs::set_permissions(&setuid, fs::Permissions::from_mode(0o4755))?;
    let capable = directory.join("cat-capable");
    fs::copy(root.join("usr/bin/cat"), &capable)?;
    fs::set_permissions(&capable, fs::Permissions::from_mode(0o755))?;
    set(&capable, "security.capability", &DAC_OVERRIDE)?;
    let secret = directory.join("secret");
    fs::write(&secret, "read by root and the capable only\n")?;
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600))?;
    Ok(())
}

fn extended_attributes(top: &Path) -> Result<()> {
    let directory = top.join("attributes");
    fs::create_dir(&directory)?;
    let file = directory.join("file");
    fs::write(&file, "with attributes\n")?;
    set(&file, "user.text", b"a value")?;
    set(&file, "user.binary", &[0, 255, 10, 0, 128])?;
    set(&file, "user.empty", b"")?;
    set(&file, "user.long", &noise(1500, 5))?;
    set(&directory, "user.on-a-directory", b"yes")
}

fn set(path: &Path, name: &str, value: &[u8]) -> Result<()> {
    rustix::fs::setxattr(path, name, value, XattrFlags::empty())
        .with_context(|| format!("cannot set {name} of {}", path.display()))
}

fn times(top: &Path) -> Result<()> {
    let directory = top.join("times");
    fs::create_dir(&directory)?;
    for (name, seconds, nanoseconds) in [
        ("epoch", 0, 0),
        ("one", 1, 0),
        ("fraction", 1_600_000_000, 123_456_789),
        ("after-2038", 4_102_444_800, 0),
    ] {
        let path = directory.join(name);
        fs::write(&path, name)?;
        let time = Timespec {
            tv_sec: seconds,
            tv_nsec: nanoseconds,
        };
        let path = CString::new(path.as_os_str().as_bytes())?;
        rustix::fs::utimensat(
            CWD,
            path,
            &Timestamps {
                last_access: time,
                last_modification: time,
            },
            AtFlags::empty(),
        )?;
    }
    Ok(())
}
