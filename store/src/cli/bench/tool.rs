//! Calling other programs: apart from the terminal's signals, and with all they say when they fail.

use std::{
    ffi::OsStr,
    io,
    ops::{Deref, DerefMut},
    os::fd::OwnedFd,
    process::{Output, Stdio},
};

use anyhow::{Context as _, bail};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::{Child, Command},
};

/// Bytes of a program's output in a message.
const SHOWN: usize = 4000;

/// Seconds that a program has to end when it is asked to.
const GRACE: Timespec = Timespec {
    tv_sec: 20,
    tv_nsec: 0,
};

/// A running program. Dropped before its end it is asked to end, and given time: an engine that is killed while it makes
/// a container leaves one running that it knows nothing of.
#[derive(Debug)]
pub(super) struct Running {
    child: Child,
    /// A number may be another process's by the time of a signal; a descriptor never is.
    process: OwnedFd,
}

impl Deref for Running {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.child
    }
}

impl DerefMut for Running {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.child
    }
}

impl Running {
    /// Sends SIGTERM; whether it was there to get it.
    pub(super) fn ask_to_end(&self) -> bool {
        pidfd_send_signal(&self.process, Signal::TERM).is_ok()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // What has not ended by then is killed.
        if self.ask_to_end() {
            let _ = poll(
                &mut [PollFd::new(&self.process, PollFlags::IN)],
                Some(&GRACE),
            );
        }
    }
}

/// Starts it.
pub(super) fn start(command: &mut Command) -> anyhow::Result<Running> {
    let child = command
        .spawn()
        .with_context(|| format!("cannot run `{}`", shown(command)))?;
    let id = child
        .id()
        .and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    let id = id.context("the program has no process id")?;
    let process = pidfd_open(id, PidfdFlags::empty()).context("cannot open a process")?;
    Ok(Running { child, process })
}

/// A command in a process group of its own, so that Ctrl-C comes to this program only, which ends it in order.
pub(super) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command
        .stdin(Stdio::null())
        .process_group(0)
        // Whoever waits to hear of this program does not wait to hear of that one.
        .env_remove("NOTIFY_SOCKET")
        .kill_on_drop(true);
    command
}

/// Runs it to its end; what it printed.
pub(super) async fn finished(command: &mut Command) -> anyhow::Result<String> {
    let mut running = start(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let (out, err) = (running.stdout.take(), running.stderr.take());
    let (status, stdout, stderr) = tokio::try_join!(running.wait(), all(out), all(err))
        .with_context(|| format!("cannot hear out `{}`", shown(command)))?;
    let output = Output {
        status,
        stdout,
        stderr,
    };
    if !output.status.success() {
        bail!("{}", failed(command, &output));
    }
    Ok(String::from_utf8_lossy(&output.stdout)
        .trim_end()
        .to_owned())
}

/// Everything that comes out of a pipe.
async fn all(pipe: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        pipe.read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

/// That a command failed, and what it said.
fn failed(command: &Command, output: &Output) -> String {
    let text = |bytes: &[u8]| tail(&String::from_utf8_lossy(bytes)).to_owned();
    format!(
        "`{}` ended with {}\n{}{}",
        shown(command),
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    )
}

/// A command as one would type it, about: arguments with blanks are in quotes.
pub(super) fn shown(command: &Command) -> String {
    let command = command.as_std();
    let words: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| {
            let word = word.to_string_lossy();
            if word.is_empty() || word.contains(char::is_whitespace) {
                format!("{word:?}")
            } else {
                word.into_owned()
            }
        })
        .collect();
    words.join(" ")
}

/// The end of a text, from a character on.
pub(super) fn tail(text: &str) -> &str {
    &text[text.ceil_char_boundary(text.len().saturating_sub(SHOWN))..]
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[tokio::test]
    async fn a_failure_names_the_command_and_what_it_said() {
        let mut sh = command("sh");
        sh.args(["-c", "echo out; echo err >&2; exit 3"]);
        let error = finished(&mut sh).await.unwrap_err().to_string();
        assert_eq!(
            error,
            "`sh -c \"echo out; echo err >&2; exit 3\"` ended with exit status: 3\nout\nerr\n"
        );
        let error = finished(&mut command("/no/such/program"))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("/no/such/program"), "{error}");
        assert_eq!(finished(command("echo").arg("a b")).await.unwrap(), "a b");
    }

    #[tokio::test]
    async fn a_program_that_nobody_waits_for_ends_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ended");
        let script = format!(
            "trap 'echo x > {}; exit' TERM; echo; while :; do read x; done",
            file.display()
        );
        let mut sh = command("sh");
        let mut running = start(
            sh.args(["-c", &script])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped()),
        )
        .unwrap();
        let mut line = [0];
        // The trap is set.
        running
            .stdout
            .take()
            .unwrap()
            .read_exact(&mut line)
            .await
            .unwrap();
        let _open = running.stdin.take();
        drop(running);
        assert!(file.exists());
    }
}
