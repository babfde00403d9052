//! When a container is ready: what it prints says so, or its end.

use anyhow::{Context as _, bail};
use tokio::{io::AsyncReadExt as _, process::Child};

/// Waits until a container is ready, and for nothing after it.
pub(super) async fn ready(begins: Option<&str>, child: &mut Child) -> anyhow::Result<()> {
    let mut out = child.stdout.take().context("no output to read")?;
    let mut err = child.stderr.take().context("no output to read")?;
    // What it says there is read as it comes, or it would wait with a full pipe.
    let said = tokio::spawn(async move {
        let mut said = Lines::new(None);
        let mut piece = vec![0; 16 << 10];
        while let Ok(length @ 1..) = err.read(&mut piece).await {
            said.take(&piece[..length]);
        }
        said.last()
    });
    let mut lines = Lines::new(begins);
    let mut piece = vec![0; 16 << 10];
    while let length @ 1.. = out.read(&mut piece).await? {
        if lines.take(&piece[..length]) {
            return Ok(());
        }
    }
    let status = child.wait().await?;
    if status.success() && lines.end_counts() {
        return Ok(());
    }
    let said = said.await.unwrap_or_default();
    let text = begins.map_or_else(String::new, |text| {
        format!(", and no line began with {text:?}")
    });
    bail!("ended with {status}{text}\n{}{said}", lines.last())
}

/// Looks for the line, in output that comes in pieces.
#[derive(Debug)]
struct Lines {
    /// How the line begins; none: any line will do.
    begins: Option<Vec<u8>>,
    /// The beginning of the line under way, no longer than what is looked for.
    line: Vec<u8>,
    /// The end of everything, for messages.
    last: Vec<u8>,
}

/// Bytes of output that are kept for messages.
const KEPT: usize = 2048;

impl Lines {
    fn new(begins: Option<&str>) -> Self {
        Self {
            begins: begins.map(|text| text.as_bytes().to_vec()),
            line: Vec::new(),
            last: Vec::new(),
        }
    }

    /// Takes the next piece; whether the line is there. One that is looked for need not have ended.
    fn take(&mut self, piece: &[u8]) -> bool {
        self.last.extend_from_slice(piece);
        let over = self.last.len().saturating_sub(KEPT);
        self.last.drain(..over);
        let Some(begins) = &self.begins else {
            return piece.contains(&b'\n');
        };
        for &byte in piece {
            if byte == b'\n' {
                self.line.clear();
            } else if self.line.len() < begins.len() {
                self.line.push(byte);
            }
            if self.line == *begins {
                return true;
            }
        }
        false
    }

    /// Whether the end of the program is what was waited for.
    const fn end_counts(&self) -> bool {
        self.begins.is_none()
    }

    /// The end of what was printed.
    fn last(&self) -> String {
        String::from_utf8_lossy(&self.last).into_owned()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::process::Stdio;

    use super::{super::tool, *};

    #[test]
    fn a_line_is_found_by_its_beginning_however_it_arrives() {
        for pieces in [
            &["up\nready 5"][..],
            &["u", "p\nre", "ady"],
            &["ready"],
            &["not ready\n", "ready\n"],
        ] {
            let mut lines = Lines::new(Some("ready"));
            let (last, before) = pieces.split_last().expect("pieces");
            assert!(before.iter().all(|piece| !lines.take(piece.as_bytes())));
            assert!(lines.take(last.as_bytes()), "{pieces:?}");
        }
        let mut lines = Lines::new(Some("ready"));
        assert!(!lines.take(b"not ready\n ready\nread\ny"));
        assert!(!lines.end_counts());
    }

    #[test]
    fn without_a_text_the_first_line_counts_or_the_end() {
        let mut lines = Lines::new(None);
        assert!(!lines.take(b"starting"));
        assert!(lines.take(b" up\n"));
        assert!(lines.end_counts());
    }

    #[test]
    fn endless_output_takes_no_endless_memory() {
        let mut lines = Lines::new(Some("ready"));
        for _ in 0..10_000 {
            assert!(!lines.take(&[b'x'; 100]));
        }
        assert_eq!(lines.last().len(), KEPT);
        assert_eq!(lines.line.len(), 5);
    }

    async fn of(script: &str, begins: Option<&str>) -> anyhow::Result<()> {
        let mut command = tool::command("sh");
        command.args(["-c", script]);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        ready(begins, &mut child).await
    }

    #[tokio::test]
    async fn a_container_is_ready_with_its_line_or_its_end() {
        of("echo up; echo ready 5; exec sleep 1000", Some("ready"))
            .await
            .unwrap();
        of("echo up; exec sleep 1000", None).await.unwrap();
        of("true", None).await.unwrap();
        let error =
            |script, begins| async move { of(script, begins).await.unwrap_err().to_string() };
        assert_eq!(
            error("echo up; echo no such file >&2; exit 3", Some("ready")).await,
            "ended with exit status: 3, and no line began with \"ready\"\nup\nno such file\n"
        );
        assert_eq!(error("exit 3", None).await, "ended with exit status: 3\n");
    }

    #[tokio::test]
    async fn a_full_pipe_of_errors_holds_nothing_up() {
        of("head -c 1000000 /dev/zero >&2; echo ready", Some("ready"))
            .await
            .unwrap();
    }
}
