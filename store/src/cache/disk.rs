//! The disk seam: the few operations the cache needs, real here, failing and crashing in tests.

use std::{
    fmt, fs, io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::FallocateFlags;

/// A directory tree. Every method works on whole paths.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Makes a directory and those above it; nothing if it is there.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// A whole small file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// Puts a whole small file in place atomically; with `durable` it is on disk when this returns.
    fn replace(&self, path: &Path, bytes: &[u8], durable: bool) -> io::Result<()>;
    /// Length in bytes.
    fn len(&self, path: &Path) -> io::Result<u64>;
    /// Waits until every file in the directories of this directory is on disk.
    fn sync_below(&self, path: &Path) -> io::Result<()>;
    /// A file for reading and writing, made if it is not there and `create` is set.
    fn open(&self, path: &Path, create: bool) -> io::Result<Box<dyn DiskFile>>;
}

/// An open file.
pub trait DiskFile: Send + Sync + fmt::Debug {
    /// Fills `buf` from `offset`; a file that ends before is an error.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Cuts or extends (with a hole).
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes a hole: the bytes read as zeros and take no space where the file system can do that.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Waits until everything written is on disk.
    fn sync(&self) -> io::Result<()>;
}

/// The machine's disk.
#[derive(Debug, Clone, Copy)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }
    fn replace(&self, path: &Path, bytes: &[u8], durable: bool) -> io::Result<()> {
        let directory = path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        io::Write::write_all(&mut file, bytes)?;
        if durable {
            file.as_file().sync_all()?;
        }
        file.persist(path).map_err(|error| error.error)?;
        if durable {
            fs::File::open(directory)?.sync_all()?;
        }
        Ok(())
    }
    fn len(&self, path: &Path) -> io::Result<u64> {
        Ok(fs::metadata(path)?.len())
    }
    fn sync_below(&self, path: &Path) -> io::Result<()> {
        for directory in fs::read_dir(path)? {
            for file in fs::read_dir(directory?.path())? {
                fs::File::open(file?.path())?.sync_data()?;
            }
        }
        Ok(())
    }
    fn open(&self, path: &Path, create: bool) -> io::Result<Box<dyn DiskFile>> {
        let file = fs::File::options()
            .read(true)
            .write(true)
            .create(create)
            .truncate(false)
            .open(path)?;
        Ok(Box::new(RealFile {
            file,
            path: path.to_owned(),
        }))
    }
}

#[derive(Debug)]
struct RealFile {
    file: fs::File,
    path: PathBuf,
}

impl DiskFile for RealFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, flags, offset, len) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                tracing::debug!(path = %self.path.display(), "no holes here; writing zeros");
                write_zeros(self, offset, len)
            }
            Err(error) => Err(error.into()),
        }
    }
    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

fn write_zeros(file: &dyn DiskFile, offset: u64, len: u64) -> io::Result<()> {
    const ZEROS: &[u8] = &[0; 64 << 10];
    let mut done = 0;
    while done < len {
        let step = (len - done).min(ZEROS.len() as u64);
        let step_len = usize::try_from(step).unwrap_or(ZEROS.len());
        file.write_at(&ZEROS[..step_len], offset + done)?;
        done += step;
    }
    Ok(())
}
