//! Records of the ring buffer to [`Event`]s.
//!
//! Invariant kept here: a record that is too short or of an unknown kind is skipped, whatever its bytes are.

use std::ffi::OsString;
use std::mem::offset_of;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use forelayer_events::{
    ACCESS_ADD, ACCESS_MAP, ExecRecord, ForkRecord, Header, KIND_EXEC, KIND_EXIT, KIND_FORK,
    KIND_OPEN, KIND_TOUCH, OpenRecord, PATH_CUT, PATH_MAX, TouchRecord,
};

use super::{Event, Origin};
use crate::protocol::Access;

/// Appends what the record says: one event, or for a touch one for each run of pages.
pub(super) fn decode(record: &[u8], into: &mut Vec<Event>) {
    let _ = try_decode(record, into);
}

fn try_decode(record: &[u8], into: &mut Vec<Event>) -> Option<()> {
    let kind = u16::from_ne_bytes(bytes(record, offset_of!(Header, kind))?);
    let flags = u16::from_ne_bytes(bytes(record, offset_of!(Header, flags))?);
    let origin = Origin {
        ktime_ns: long(record, offset_of!(Header, ktime_ns))?,
        cgroup: long(record, offset_of!(Header, cgroup))?,
        mnt_ns: int(record, offset_of!(Header, mnt_ns))?,
        pid: int(record, offset_of!(Header, tgid))?,
        tid: int(record, offset_of!(Header, tid))?,
    };
    match kind {
        KIND_TOUCH => {
            let access = match flags {
                ACCESS_MAP => Access::Map,
                ACCESS_ADD => Access::Add,
                _ => Access::Read,
            };
            let dev = int(record, offset_of!(TouchRecord, dev))?;
            let ino = long(record, offset_of!(TouchRecord, ino))?;
            let base = long(record, offset_of!(TouchRecord, page))?;
            let bits = long(record, offset_of!(TouchRecord, bits))?;
            let run = |page, pages| Event::Touch {
                origin,
                dev,
                ino,
                page,
                pages,
                access,
            };
            if bits == 0 {
                let pages = int(record, offset_of!(TouchRecord, pages))?;
                if pages > 0 {
                    into.push(run(base, pages));
                }
            } else {
                into.extend(
                    runs(bits)
                        .map(|(first, pages)| run(base.saturating_add(u64::from(first)), pages)),
                );
            }
        }
        KIND_OPEN => into.push(Event::Open {
            origin,
            path: path(
                record,
                offset_of!(OpenRecord, path),
                offset_of!(OpenRecord, path_len),
            )?,
            cut: flags & PATH_CUT != 0,
            dirfd: signed(record, offset_of!(OpenRecord, dirfd))?,
            result: signed(record, offset_of!(OpenRecord, result))?,
        }),
        KIND_EXEC => into.push(Event::Exec {
            origin,
            path: path(
                record,
                offset_of!(ExecRecord, path),
                offset_of!(ExecRecord, path_len),
            )?,
        }),
        KIND_FORK => into.push(Event::Fork {
            origin,
            child: int(record, offset_of!(ForkRecord, child))?,
        }),
        KIND_EXIT => into.push(Event::Exit { origin }),
        _ => return None,
    }
    Some(())
}

/// Runs of set bits: (first bit, length).
fn runs(mut bits: u64) -> impl Iterator<Item = (u32, u32)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if bits == 0 {
            return None;
        }
        let skip = bits.trailing_zeros();
        bits >>= skip;
        let length = bits.trailing_ones();
        let first = at + skip;
        at = first + length;
        bits = bits.checked_shr(length).unwrap_or(0);
        Some((first, length))
    })
}

fn path(record: &[u8], at: usize, length_at: usize) -> Option<PathBuf> {
    let length = usize::try_from(int(record, length_at)?).ok()?.min(PATH_MAX);
    let text = record.get(at..at.checked_add(length)?)?;
    Some(PathBuf::from(OsString::from_vec(text.to_vec())))
}

fn bytes<const N: usize>(record: &[u8], at: usize) -> Option<[u8; N]> {
    record.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn long(record: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes(record, at)?))
}

fn int(record: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes(record, at)?))
}

fn signed(record: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_ne_bytes(bytes(record, at)?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use proptest::prelude::*;

    fn touch(bits: u64, pages: u32) -> Vec<u8> {
        let mut record = Vec::new();
        record.extend_from_slice(&KIND_TOUCH.to_ne_bytes());
        record.extend_from_slice(&ACCESS_MAP.to_ne_bytes());
        record.extend_from_slice(&7u32.to_ne_bytes());
        record.extend_from_slice(&11u64.to_ne_bytes());
        record.extend_from_slice(&13u64.to_ne_bytes());
        record.extend_from_slice(&17u32.to_ne_bytes());
        record.extend_from_slice(&19u32.to_ne_bytes());
        record.extend_from_slice(&23u64.to_ne_bytes());
        record.extend_from_slice(&64u64.to_ne_bytes());
        record.extend_from_slice(&bits.to_ne_bytes());
        record.extend_from_slice(&pages.to_ne_bytes());
        record.extend_from_slice(&29u32.to_ne_bytes());
        record
    }

    #[test]
    fn a_word_becomes_its_runs() {
        let mut events = Vec::new();
        decode(&touch(0b1101 | 1 << 63, 0), &mut events);
        let origin = Origin {
            ktime_ns: 11,
            cgroup: 13,
            mnt_ns: 7,
            pid: 17,
            tid: 19,
        };
        let run = |page, pages| Event::Touch {
            origin,
            dev: 29,
            ino: 23,
            page,
            pages,
            access: Access::Map,
        };
        assert_eq!(events, [run(64, 1), run(66, 2), run(127, 1)]);
    }

    #[test]
    fn a_run_without_bits_is_taken_whole() {
        let mut events = Vec::new();
        decode(&touch(0, 9000), &mut events);
        assert!(matches!(
            events[..],
            [Event::Touch {
                page: 64,
                pages: 9000,
                ..
            }]
        ));
    }

    #[test]
    fn a_full_word_is_one_run() {
        assert_eq!(runs(u64::MAX).collect::<Vec<_>>(), [(0, 64)]);
    }

    proptest! {
        /// Every page whose bit is set is in exactly one run, and no other page is.
        #[test]
        fn runs_are_the_bits(bits: u64) {
            let mut again = 0u64;
            for (first, length) in runs(bits) {
                for bit in first..first + length {
                    prop_assert_eq!(again >> bit & 1, 0);
                    again |= 1 << bit;
                }
            }
            prop_assert_eq!(again, bits);
        }

        #[test]
        fn any_bytes_are_read_without_panic(record: Vec<u8>, kind in 0u16..7) {
            let mut events = Vec::new();
            decode(&record, &mut events);
            let mut typed = kind.to_ne_bytes().to_vec();
            typed.extend(record);
            decode(&typed, &mut events);
        }
    }
}
