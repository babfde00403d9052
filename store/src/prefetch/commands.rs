//! Which images an engine is about to pull, from its command line (docs/design.md, "Ahead of the engine").
//!
//! Invariants: a command line is a hint and decides only what is looked up early; only images that something is kept
//! of are named; nobody waits for the thread that reads command lines, since a process's memory may itself wait for the
//! store.

use std::{
    fs::File,
    io::{self, Read as _},
    path::PathBuf,
    sync::mpsc::{SyncSender, sync_channel},
};

use crate::registry::Reference;

/// Processes that may wait to be looked at. More come only if one of them hangs; then their images are looked up when
/// the engines ask.
const QUEUE: usize = 16;
/// Bytes of a command line that are read: names of images stand behind their options, which are hardly longer.
const MAX_BYTES: u64 = 64 << 10;
/// Images of one `pull`.
const MAX_IMAGES: usize = 8;
/// Words of engines' command lines that are followed by an image which is pulled if it is not there.
const VERBS: [&[u8]; 4] = [b"pull", b"run", b"create", b"from"];

/// The thread that reads command lines; it ends when this is dropped.
#[derive(Debug, Clone)]
pub(super) struct Commands(SyncSender<u32>);

impl Commands {
    /// Starts it. `is_kept`: whether something is kept of an image; `told` gets those.
    ///
    /// # Errors
    /// If there can be no thread.
    pub(super) fn start(
        is_kept: impl Fn(&str) -> bool + Send + 'static,
        told: impl Fn(String) + Send + 'static,
    ) -> io::Result<Self> {
        let (sender, seen) = sync_channel(QUEUE);
        std::thread::Builder::new()
            .name("commands".to_owned())
            .spawn(move || {
                for pid in seen {
                    match command_line(pid) {
                        Ok(line) => images(&line, &is_kept).into_iter().for_each(&told),
                        // It may have ended.
                        Err(error) => tracing::debug!(pid, %error, "its command line is not known"),
                    }
                }
            })?;
        Ok(Self(sender))
    }

    /// A process (0: unknown) looked at the store's directory.
    pub(super) fn seen(&self, pid: u32) {
        if pid != 0
            && let Err(error) = self.0.try_send(pid)
        {
            tracing::debug!(pid, %error, "its command line is not read");
        }
    }
}

/// The words of a process's command line, each ended by a zero byte.
fn command_line(pid: u32) -> io::Result<Vec<u8>> {
    let path: PathBuf = ["/proc", &pid.to_string(), "cmdline"].iter().collect();
    let mut line = Vec::new();
    File::open(path)?.take(MAX_BYTES).read_to_end(&mut line)?;
    Ok(line)
}

/// The images of a command line of which something is kept, by their full names: all that are pulled, or the first of
/// a command that takes one (what stands behind it is the container's own).
fn images(line: &[u8], is_kept: impl Fn(&str) -> bool) -> Vec<String> {
    let mut words = line.split(|byte| *byte == 0).skip(1);
    let Some(verb) = words.find(|word| VERBS.contains(word)) else {
        return Vec::new();
    };
    let most = if verb == b"pull" { MAX_IMAGES } else { 1 };
    let mut images = Vec::new();
    for word in words {
        let Some(image) = image(word) else { continue };
        if !images.contains(&image) && is_kept(&image) {
            images.push(image);
            if images.len() == most {
                break;
            }
        }
    }
    images
}

/// The full name of the image that a word names, if it can be one.
fn image(word: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(word).ok()?;
    let text = text.strip_prefix("docker://").unwrap_or(text);
    let reference: Reference = text.parse().ok()?;
    Some(reference.to_string())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::sync::mpsc;

    use proptest::prelude::*;

    use super::*;
    use crate::prefetch::testing::Engine;

    const KEPT: [&str; 3] = ["h:5000/app:1", "h:5000/web:2", "docker.io/library/python:3"];

    fn of(line: &str) -> Vec<String> {
        images(line.replace(' ', "\0").as_bytes(), |image| {
            KEPT.contains(&image)
        })
    }

    #[test]
    fn images_that_are_pulled_are_found() {
        assert_eq!(of("podman pull h:5000/app:1"), ["h:5000/app:1"]);
        assert_eq!(
            of(
                "podman --log-level debug image pull -q docker://h:5000/app:1 h:5000/none:1 python:3 h:5000/app:1"
            ),
            ["h:5000/app:1", "docker.io/library/python:3"]
        );
        assert_eq!(
            of("/usr/bin/podman run -d --name web -e A=b h:5000/web:2 h:5000/app:1"),
            ["h:5000/web:2"],
            "what stands behind the image is the container's"
        );
        assert_eq!(of("podman container create h:5000/web:2"), ["h:5000/web:2"]);
        assert_eq!(of("buildah from h:5000/web:2"), ["h:5000/web:2"]);
    }

    #[test]
    fn other_commands_name_none() {
        for line in [
            "",
            "podman",
            "podman rmi h:5000/app:1",
            "podman inspect h:5000/app:1",
            "podman pull",
            "podman pull h:5000/app:2",
            "pull h:5000/app:1",
            "crio",
        ] {
            assert_eq!(of(line), [""; 0], "{line}");
        }
    }

    #[test]
    fn the_command_line_of_a_process_is_read() {
        let (told, heard) = mpsc::channel();
        let commands = Commands::start(
            |image| KEPT.contains(&image),
            move |image| told.send(image).unwrap(),
        )
        .unwrap();
        let engine = Engine::starts(&["pull", "h:5000/app:1"]);
        commands.seen(0);
        // One that there cannot be.
        commands.seen(u32::MAX);
        commands.seen(engine.id());
        assert_eq!(heard.recv().unwrap(), "h:5000/app:1");
        drop(commands);
        assert!(heard.recv().is_err(), "the thread has ended");
    }

    proptest! {
        #[test]
        fn any_line_is_survived(line in proptest::collection::vec(any::<u8>(), 0..300)) {
            let images = images(&[b"podman\0pull\0", line.as_slice()].concat(), |_| true);
            prop_assert!(images.len() <= MAX_IMAGES);
        }
    }
}
