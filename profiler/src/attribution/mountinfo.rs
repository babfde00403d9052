//! `/proc/<pid>/mountinfo` (proc_pid_mountinfo(5)), as far as attribution needs it.

use std::{
    ffi::OsString,
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
};

/// One mount of a process's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The file system's device as the kernel writes it in events: `major << 20 | minor`.
    pub device: u32,
    /// Which directory of the file system is mounted.
    pub root: PathBuf,
    /// Where, as seen from the process's root.
    pub point: PathBuf,
    /// Type of the file system.
    pub fs_type: String,
    /// The file system's own options, octal escapes still in place: their meaning depends on them.
    pub options: Vec<u8>,
}

/// The mounts that `text` lists, in its order; lines that are not as the kernel writes them are skipped.
pub fn parse(text: &[u8]) -> impl Iterator<Item = Mount> + '_ {
    text.split(|&b| b == b'\n').filter_map(parse_line)
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&b| b == b' ');
    let device = parse_device(fields.by_ref().nth(2)?)?;
    let root = path(fields.next()?);
    let point = path(fields.next()?);
    // Mount options and any number of optional fields end with a lone hyphen.
    fields.by_ref().find(|field| *field == b"-")?;
    let fs_type = String::from_utf8(unescape(fields.next()?)).ok()?;
    let options = fields.nth(1)?.to_vec();
    Some(Mount {
        device,
        root,
        point,
        fs_type,
        options,
    })
}

/// `major:minor` in decimal to the number in the kernel's events; 12 bits and 20 bits, as the kernel has them.
fn parse_device(field: &[u8]) -> Option<u32> {
    let (major, minor) = std::str::from_utf8(field).ok()?.split_once(':')?;
    let (major, minor): (u32, u32) = (major.parse().ok()?, minor.parse().ok()?);
    (major < 1 << 12 && minor < 1 << 20).then_some(major << 20 | minor)
}

fn path(field: &[u8]) -> PathBuf {
    OsString::from_vec(unescape(field)).into()
}

/// One byte of an escaped text: what it stands for, whether it was written as an escape, and what follows it.
pub(super) fn next_byte(text: &[u8]) -> Option<(u8, bool, &[u8])> {
    match *text {
        [
            b'\\',
            a @ b'0'..=b'3',
            b @ b'0'..=b'7',
            c @ b'0'..=b'7',
            ref rest @ ..,
        ] => Some(((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'), true, rest)),
        [byte, ref rest @ ..] => Some((byte, false, rest)),
        [] => None,
    }
}

/// Undoes the kernel's octal escapes (`\040` for a space).
pub(super) fn unescape(mut text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    while let Some((byte, _, rest)) = next_byte(text) {
        bytes.push(byte);
        text = rest;
    }
    bytes
}

/// The mount that a process sees as its root directory: the last one made there.
pub(super) fn root_mount(text: &[u8]) -> Option<Mount> {
    parse(text)
        .filter(|mount| mount.point == Path::new("/"))
        .last()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_manual_s_example() {
        let text = b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 propagate_from:2 - ext3 /dev/root rw,errors=continue\n";
        let mounts: Vec<Mount> = parse(text).collect();
        assert_eq!(
            mounts,
            [Mount {
                device: 98 << 20,
                root: "/mnt1".into(),
                point: "/mnt 2".into(),
                fs_type: "ext3".into(),
                options: b"rw,errors=continue".to_vec(),
            }]
        );
    }

    #[test]
    fn this_machine_s_own_list_is_understood_whole() {
        let text = std::fs::read("/proc/self/mountinfo").unwrap();
        let lines = text
            .split(|&b| b == b'\n')
            .filter(|l| !l.is_empty())
            .count();
        assert!(lines > 0);
        assert_eq!(parse(&text).count(), lines);
    }

    #[test]
    fn the_last_mount_on_the_root_is_the_one_seen() {
        let text = b"1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:50 / / rw - overlay overlay rw,lowerdir=/a\n";
        assert_eq!(root_mount(text).unwrap().device, 50);
    }

    /// As the kernel's seq_path does it.
    fn escape(text: &[u8]) -> Vec<u8> {
        text.iter()
            .flat_map(|&b| {
                if b" \t\n\\#".contains(&b) {
                    format!("\\{b:03o}").into_bytes()
                } else {
                    vec![b]
                }
            })
            .collect()
    }

    proptest! {
        #[test]
        fn any_name_survives_the_kernel_s_escapes(name in proptest::collection::vec(1u8.., 0..40)) {
            prop_assert_eq!(unescape(&escape(&name)), name);
        }

        #[test]
        fn any_mount_point_is_read_back(
            names in proptest::collection::vec(proptest::collection::vec(1u8.., 1..20), 1..5),
            minor in 0u32..1 << 20,
        ) {
            let mut text = Vec::new();
            for name in &names {
                text.extend_from_slice(format!("36 35 0:{minor} / /").as_bytes());
                text.extend(escape(name));
                text.extend_from_slice(b" rw shared:1 - fuse.x x rw\n");
            }
            let points: Vec<Vec<u8>> = parse(&text)
                .map(|m| m.point.into_os_string().into_vec())
                .collect();
            let wanted: Vec<Vec<u8>> = names.iter().map(|n| [b"/", n.as_slice()].concat()).collect();
            prop_assert_eq!(points, wanted);
        }

        #[test]
        fn nothing_panics(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&text).count();
        }
    }
}
