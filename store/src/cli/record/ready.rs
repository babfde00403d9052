//! The conditions that end a recording.

use std::{future::Future, os::fd::AsFd, pin::Pin, time::Duration};

use anyhow::Context as _;
use regex::Regex;
use tokio::{
    fs::File,
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    process::Child,
    sync::mpsc,
    task::JoinHandle,
};

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
}

impl Condition {
    /// The condition that `args` name; without one it is never met.
    pub(super) fn new(args: &Args, child: &mut Child) -> anyhow::Result<Self> {
        let mut passing = Vec::new();
        let met: Pin<Box<dyn Future<Output = ()> + Send>> = if let Some(line) = &args.ready_line {
            Box::pin(line_printed(child, line, &mut passing)?)
        } else if let Some(url) = &args.ready_http {
            Box::pin(url_answers(url.clone())?)
        } else if let Some(duration) = args.duration {
            Box::pin(super::pause(duration))
        } else {
            Box::pin(std::future::pending())
        };
        Ok(Self { met, passing })
    }

    /// Ends when it is met.
    pub(super) async fn met(&mut self) {
        self.met.as_mut().await;
    }

    /// Ends when all that the command printed is passed on.
    pub(super) async fn passed_on(self) {
        for task in self.passing {
            let _ = task.await;
        }
    }
}

/// Passes the command's output on for as long as there is any, and ends with the first line that matches.
fn line_printed(
    child: &mut Child,
    line: &Regex,
    passing: &mut Vec<JoinHandle<()>>,
) -> anyhow::Result<impl Future<Output = ()> + Send + use<>> {
    let stdout = child.stdout.take().context("the command has no output")?;
    let stderr = child.stderr.take().context("the command has no output")?;
    let (found, mut is_found) = mpsc::channel(1);
    let (out, err) = (file(&std::io::stdout())?, file(&std::io::stderr())?);
    passing.push(tokio::spawn(pass(stdout, out, line.clone(), found.clone())));
    passing.push(tokio::spawn(pass(stderr, err, line.clone(), found)));
    Ok(async move {
        if is_found.recv().await.is_none() {
            // Both outputs ended without it.
            std::future::pending::<()>().await;
        }
    })
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
    found: mpsc::Sender<()>,
) {
    let mut piece = vec![0; 16 << 10];
    let mut matcher = Lines::new(wanted);
    while let Ok(count @ 1..) = from.read(&mut piece).await {
        if matcher.push(&piece[..count]) {
            let _ = found.try_send(());
        }
        // Whether anybody reads it is not our business; the command must not stop because of it.
        let _ = to.write_all(&piece[..count]).await;
        let _ = to.flush().await;
    }
    if matcher.end() {
        let _ = found.try_send(());
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

    #[test]
    fn an_endless_line_takes_no_endless_memory() {
        let mut lines = Lines::new(Regex::new("x").unwrap());
        for _ in 0..100 {
            assert!(!lines.push(&[b'a'; 8192]));
        }
        assert_eq!(lines.line.len(), MAX_LINE);
    }
}
