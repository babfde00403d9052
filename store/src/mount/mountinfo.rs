//! `/proc/self/mountinfo`: what is mounted where, without asking anybody who serves it.

use std::{
    ffi::OsString,
    io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

/// A line of mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountLine {
    /// Major device number.
    pub major: u32,
    /// Minor device number.
    pub minor: u32,
    /// Where it is mounted.
    pub target: PathBuf,
    /// Its file system's type, with the subtype.
    pub fs_type: String,
}

impl MountLine {
    /// The device number as the kernel writes it in its events: `major << 20 | minor`. (What `stat` returns has
    /// another layout.)
    #[must_use]
    pub const fn kernel_device(&self) -> u32 {
        self.major << 20 | (self.minor & 0xf_ffff)
    }
}

/// The mounts of this process's namespace, oldest first.
///
/// # Errors
/// `/proc` is not mounted.
pub fn read() -> io::Result<Vec<MountLine>> {
    let text = std::fs::read("/proc/self/mountinfo")?;
    Ok(parse(&text))
}

/// The topmost mount at a path.
///
/// # Errors
/// `/proc` is not mounted.
pub fn at(target: &Path) -> io::Result<Option<MountLine>> {
    Ok(read()?.into_iter().rev().find(|line| line.target == target))
}

/// Lines that do not look as proc(5) says are left out.
fn parse(text: &[u8]) -> Vec<MountLine> {
    text.split(|&b| b == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<MountLine> {
    let mut fields = line.split(|&b| b == b' ');
    let device = std::str::from_utf8(fields.by_ref().nth(2)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let target = unescape(fields.by_ref().nth(1)?);
    // Optional fields of any number end with a lone dash.
    fields.by_ref().find(|&field| field == b"-")?;
    let fs_type = String::from_utf8_lossy(&unescape(fields.next()?)).into_owned();
    Some(MountLine {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        target: OsString::from_vec(target).into(),
        fs_type,
    })
}

/// The kernel writes space, tab, newline and backslash as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte == b'\\'
            && let Some((digits, tail)) = rest.split_first_chunk::<3>()
            && digits.iter().all(|d| (b'0'..=b'7').contains(d))
        {
            let value = digits
                .iter()
                .fold(0_u32, |value, d| value * 8 + u32::from(d - b'0'));
            if let Ok(value) = u8::try_from(value) {
                out.push(value);
                rest = tail;
                continue;
            }
        }
        out.push(byte);
    }
    out
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_are_taken_apart() {
        let text = b"25 30 0:23 / /sys rw,nosuid shared:7 - sysfs sysfs rw\n\
            41 30 0:351 / /var/lib/a\\040b/store rw,nosuid,nodev - fuse.forelayer forelayer rw,user_id=0\n\
            garbage\n";
        let lines = parse(text);
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].fs_type, "sysfs");
        assert_eq!(lines[1].target, Path::new("/var/lib/a b/store"));
        assert_eq!(lines[1].fs_type, "fuse.forelayer");
        assert_eq!(lines[1].kernel_device(), 351);
        assert_eq!(
            MountLine {
                major: 254,
                ..lines[1].clone()
            }
            .kernel_device(),
            254 << 20 | 351
        );
    }

    #[test]
    fn this_machine_has_a_root() {
        assert!(at(Path::new("/")).unwrap().is_some());
        assert!(at(Path::new("/no such mount")).unwrap().is_none());
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            parse(&text);
        }

        #[test]
        fn any_path_survives_the_kernels_escapes(path in proptest::collection::vec(1_u8.., 1..50)) {
            let escaped: Vec<u8> = path
                .iter()
                .flat_map(|&b| match b {
                    b' ' | b'\t' | b'\n' | b'\\' => format!("\\{b:03o}").into_bytes(),
                    _ => vec![b],
                })
                .collect();
            prop_assert_eq!(unescape(&escaped), path);
        }
    }
}
