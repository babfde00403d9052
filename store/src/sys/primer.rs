//! A throw-away child that opens and closes things, for what this process must not do itself.
//!
//! A process that serves a mount must not use it: it would wait for its own answer, and `kill -9` could not end it.

#![expect(unsafe_code, reason = "fork without exec, and calls in the child")]

use std::{
    ffi::{CStr, CString},
    io,
    os::unix::ffi::OsStrExt,
    path::Path,
};

use rustix::process::{Pid, WaitOptions};

/// Opens and closes a file and a directory, and asks for an extended attribute of the file, in a child process.
///
/// Waits for the child; call it on a thread that serves nothing and runs no other tasks.
///
/// # Errors
/// No child could be made, a path holds a zero byte, or the child could not open one of them.
pub fn open_and_close(file: &Path, directory: &Path) -> io::Result<()> {
    let file = CString::new(file.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let directory = CString::new(directory.as_os_str().as_bytes()).map_err(io::Error::other)?;
    // SAFETY: fork has no arguments; the child below calls only what POSIX calls async-signal-safe, allocates
    // nothing, and leaves by `_exit`, so that no lock another thread held at the fork can matter.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let code = in_child(&file, &directory);
        // SAFETY: `_exit` may be called at any time and does not return.
        unsafe { libc::_exit(code) }
    }
    let pid = Pid::from_raw(pid)
        .filter(|_| pid > 0)
        .ok_or_else(io::Error::last_os_error)?;
    loop {
        match rustix::process::waitpid(Some(pid), WaitOptions::empty()) {
            Ok(Some((_, status))) => {
                return match status.exit_status() {
                    Some(0) => Ok(()),
                    Some(errno) => Err(io::Error::from_raw_os_error(errno)),
                    None => Err(io::Error::other("the child was killed")),
                };
            }
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// What the child does; the errno as its exit code (all of Linux's below 256 that open gives).
fn in_child(file: &CStr, directory: &CStr) -> i32 {
    // SAFETY: plain system calls on descriptors of the child's own table and on strings that end with a zero byte
    // and outlive the calls; null pointers are given with length 0 only.
    unsafe {
        // First of all no copy of the devices: a child that hangs must not keep a connection up.
        libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0);
        for (path, flags) in [(file, 0), (directory, libc::O_DIRECTORY)] {
            let fd = libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC | flags);
            if fd < 0 {
                return *libc::__errno_location();
            }
            // Whether there are attributes or not, the kernel has then heard what this connection says to it.
            libc::fgetxattr(fd, c"user.forelayer".as_ptr(), std::ptr::null_mut(), 0);
            libc::flistxattr(fd, std::ptr::null_mut(), 0);
            libc::close(fd);
        }
    }
    0
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn the_child_opens_what_is_there_and_reports_what_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, b"x").unwrap();
        open_and_close(&file, dir.path()).unwrap();

        let missing = open_and_close(&dir.path().join("none"), dir.path()).unwrap_err();
        assert_eq!(missing.raw_os_error(), Some(libc::ENOENT));
        let no_directory = open_and_close(&file, &file).unwrap_err();
        assert_eq!(no_directory.raw_os_error(), Some(libc::ENOTDIR));
    }
}
