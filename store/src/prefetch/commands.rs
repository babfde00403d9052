//! Which image an engine is about to pull, from its command line (docs/design.md, "Ahead of the engine").
//!
//! Invariants: a command line is a hint and decides only what is looked up early; only an image that something is kept
//! of is named; whoever looks at the store waits for none of it; where a command line may mean something else, it means
//! nothing.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Read as _},
    path::PathBuf,
    sync::mpsc::{SyncSender, sync_channel},
    time::{Duration, Instant},
};

use crate::registry::Reference;

/// Processes that may wait to be looked at. More come only if one of them hangs; then their images are looked up when
/// the engines ask.
const QUEUE: usize = 64;
/// An engine looks at the store's directory again and again: it says the same.
const AGAIN: Duration = Duration::from_secs(10);
/// Processes remembered for that time.
const RECENT: usize = 64;
/// Bytes of a command line that are read: images stand behind their options, which are hardly longer.
const MAX_BYTES: u64 = 64 << 10;

/// Options before the command that have no value; all others have one (podman(1), 4.3.1 and 5.4.2, as those below).
const GLOBAL_FLAGS: [&str; 7] = [
    "--help",
    "--noout",
    "--remote",
    "--syslog",
    "--transient-store",
    "--version",
    "-v",
];
/// Options of commands that have no value; all others have one (podman-pull(1), podman-run(1)).
const FLAGS: [&str; 25] = [
    "--all-tags",
    "--detach",
    "--disable-content-trust",
    "--env-host",
    "--help",
    "--http-proxy",
    "--init",
    "--interactive",
    "--no-healthcheck",
    "--no-hostname",
    "--no-hosts",
    "--oom-kill-disable",
    "--passwd",
    "--privileged",
    "--publish-all",
    "--quiet",
    "--read-only",
    "--read-only-tmpfs",
    "--replace",
    "--rm",
    "--rmi",
    "--sig-proxy",
    "--tls-verify",
    "--tty",
    "--unsetenv-all",
];
/// Those of one letter, of `pull` and of the others.
const PULL_LETTERS: &[u8] = b"aq";
const LETTERS: &[u8] = b"ditqP";
/// Options with which no image is meant, or that of another platform.
const OTHERWISE: [&str; 5] = ["--arch", "--os", "--platform", "--rootfs", "--variant"];
/// Options that say when an image is pulled.
const WHEN: [&str; 2] = ["--pull", "--policy"];

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
                let mut recent: VecDeque<(u32, Instant)> = VecDeque::new();
                for pid in seen {
                    let now = Instant::now();
                    let old = |at: Instant| now.duration_since(at) >= AGAIN;
                    while (recent.front()).is_some_and(|(_, at)| old(*at) || recent.len() > RECENT)
                    {
                        recent.pop_front();
                    }
                    if recent.iter().any(|(other, _)| *other == pid) {
                        continue;
                    }
                    match command_line(pid) {
                        Ok(line) => {
                            recent.push_back((pid, now));
                            image(&line)
                                .into_iter()
                                .filter(|image| is_kept(image))
                                .for_each(&told);
                        }
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

/// The image that a command line pulls, by its full name: the first, as engines take them one after the other.
fn image(line: &[u8]) -> Option<String> {
    let mut words = line.split(|byte| *byte == 0);
    words.next()?;
    let mut words = words.map_while(|word| std::str::from_utf8(word).ok());
    let mut command = operand(&mut words, &GLOBAL_FLAGS, b"")?;
    if command == "image" || command == "container" {
        command = operand(&mut words, &[], b"")?;
    }
    let letters = match command {
        "pull" => PULL_LETTERS,
        "run" | "create" | "from" => LETTERS,
        _ => return None,
    };
    let word = operand(&mut words, &FLAGS, letters)?;
    let word = word.strip_prefix("docker://").unwrap_or(word);
    let reference: Reference = word.parse().ok()?;
    Some(reference.to_string())
}

/// The next word that is neither an option nor the value of one; `None` also if an option says that nothing is to be
/// pulled, or something else.
fn operand<'a>(
    words: &mut impl Iterator<Item = &'a str>,
    flags: &[&str],
    letters: &[u8],
) -> Option<&'a str> {
    loop {
        let word = words.next()?;
        let Some(name) = word.strip_prefix('-') else {
            return Some(word);
        };
        if name == "-" {
            return words.next();
        }
        let (option, value) = match word.split_once('=') {
            Some((option, value)) => (option, Some(value)),
            None => (word, None),
        };
        if OTHERWISE.contains(&option) {
            return None;
        }
        let has_none = match name.starts_with('-') {
            true => flags.contains(&option),
            // Letters without a value, and one with: the rest of the word is its value, if there is any.
            false => {
                let with = name.bytes().position(|letter| !letters.contains(&letter));
                flags.contains(&option) || with.is_none_or(|place| place + 1 < name.len())
            }
        };
        let value = match value {
            None if !has_none => Some(words.next()?),
            value => value,
        };
        if WHEN.contains(&option) && value == Some("never") {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::sync::mpsc;

    use proptest::prelude::*;

    use super::*;
    use crate::prefetch::testing::Engine;

    fn of(line: &str) -> Option<String> {
        image(line.replace(' ', "\0").as_bytes())
    }

    #[test]
    fn the_image_is_found_behind_options() {
        let app = Some("h:5000/app:1".to_owned());
        for line in [
            "podman pull h:5000/app:1",
            "podman --root /r --log-level=debug --syslog -v image pull -aq --creds a:b docker://h:5000/app:1 h:5000/web:2",
            "/usr/bin/podman run -d --name web -e A=b --rm -p80:80 h:5000/app:1 run python",
            "podman run -it -dv /a:/b --volume=/c:/d --pull always h:5000/app:1",
            "podman run -h web -dh web h:5000/app:1",
            "podman container create -- h:5000/app:1",
            "podman create --tls-verify=false --read-only --label x h:5000/app:1",
            "buildah from --quiet --name x h:5000/app:1",
        ] {
            assert_eq!(of(line), app, "{line}");
        }
        assert_eq!(
            of("podman run python app").as_deref(),
            Some("docker.io/library/python:latest")
        );
    }

    #[test]
    fn where_something_else_may_be_meant_nothing_is() {
        for line in [
            "",
            "podman",
            "podman pull",
            "podman pull -q",
            "podman pull --creds",
            "podman rmi h:5000/app:1",
            "podman inspect h:5000/app:1",
            "podman volume create postgres",
            "podman exec c run h:5000/app:1",
            "podman --log-level debug ps pull h:5000/app:1",
            "podman pull /a/b",
            "podman pull oci:/a/b",
            "podman run --platform linux/arm64 h:5000/app:1",
            "podman run --arch=arm64 h:5000/app:1",
            "podman run --pull=never h:5000/app:1",
            "podman run --pull never h:5000/app:1",
            "podman pull --policy never h:5000/app:1",
            "podman run --rootfs a/b",
            "crio",
        ] {
            assert_eq!(of(line), None, "{line}");
        }
    }

    #[test]
    fn the_command_line_of_a_process_is_read_once() {
        let (told, heard) = mpsc::channel();
        let commands = Commands::start(
            |image| image.starts_with("h:5000/"),
            move |image| told.send(image).unwrap(),
        )
        .unwrap();
        let engines = ["h:5000/app:1", "h.io/not/kept", "h:5000/web:2"];
        let engines = engines.map(|image| Engine::starts(&["pull", image]));
        commands.seen(0);
        // One that there cannot be.
        commands.seen(u32::MAX);
        for engine in [0, 1, 0, 2, 0] {
            commands.seen(engines[engine].id());
        }
        drop(commands);
        // Until the thread has ended.
        let heard: Vec<String> = heard.iter().collect();
        assert_eq!(heard, ["h:5000/app:1", "h:5000/web:2"]);
    }

    proptest! {
        #[test]
        fn any_line_is_survived(words in proptest::collection::vec("(run|--?[a-z]{0,4}(=x)?|[a-z/:]{1,9}|\\PC{0,5})", 0..9)) {
            if let Some(image) = of(&format!("podman {}", words.join(" "))) {
                prop_assert!(image.parse::<Reference>().is_ok());
            }
        }
    }
}
