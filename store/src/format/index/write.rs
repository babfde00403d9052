//! Writes an index file: records are streamed out section by section, then the header, then the name.
//!
//! Invariant: a file under its final name is complete and durable.

use std::{
    fs::File,
    io::{self, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use super::record::{HEADER_CRC, HEADER_LEN, Header, Record};

/// Bytes collected before they are hashed and written.
const BUFFER: usize = 256 << 10;

/// An index file that is being written beside its final place.
#[derive(Debug)]
pub(crate) struct Writer {
    file: tempfile::NamedTempFile,
    dest: PathBuf,
    dir: PathBuf,
    buffer: Vec<u8>,
    crc: u32,
    len: u64,
}

impl Writer {
    /// Starts a file that will become `dest`.
    pub(crate) fn create(dest: &Path) -> io::Result<Self> {
        let dir = match dest.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        let mut file = tempfile::Builder::new()
            .prefix(".index-")
            .tempfile_in(dir)?;
        file.write_all(&[0; HEADER_LEN])?;
        Ok(Self {
            file,
            dest: dest.to_owned(),
            dir: dir.to_owned(),
            buffer: Vec::with_capacity(BUFFER + 1024),
            crc: 0,
            len: HEADER_LEN as u64,
        })
    }

    /// Appends a record.
    pub(crate) fn put<R: Record>(&mut self, record: &R) -> io::Result<()> {
        record.write(&mut self.buffer);
        if self.buffer.len() >= BUFFER {
            self.flush()?;
        }
        Ok(())
    }

    /// Appends the strings.
    pub(crate) fn strings(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.flush()?;
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        self.len += bytes.len() as u64;
        self.file.write_all(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.crc = crc32c::crc32c_append(self.crc, &self.buffer);
        self.len += self.buffer.len() as u64;
        self.file.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    /// Writes the header, makes the file durable and gives it its name.
    pub(crate) fn finish(mut self, mut header: Header) -> io::Result<()> {
        self.flush()?;
        header.file_len = self.len;
        header.body_crc = self.crc;
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&header_bytes(&header))?;
        self.file.as_file().sync_all()?;
        self.file
            .persist(&self.dest)
            .map_err(|failed| failed.error)?;
        File::open(&self.dir)?.sync_all()
    }
}

/// The header's bytes with its checksum filled in.
pub(crate) fn header_bytes(header: &Header) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_LEN);
    header.write(&mut bytes);
    bytes.resize(HEADER_LEN, 0);
    let crc = header_crc(&bytes);
    bytes[HEADER_CRC..HEADER_CRC + 4].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// CRC-32C of a header with its checksum field taken as zero.
pub(crate) fn header_crc(bytes: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&bytes[..HEADER_CRC]);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    crc32c::crc32c_append(crc, &bytes[HEADER_CRC + 4..])
}
