//! `/dev/fuse`: opening it, mounting it, putting it under another descriptor's number, asking for unanswered requests
//! again.

#![expect(
    unsafe_code,
    reason = "dup3 onto a descriptor number that another object owns"
)]

use std::{
    ffi::CString,
    fs::OpenOptions,
    io,
    mem::ManuallyDrop,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    path::Path,
};

use rustix::{
    io::DupFlags,
    mount::{MountFlags, UnmountFlags},
};

/// File system type of the mounts, as mountinfo shows it.
pub const FS_TYPE: &str = "fuse.forelayer";

/// Opens a new connection.
///
/// # Errors
/// The device does not exist (no FUSE in this kernel or container) or may not be opened.
pub fn open_fuse() -> io::Result<OwnedFd> {
    // Opened close-on-exec by the standard library: children must not keep a connection up.
    OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .map(OwnedFd::from)
}

/// Mounts a connection. The kernel checks permissions from the attributes it is given (`default_permissions`) and
/// lets every user in (`allow_other`): containers come through overlayfs, everybody else is stopped by the root
/// directory's mode.
///
/// # Errors
/// What mount(2) says.
pub fn mount_fuse(device: BorrowedFd<'_>, target: &Path, read_only: bool) -> io::Result<()> {
    let options = format!(
        "fd={},rootmode=40000,user_id={},group_id={},allow_other,default_permissions",
        device.as_raw_fd(),
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    let options = CString::new(options).map_err(io::Error::other)?;
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    if read_only {
        // A read-write superblock would send a GETATTR for every file that was read (docs/design.md, "Mounts").
        flags |= MountFlags::RDONLY;
    }
    rustix::mount::mount("forelayer", target, FS_TYPE, flags, options.as_c_str())?;
    Ok(())
}

/// Takes a mount out of the tree at once; who still uses it keeps it until he is done. Does not touch the mount
/// itself, so that it works on one that nobody serves.
///
/// # Errors
/// What umount2(2) says.
pub fn unmount_lazily(target: &Path) -> io::Result<()> {
    rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
    Ok(())
}

/// Makes `number` refer to what `source` refers to (dup3 with `O_CLOEXEC`); what it referred to before is closed.
///
/// # Errors
/// What dup3(2) says.
pub fn replace(number: BorrowedFd<'_>, source: impl AsFd) -> io::Result<()> {
    // SAFETY: the descriptor is open while it is borrowed, and `ManuallyDrop` keeps this second owner from closing
    // it. dup3 keeps the number open all the time, so the real owner never sees it closed.
    let mut target = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(number.as_raw_fd()) });
    rustix::io::dup3(source, &mut target, DupFlags::CLOEXEC)?;
    Ok(())
}

/// `FUSE_NOTIFY_RESEND` (Linux 6.9): the kernel hands out again every request that was read and not answered.
const NOTIFY_RESEND: i32 = 7;

/// Asks the kernel for every request that a dead process had read and not answered. May be asked more than once.
///
/// # Errors
/// `EINVAL` before Linux 6.9.
pub fn resend(device: impl AsFd) -> io::Result<()> {
    // fuse_out_header: length, code of the notification in place of an error, unique 0.
    let mut header = [0; 16];
    header[..4].copy_from_slice(&16_u32.to_ne_bytes());
    header[4..8].copy_from_slice(&NOTIFY_RESEND.to_ne_bytes());
    rustix::io::write(device, &header)?;
    Ok(())
}
