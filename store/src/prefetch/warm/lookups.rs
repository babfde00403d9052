//! Dentries: the store resolves paths in its indexes, a child looks the names up in the mounts.
//!
//! Protocol of `forelayer warm --layers DIR`: on standard input paths relative to DIR, each ended by a zero byte.
//! Names that are not there are as welcome as those that are. It prints nothing.

use std::{
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
use crate::{format::index::IndexError, image::Layer, prefetch::merged::Merged};

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

/// The child's input, and how many lookups it makes.
fn input(layers: &[Arc<Layer>], paths: &[String]) -> Result<(usize, Vec<u8>), IndexError> {
    let mut tree = Merged::new(layers);
    for path in paths {
        tree.resolve(path.as_bytes())?;
    }
    let lookups = tree.into_lookups();
    let mut input = Vec::new();
    for lookup in &lookups {
        let layer = &layers[lookup.layer];
        input.extend_from_slice(
            format!("{}/{}/diff/", layer.mount().dir_name(), layer.slot).as_bytes(),
        );
        input.extend_from_slice(&lookup.path);
        input.push(0);
    }
    Ok((lookups.len(), input))
}

/// What `forelayer warm` does: `lstat` of every path of `input` below `layers`.
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
        // Whether it is there does not matter: either answer is what overlayfs will find cached.
        drop(layers.join(path).symlink_metadata());
    }
}
