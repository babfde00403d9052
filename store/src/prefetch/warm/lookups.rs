//! Dentries: the store resolves paths in its indexes, a child looks the names up in the mounts.
//!
//! Protocol of `forelayer warm --layers DIR`: on standard input paths relative to DIR, each ended by a zero byte.
//! Names that are not there are as welcome as those that are; a path that ends with a slash is a directory that is
//! listed: the kernel takes the names of a listing as if each had been looked up (READDIRPLUS), so that looking them up costs
//! no message. It prints nothing.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsStr,
    io::{self, BufRead, BufReader, Read},
    os::unix::ffi::OsStrExt,
    path::{Component, Path},
    process::Stdio,
    sync::Arc,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Command,
};

use super::{PATIENCE, WarmError, Warmer};
use crate::{
    format::{NodeId, index::IndexError},
    image::Layer,
    prefetch::merged::{Lookup, Merged},
};

/// So many names in a listing cost as much as one lookup: 7 us and 22 to 47 us, of two hundred names in a directory
/// (Linux 6.18, store and child together).
const NAMES_A_LOOKUP: u32 = 5;
/// Messages that a listing takes beside those for its names: the kernel asks until there is nothing more.
const MESSAGES_A_LISTING: u32 = 2;

pub(super) async fn warm(
    warmer: &Warmer,
    layers: Vec<Arc<Layer>>,
    mut paths: Vec<String>,
) -> Result<usize, WarmError> {
    paths.truncate(warmer.max_paths);
    if paths.is_empty() {
        return Ok(0);
    }
    // Thousands of binary searches, perhaps on pages that must come from disk: not for an async thread.
    let resolved = tokio::task::spawn_blocking(move || input(&layers, &paths)).await;
    let (count, input) = match resolved {
        Ok(resolved) => resolved?,
        // The runtime is going down.
        Err(_) => return Ok(0),
    };
    let run = |source| WarmError::Run {
        program: warmer.program.clone(),
        source,
    };
    let mut child = Command::new(&warmer.program)
        .arg("warm")
        .arg("--layers")
        .arg(&warmer.layers_dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(run)?;
    let pid = child.id().unwrap_or_default();
    warmer.names.warmer(pid, true);
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
    let talk = async {
        let mut said = Vec::new();
        let feed = async {
            if let Some(mut stdin) = stdin {
                match stdin.write_all(&input).await {
                    // It ended early; its status tells why.
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                    other => other?,
                }
            }
            Ok(())
        };
        let listen = async {
            match stderr {
                Some(stderr) => stderr.take(4096).read_to_end(&mut said).await.map(drop),
                None => Ok(()),
            }
        };
        let (fed, heard): (io::Result<()>, io::Result<()>) = tokio::join!(feed, listen);
        fed.and(heard)?;
        Ok((child.wait().await?, said))
    };
    let outcome = tokio::time::timeout(PATIENCE, talk).await;
    warmer.names.warmer(pid, false);
    match outcome {
        Ok(Ok((status, _))) if status.success() => Ok(count),
        Ok(Ok((status, said))) => Err(WarmError::Failed {
            status,
            said: String::from_utf8_lossy(&said).trim().to_owned(),
        }),
        Ok(Err(error)) => Err(run(error)),
        // Dropping it kills it, and the runtime reaps it, however long that takes.
        Err(_) => Err(WarmError::Slow),
    }
}

/// The child's input, and how many lookups it stands for.
fn input(layers: &[Arc<Layer>], paths: &[String]) -> Result<(usize, Vec<u8>), IndexError> {
    let mut tree = Merged::new(layers);
    for path in paths {
        tree.resolve(path.as_bytes())?;
    }
    let lookups = tree.into_lookups();
    let mut to_list = worth_listing(layers, &lookups)?;
    let mut input = Vec::new();
    let mut tell = |layer: &Layer, path: &[u8]| {
        let root = format!("{}/{}/diff/", layer.mount().dir_name(), layer.slot);
        input.extend_from_slice(root.as_bytes());
        input.extend_from_slice(path);
        input.push(0);
    };
    for Lookup {
        layer,
        path,
        directory,
        found,
    } in &lookups
    {
        if *found && to_list.remove(&(*layer, *directory)) {
            let name = path.rsplit(|byte| *byte == b'/').next();
            tell(
                &layers[*layer],
                &path[..path.len() - name.map_or(0, <[u8]>::len)],
            );
        }
        // Also what a listing brings: of one that the kernel had kept no name is looked up.
        tell(&layers[*layer], path);
    }
    Ok((lookups.len(), input))
}

/// Directories, by layer, that are listed before their names are looked up one by one.
fn worth_listing(
    layers: &[Arc<Layer>],
    lookups: &[Lookup],
) -> Result<HashSet<(usize, NodeId)>, IndexError> {
    let mut wanted: HashMap<(usize, NodeId), u32> = HashMap::new();
    for lookup in lookups.iter().filter(|lookup| lookup.found) {
        *wanted.entry((lookup.layer, lookup.directory)).or_default() += 1;
    }
    let mut worth = HashSet::new();
    for ((layer, directory), wanted) in wanted {
        let names = layers[layer].index.child_count(directory)?;
        let listing = names.saturating_add(MESSAGES_A_LISTING * NAMES_A_LOOKUP);
        if listing <= wanted.saturating_mul(NAMES_A_LOOKUP) {
            worth.insert((layer, directory));
        }
    }
    Ok(worth)
}

/// What `forelayer warm` does: `lstat` of every path of `input` below `layers`, or a listing if it ends with a slash.
///
/// # Errors
/// If this process holds a descriptor of `/dev/fuse` (it would keep a dead store's mounts alive), or a path leads out
/// of `layers`, or the input breaks off.
pub fn look_up(layers: &Path, input: impl Read) -> Result<(), WarmError> {
    let run = |source| WarmError::Run {
        program: "forelayer warm".into(),
        source,
    };
    for descriptor in std::fs::read_dir("/proc/self/fd").map_err(run)? {
        let target = std::fs::read_link(descriptor.map_err(run)?.path()).unwrap_or_default();
        if target == Path::new("/dev/fuse") {
            return Err(run(io::Error::other(
                "it inherited a descriptor of /dev/fuse",
            )));
        }
    }
    let mut input = BufReader::new(input);
    let mut record = Vec::new();
    loop {
        record.clear();
        // One byte more than any path the store sends.
        let length = (&mut input)
            .take(1 << 16)
            .read_until(0, &mut record)
            .map_err(run)?;
        if length == 0 {
            return Ok(());
        }
        if record.pop() != Some(0) {
            return Err(run(io::ErrorKind::UnexpectedEof.into()));
        }
        let path = Path::new(OsStr::from_bytes(&record));
        if !path
            .components()
            .all(|component| matches!(component, Component::Normal(_)))
        {
            return Err(WarmError::Refused(path.display().to_string()));
        }
        let list = record.last() == Some(&b'/');
        let path = layers.join(path);
        if list {
            // The names are the kernel's to keep.
            let names = std::fs::read_dir(path).into_iter().flatten();
            names.for_each(drop);
        } else {
            // Whether it is there does not matter: either answer is what overlayfs will find cached.
            drop(path.symlink_metadata());
        }
    }
}
