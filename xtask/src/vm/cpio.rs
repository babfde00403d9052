//! The archive a kernel unpacks into its first root directory (cpio, "newc"; the kernel's documentation,
//! driver-api/early-userspace/buffer-format).

use std::io::Write;

use anyhow::{Context as _, Result};

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;

/// An archive that is being written.
pub(super) struct Archive<W> {
    out: W,
    inode: u32,
}

impl<W: Write> Archive<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, inode: 0 }
    }

    pub(super) fn directory(&mut self, name: &str) -> Result<()> {
        self.entry(name, DIRECTORY | 0o755, 2, &[])
    }

    pub(super) fn file(&mut self, name: &str, permissions: u32, bytes: &[u8]) -> Result<()> {
        self.entry(name, FILE | permissions, 1, bytes)
    }

    pub(super) fn finish(mut self) -> Result<()> {
        self.entry("TRAILER!!!", 0, 1, &[])?;
        self.out.flush()?;
        Ok(())
    }

    fn entry(&mut self, name: &str, mode: u32, links: u32, bytes: &[u8]) -> Result<()> {
        self.inode += 1;
        let size = u32::try_from(bytes.len()).context("a file of 4 GiB or more")?;
        let name_size = u32::try_from(name.len() + 1).context("a long name")?;
        // Inode, mode, uid, gid, links, time, size, four device numbers, length of the name, checksum (unused).
        let fields = [
            self.inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0,
        ];
        write!(self.out, "070701")?;
        for field in fields {
            write!(self.out, "{field:08X}")?;
        }
        self.out.write_all(name.as_bytes())?;
        self.out.write_all(&[0])?;
        self.pad(110 + name.len() + 1)?;
        self.out.write_all(bytes)?;
        self.pad(bytes.len())
    }

    /// Header with name, and content, both end at a multiple of 4.
    fn pad(&mut self, written: usize) -> Result<()> {
        self.out.write_all(&[0; 3][..written.wrapping_neg() % 4])?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_header_and_content_begins_at_a_multiple_of_four() -> Result<()> {
        let mut bytes = Vec::new();
        let mut archive = Archive::new(&mut bytes);
        archive.directory("modules")?;
        archive.file("init", 0o755, b"seven b")?;
        archive.finish()?;
        assert_eq!(bytes.len() % 4, 0);
        for (at, _) in bytes
            .windows(6)
            .enumerate()
            .filter(|(_, window)| window == b"070701")
        {
            assert_eq!(at % 4, 0);
        }
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(text.matches("070701").count(), 3);
        assert!(
            text.contains("seven b") && text.contains("000081ED") && text.contains("TRAILER!!!")
        );
        Ok(())
    }
}
