//! The conditions that end a recording.

use std::{future::Future, os::fd::AsFd, pin::Pin, time::Duration};

use anyhow::Context as _;
use regex::Regex;
use tokio::{
    fs::File,
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    process::Child,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::Args;

/// How often the URL is asked, and how long an answer may take.
const POLL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// The part of a line that is matched.
const MAX_LINE: usize = 64 << 10;

/// What ends the recording.
pub(super) struct Condition {
    met: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// Pass the command's output on.
    passing: Vec<JoinHandle<()>>,
    /// Cancelled by the line that was waited for, if one was.
    line: Option<CancellationToken>,
}

impl Condition {
    /// The condition that `args` name; without one it is never met.
    pub(super) fn new(args: &Args, child: &mut Child) -> anyhow::Result<Self> {
        let mut passing = Vec::new();
        let mut printed = None;
        let met: Pin<Box<dyn Future<Output = ()> + Send>> = if let Some(line) = &args.ready_line {
            let found = printed.insert(CancellationToken::new()).clone();
            passing = pass_on(child, line, &found)?;
            Box::pin(found.cancelled_owned())
        } else if let Some(url) = &args.ready_http {
            Box::pin(url_answers(url.clone())?)
        } else if let Some(duration) = args.duration {
            Box::pin(super::pause(duration))
        } else {
            Box::pin(std::future::pending())
        };
        Ok(Self {
            met,
            passing,
            line: printed,
        })
    }

    /// Ends when it is met.
    pub(super) async fn met(&mut self) {
        self.met.as_mut().await;
    }

    /// Ends when all that the command printed is passed on.
    pub(super) async fn passed_on(&mut self) {
        for task in self.passing.drain(..) {
            let _ = task.await;
        }
    }

    /// Whether a line was waited for that was not printed until now.
    pub(super) fn is_line_missing(&self) -> bool {
        let line = self.line.as_ref();
        line.is_some_and(|line| !line.is_cancelled())
    }
}

/// Passes the command's output on for as long as there is any; the first line that matches cancels `found`.
fn pass_on(
    child: &mut Child,
    line: &Regex,
    found: &CancellationToken,
) -> anyhow::Result<Vec<JoinHandle<()>>> {
    let stdout = child.stdout.take().context("the command has no output")?;
    let stderr = child.stderr.take().context("the command has no output")?;
    let (out, err) = (file(&std::io::stdout())?, file(&std::io::stderr())?);
    Ok(vec![
        tokio::spawn(pass(stdout, out, line.clone(), found.clone())),
        tokio::spawn(pass(stderr, err, line.clone(), found.clone())),
    ])
}

fn file(stream: &impl AsFd) -> anyhow::Result<File> {
    let copy = stream
        .as_fd()
        .try_clone_to_owned()
        .context("cannot pass the command's output on")?;
    Ok(File::from_std(copy.into()))
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    wanted: Regex,
    found: CancellationToken,
) {
    let mut piece = vec![0; 16 << 10];
    let mut matcher = Lines::new(wanted);
    while let Ok(count @ 1..) = from.read(&mut piece).await {
        if matcher.push(&piece[..count]) {
            found.cancel();
        }
        // Whether anybody reads it is not our business; the command must not stop because of it.
        let _ = to.write_all(&piece[..count]).await;
        let _ = to.flush().await;
    }
    if matcher.end() {
        found.cancel();
    }
}

/// Cuts a stream into lines and matches each.
struct Lines {
    wanted: Regex,
    line: Vec<u8>,
}

impl Lines {
    fn new(wanted: Regex) -> Self {
        Self {
            wanted,
            line: Vec::new(),
        }
    }

    /// Whether a line that this piece ends matches.
    fn push(&mut self, piece: &[u8]) -> bool {
        let mut found = false;
        for part in piece.split_inclusive(|&b| b == b'\n') {
            let room = MAX_LINE.saturating_sub(self.line.len());
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            if part.ends_with(b"\n") {
                found |= self.end();
            }
        }
        found
    }

    /// Whether the line so far matches; begins the next.
    fn end(&mut self) -> bool {
        let line = std::mem::take(&mut self.line);
        let text = String::from_utf8_lossy(&line);
        !line.is_empty() && self.wanted.is_match(text.trim_end_matches(['\n', '\r']))
    }
}

/// Ends when the URL answers with success.
fn url_answers(url: url::Url) -> anyhow::Result<impl Future<Output = ()> + Send> {
    let http = reqwest::Client::builder()
        .no_proxy()
        .timeout(POLL.1)
        .build()
        .context("cannot make an HTTP client")?;
    Ok(async move {
        loop {
            match http.get(url.clone()).send().await {
                Ok(answer) if answer.status().is_success() => return,
                Ok(answer) => tracing::debug!(%url, status = %answer.status(), "not ready"),
                Err(error) => tracing::debug!(%url, %error, "not ready"),
            }
            tokio::time::sleep(POLL.0).await;
        }
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn lines_are_matched_however_they_arrive() {
        let text = b"starting\nready to accept\r\nmore";
        let pattern = Regex::new("^ready to accept$").unwrap();
        for cut in 0..=text.len() {
            let mut lines = Lines::new(pattern.clone());
            let first = lines.push(&text[..cut]);
            let second = lines.push(&text[cut..]);
            assert!(first || second, "cut at {cut}");
            assert!(!lines.end());
        }
        let mut lines = Lines::new(Regex::new("^last$").unwrap());
        assert!(!lines.push(b"not the last\nlast"));
        assert!(lines.end(), "a last line without its end");
    }

    #[tokio::test]
    async fn a_line_that_is_never_printed_is_known_to_be_missing() {
        for (pattern, missing) in [("^ready$", false), ("^steady$", true)] {
            let args = Args {
                image: None,
                ready_line: Some(Regex::new(pattern).unwrap()),
                ready_http: None,
                duration: None,
                command: vec!["echo".to_owned(), "ready".to_owned()],
            };
            let mut child = super::super::start(&args).unwrap();
            let mut condition = Condition::new(&args, &mut child).unwrap();
            child.wait().await.unwrap();
            condition.passed_on().await;
            assert_eq!(condition.is_line_missing(), missing, "{pattern}");
        }
    }

    #[test]
    fn an_endless_line_takes_no_endless_memory() {
        let mut lines = Lines::new(Regex::new("x").unwrap());
        for _ in 0..100 {
            assert!(!lines.push(&[b'a'; 8192]));
        }
        assert_eq!(lines.line.len(), MAX_LINE);
    }
}
