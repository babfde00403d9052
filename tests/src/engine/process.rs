//! Starting programs, hearing them out and ending them.
//!
//! A program that hangs is ended by `timeout(1)`; one that is left running by a failed test is ended by [`Process`]'s
//! drop, or by the next run (work.rs), always by its own process id.

use std::{
    ffi::OsStr,
    io::{BufRead as _, BufReader, Read},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal};

use super::work::WorkDir;

/// No single program of the tests takes longer, in seconds; a hang becomes a failure.
static LIMIT_SECONDS: AtomicU64 = AtomicU64::new(600);

/// Lets programs that are started from now on run this long, in seconds: the largest of the bench's images need more
/// than the tests' ten minutes.
pub fn allow(seconds: u64) {
    LIMIT_SECONDS.store(seconds, Ordering::Relaxed);
}

/// A command that is ended after ten minutes, or what was [allowed](allow), and with nothing to read from.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("timeout");
    command
        .arg("--kill-after=10")
        .arg(LIMIT_SECONDS.load(Ordering::Relaxed).to_string())
        .arg(program)
        .stdin(Stdio::null());
    command
}

/// Whether a program is on the `PATH`.
#[must_use]
pub fn found(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
    })
}

/// What a program left behind.
#[derive(Debug, Clone)]
pub struct Output {
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// Whether it ended with code 0.
    pub success: bool,
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
}

/// Runs to the end, also when that is a failure.
///
/// # Errors
/// When the program cannot be started.
pub fn output(command: &mut Command) -> Result<Output> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {}", show(command)))?;
    Ok(Output {
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        success: output.status.success(),
        code: output.status.code(),
    })
}

/// Runs to the end and returns the standard output, without the last line's end.
///
/// # Errors
/// When the program cannot be started or fails; with what it wrote.
pub fn run(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if !output.success {
        bail!(
            "{} ended with {}\n{}{}",
            show(command),
            output
                .code
                .map_or_else(|| "a signal".to_owned(), |code| format!("code {code}")),
            tail(&output.stdout),
            tail(&output.stderr)
        );
    }
    Ok(output.stdout.trim_end_matches('\n').to_owned())
}

/// The last 4000 bytes of a text, from a character on.
fn tail(text: &str) -> &str {
    let from = text.ceil_char_boundary(text.len().saturating_sub(4000));
    &text[from..]
}

/// A command as one would type it.
fn show(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}

/// A program that runs beside the tests. Dropping it ends it and waits for its end.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    /// Lines of its standard error (and output), as they come.
    lines: mpsc::Receiver<String>,
}

impl Process {
    /// Starts a program; what it writes on both channels goes to the file `log` and to [`Process::wait_for`].
    ///
    /// # Errors
    /// When it cannot be started or the log cannot be written.
    pub fn start(work: &WorkDir, name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {name}: {}", show(command)))?;
        work.remember(child.id())?;
        let (sender, lines) = mpsc::channel();
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            bail!("{name} has no output to read");
        };
        copy_lines(stdout, file.try_clone()?, sender.clone());
        copy_lines(stderr, file, sender);
        Ok(Self {
            name: name.to_owned(),
            child,
            lines,
        })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line for which `found` has an answer. Lines before it are passed by.
    ///
    /// # Errors
    /// When the program ends, or after a minute; with the last lines it wrote.
    pub fn wait_for<T>(&self, what: &str, found: impl Fn(&str) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut seen = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    if let Some(answer) = found(&line) {
                        return Ok(answer);
                    }
                    seen.push(line);
                }
                Err(reason) => {
                    let from = seen.len().saturating_sub(20);
                    bail!(
                        "{} did not say {what} ({reason}); its last words:\n{}",
                        self.name,
                        seen[from..].join("\n")
                    );
                }
            }
        }
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Asks it to end and waits; ends it the hard way after `patience`. Returns its exit code, `None` for a signal.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn stop(mut self, patience: Duration) -> Result<Option<i32>> {
        self.end(patience)
    }

    /// Ends it at once, as a crash would.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    fn end(&mut self, patience: Duration) -> Result<Option<i32>> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status.code());
        }
        let pid = Pid::from_child(&self.child);
        rustix::process::kill_process(pid, Signal::TERM)?;
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.code());
            }
            if Instant::now() > deadline {
                self.child.kill()?;
                return Ok(self.child.wait()?.code());
            }
            // Only how often we look, not how long we wait.
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.end(Duration::from_secs(10)) {
            eprintln!("{}: cannot be ended: {error:#}", self.name);
        }
    }
}

/// Copies lines to a file and a channel until the writer is gone. The file is written first: whoever has seen a line
/// finds it there.
fn copy_lines(
    from: impl Read + Send + 'static,
    mut to: std::fs::File,
    sender: mpsc::Sender<String>,
) {
    std::thread::spawn(move || {
        use std::io::Write as _;
        for line in BufReader::new(from).split(b'\n') {
            let Ok(mut line) = line else { return };
            line.push(b'\n');
            // A full disk must not stop the program we read from.
            let _ = to.write_all(&line);
            line.pop();
            // Nobody need listen.
            let _ = sender.send(String::from_utf8_lossy(&line).into_owned());
        }
    });
}

/// Looks again and again until there is an answer.
///
/// # Errors
/// What `look` returns as an error, or after `patience` that `what` did not come about.
pub fn until<T>(
    what: &str,
    patience: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(answer) = look()? {
            return Ok(answer);
        }
        if Instant::now() > deadline {
            bail!("{what} did not come about within {} s", patience.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
