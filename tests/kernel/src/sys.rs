//! Mapping a file where the kernel's windows are known, and a mount namespace of one's own.
#![expect(unsafe_code, reason = "neither has a safe interface")]

use std::fs::File;
use std::io;
use std::ptr;

use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

/// The kernel maps up to this many cached bytes around a fault, aligned to it (`fault_around_bytes`, 64 KiB everywhere).
const WINDOW: usize = 64 * 1024;

/// Maps the file's first `length` bytes at an address that is a multiple of the fault-around window, and reads one byte
/// of each of the given pages.
///
/// # Errors
/// The mapping was refused. Pages past the end of the file must not be asked for: reading them ends the process.
pub fn touch_mapped(
    file: &File,
    length: usize,
    pages: impl Iterator<Item = usize>,
) -> io::Result<u64> {
    let reserved = length + WINDOW;
    // SAFETY: a fresh mapping at a place of the kernel's choosing.
    let place = unsafe {
        mmap_anonymous(
            ptr::null_mut(),
            reserved,
            ProtFlags::empty(),
            MapFlags::PRIVATE,
        )?
    };
    let aligned = place
        .cast::<u8>()
        .wrapping_add(place.addr().wrapping_neg() % WINDOW);
    let mut sum = 0u64;
    // SAFETY: `aligned..aligned + length` lies inside the reservation made above, which nothing else uses; the pages
    // read lie inside the mapping, which stays until the end of this block.
    unsafe {
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        mmap(aligned.cast(), length, ProtFlags::READ, flags, file, 0)?;
        for page in pages.filter(|page| page * 4096 < length) {
            sum = sum.wrapping_add(u64::from(aligned.add(page * 4096).read_volatile()));
        }
        munmap(place, reserved)?;
    }
    Ok(sum)
}

/// Moves this process into a mount namespace of its own.
///
/// # Errors
/// Not privileged.
pub fn unshare_mounts() -> io::Result<()> {
    // SAFETY: only the mount namespace is left; nothing in memory or among the descriptors is shared differently.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS)? };
    Ok(())
}
