//! A file mapped read-only, as a slice of bytes.
//!
//! Invariant: only files that are written once, under another name, and never changed afterwards are mapped.

#![expect(unsafe_code, reason = "mapping a file into memory")]

use std::{fs::File, io, ops::Deref, ptr::NonNull};

use rustix::mm::{MapFlags, ProtFlags};

/// A whole file, mapped read-only. Its pages are the page cache's: they cost no memory of the process and come back
/// from disk when they are needed again.
///
/// If the file is made shorter while it is mapped, touching what is gone kills the process (SIGBUS): callers map only
/// files that nobody writes to, and check the length first.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is read-only and belongs to this object alone; nothing in it depends on the thread.
unsafe impl Send for Mapping {}
// SAFETY: as above; shared readers only read.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `file` from its start to its present length.
    ///
    /// # Errors
    /// When the length cannot be read, does not fit the address space, is 0, or the kernel refuses the mapping.
    pub fn open(file: &File) -> io::Result<Self> {
        let len = usize::try_from(file.metadata()?.len())
            .map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        if len == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file is empty",
            ));
        }
        // SAFETY: no address is asked for, so no existing mapping is replaced; the length is not 0 and the descriptor
        // is open.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ,
                MapFlags::SHARED,
                file,
                0,
            )
        }?;
        let start = NonNull::new(start.cast())
            .ok_or_else(|| io::Error::other("the kernel mapped the file at address 0"))?;
        Ok(Self { start, len })
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` is the start of a readable mapping of `len` bytes that lives as long as `self`; by this
        // module's invariant nobody writes to the file.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly what `open` mapped, unmapped once; no slice of it outlives `self`.
        // A failure is impossible for such a range and could not be acted upon.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_mapping_shows_the_file() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[5; 5000]).unwrap();
        let mapping = Mapping::open(&file).unwrap();
        drop(file);
        assert_eq!(&mapping[..], &[5; 5000][..]);
    }

    #[test]
    fn an_empty_file_cannot_be_mapped() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(
            Mapping::open(&file).unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
    }
}
