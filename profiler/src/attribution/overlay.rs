//! What an overlay's mount options say: its lower directories and where the engine keeps them.

use std::{
    ffi::OsString,
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
};

use super::mountinfo::{self, Mount};

/// An overlay mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    /// Its device, `major << 20 | minor`: each mount has its own while it lives.
    pub device: u32,
    /// Where it is mounted, as seen from the process that was asked.
    pub point: PathBuf,
    /// Lower directories, topmost first; relative where the engine mounted from within its storage to keep the options
    /// short.
    pub lower: Vec<PathBuf>,
    /// The upper directory; none on a read-only overlay.
    pub upper: Option<PathBuf>,
}

impl Overlay {
    /// The overlay that `mount` is, if it is one.
    #[must_use]
    pub fn of(mount: &Mount) -> Option<Self> {
        if mount.fs_type != "overlay" {
            return None;
        }
        let mut lower = Vec::new();
        let mut upper = None;
        // A comma within a value is written as an escape.
        for option in mount.options.split(|&b| b == b',') {
            let Some(at) = option.iter().position(|&b| b == b'=') else {
                continue;
            };
            let (name, value) = (&option[..at], &option[at + 1..]);
            match name {
                // "lowerdir+" and "datadir+" come one a directory, from mounts made by fsconfig(2).
                b"lowerdir" | b"lowerdir+" | b"datadir+" => lower.extend(split_lower(value)),
                b"upperdir" => {
                    upper = Some(OsString::from_vec(mountinfo::unescape(value)).into());
                }
                _ => {}
            }
        }
        (!lower.is_empty()).then(|| Self {
            device: mount.device,
            point: mount.point.clone(),
            lower,
            upper,
        })
    }

    /// The directory of the engine's storage that relative lower directories start from (`<graph root>/overlay`), as
    /// far as the upper directory `<graph root>/overlay/<layer>/diff` tells.
    pub(super) fn storage_dir(&self) -> Option<PathBuf> {
        let upper = self.upper.as_deref().filter(|path| path.is_absolute())?;
        upper.ancestors().nth(2).map(Path::to_path_buf)
    }

    /// The same from where the engine mounted it, `<graph root>/overlay/<layer>/merged`.
    pub(super) fn storage_dir_of_point(&self) -> Option<PathBuf> {
        self.point
            .ends_with("merged")
            .then(|| self.point.ancestors().nth(2).map(Path::to_path_buf))
            .flatten()
    }
}

/// Splits a list of lower directories at its colons.
///
/// Two spellings of a colon within a name occur: up to Linux 6.4 the text of the mount call is shown again, where a
/// backslash (itself shown as `\134`) takes away the meaning of what follows; later kernels show `\072`. Two colons
/// in a row start the data-only layers.
fn split_lower(mut text: &[u8]) -> Vec<PathBuf> {
    let mut names = vec![Vec::new()];
    let mut literal = false;
    while let Some((byte, escaped, rest)) = mountinfo::next_byte(text) {
        text = rest;
        match byte {
            b'\\' if !literal => {
                literal = true;
                continue;
            }
            b':' if !literal && !escaped => names.push(Vec::new()),
            _ => {
                if let Some(name) = names.last_mut() {
                    name.push(byte);
                }
            }
        }
        literal = false;
    }
    names
        .into_iter()
        .filter(|name| !name.is_empty())
        .map(|name| OsString::from_vec(name).into())
        .collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    fn overlay(options: &str) -> Option<Overlay> {
        let line = format!("36 35 0:45 / /x/overlay/abc/merged rw - overlay overlay {options}\n");
        Overlay::of(&mountinfo::parse(line.as_bytes()).next().unwrap())
    }

    #[test]
    fn as_podman_mounts_it() {
        let found = overlay(
            "rw,lowerdir=/g/overlay/l/AAA:/g/overlay/l/BBB,upperdir=/g/overlay/abc/diff,workdir=/g/overlay/abc/work,nouserxattr",
        )
        .unwrap();
        assert_eq!(
            found.lower,
            [Path::new("/g/overlay/l/AAA"), Path::new("/g/overlay/l/BBB")]
        );
        assert_eq!(found.storage_dir().unwrap(), Path::new("/g/overlay"));
        assert_eq!(
            found.storage_dir_of_point().unwrap(),
            Path::new("/x/overlay")
        );
    }

    #[test]
    fn as_podman_mounts_it_from_within() {
        let found = overlay("rw,lowerdir=l/AAA:l/BBB,upperdir=abc/diff,workdir=abc/work").unwrap();
        assert_eq!(found.lower, [Path::new("l/AAA"), Path::new("l/BBB")]);
        assert_eq!(found.storage_dir(), None);
    }

    #[test]
    fn as_the_new_mount_calls_show_it() {
        let found = overlay("ro,lowerdir+=/a\\072b,lowerdir+=/c,datadir+=/d").unwrap();
        assert_eq!(
            found.lower,
            [Path::new("/a:b"), Path::new("/c"), Path::new("/d")]
        );
        assert_eq!(found.upper, None);
    }

    #[test]
    fn other_file_systems_are_none() {
        let line = b"36 35 0:45 / / rw - ext4 /dev/sda lowerdir=/a\n";
        assert_eq!(Overlay::of(&mountinfo::parse(line).next().unwrap()), None);
        assert_eq!(overlay("rw,upperdir=/a"), None);
    }

    /// A mount call's escapes (up to Linux 6.4), then the kernel's.
    fn old_kernel(name: &[u8]) -> Vec<u8> {
        let mut text = Vec::new();
        for &b in name {
            if b == b':' || b == b'\\' {
                text.extend_from_slice(b"\\134");
            }
            match b {
                b',' | b'=' | b' ' | b'\t' | b'\n' | b'\\' => {
                    text.extend_from_slice(format!("\\{b:03o}").as_bytes());
                }
                _ => text.push(b),
            }
        }
        text
    }

    fn new_kernel(name: &[u8]) -> Vec<u8> {
        let mut text = Vec::new();
        for &b in name {
            if b":, \t\n\\".contains(&b) {
                text.extend_from_slice(format!("\\{b:03o}").as_bytes());
            } else {
                text.push(b);
            }
        }
        text
    }

    fn read_back(text: &[u8]) -> Vec<Vec<u8>> {
        split_lower(text)
            .into_iter()
            .map(|p| p.into_os_string().into_vec())
            .collect()
    }

    proptest! {
        #[test]
        fn lists_are_read_back_as_old_kernels_write_them(
            names in proptest::collection::vec(proptest::collection::vec(1u8.., 1..20), 1..5)
        ) {
            let text = names.iter().map(|n| old_kernel(n)).collect::<Vec<_>>().join(&b':');
            prop_assert_eq!(read_back(&text), names);
        }

        #[test]
        fn lists_are_read_back_as_new_kernels_write_them(
            names in proptest::collection::vec("[a-z/:, ]{1,20}", 1..5)
        ) {
            let text = names.iter().map(|n| new_kernel(n.as_bytes())).collect::<Vec<_>>().join(&b':');
            let wanted: Vec<Vec<u8>> = names.into_iter().map(String::into_bytes).collect();
            prop_assert_eq!(read_back(&text), wanted);
        }

        #[test]
        fn nothing_panics(options in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mount = Mount {
                device: 1,
                root: "/".into(),
                point: "/".into(),
                fs_type: "overlay".into(),
                options,
            };
            let _ = Overlay::of(&mount);
        }
    }
}
