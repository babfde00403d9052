//! Attributes as the kernel wants them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo};

use crate::format::{Entry, Kind};

/// "For ever" (136 years): what a layer holds never changes.
pub(crate) const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// The type of a node.
pub(crate) const fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::File => FileType::RegularFile,
        Kind::Symlink => FileType::Symlink,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::Fifo => FileType::NamedPipe,
    }
}

/// Attributes of something of the store's own, owned by root.
pub(crate) fn own(ino: u64, kind: FileType, perm: u16, size: u64, changed: SystemTime) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino),
        size,
        blocks: size.div_ceil(512),
        atime: changed,
        mtime: changed,
        ctime: changed,
        crtime: changed,
        kind,
        perm,
        nlink: if matches!(kind, FileType::Directory) {
            2
        } else {
            1
        },
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// Attributes of a node of a layer.
pub(crate) fn of_entry(ino: u64, entry: &Entry<'_>) -> FileAttr {
    let changed = time(entry.mtime, entry.mtime_nsec);
    FileAttr {
        perm: entry.mode & 0o7777,
        nlink: entry.nlink,
        uid: entry.uid,
        gid: entry.gid,
        rdev: device_number(entry.major, entry.minor),
        ..own(ino, file_type(entry.kind), 0, entry.size, changed)
    }
}

/// A time that the clock's type cannot hold (no tar can say one) becomes 1970.
fn time(seconds: i64, nanoseconds: u32) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let base = if seconds < 0 {
        UNIX_EPOCH.checked_sub(whole)
    } else {
        UNIX_EPOCH.checked_add(whole)
    };
    base.and_then(|base| base.checked_add(Duration::from_nanos(nanoseconds.into())))
        .unwrap_or(UNIX_EPOCH)
}

/// The layout that FUSE gives to device numbers (the kernel's `new_encode_dev`): 12 bits major, 20 bits minor.
const fn device_number(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_and_absurd_ones() {
        assert_eq!(time(0, 5), UNIX_EPOCH + Duration::from_nanos(5));
        assert_eq!(
            time(-2, 800_000_000),
            UNIX_EPOCH - Duration::new(1, 200_000_000)
        );
        assert_eq!(time(i64::MAX, u32::MAX), UNIX_EPOCH);
    }

    #[test]
    fn device_numbers_as_the_c_library_lays_them_out() {
        for (major, minor) in [(0, 0), (1, 3), (254, 1_000_000), (4095, 0xf_ffff)] {
            assert_eq!(
                u64::from(device_number(major, minor)),
                rustix::fs::makedev(major, minor),
                "{major}:{minor}"
            );
        }
    }
}
