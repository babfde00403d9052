//! Debian's docker-registry on a loopback port of its own, and what its log says was asked for.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{
    process::{self, Process},
    work::WorkDir,
};

/// A running registry.
#[derive(Debug)]
pub struct Distribution {
    address: SocketAddr,
    log: PathBuf,
    // Kept for its drop.
    _process: Process,
}

/// One request that a registry has answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// GET, HEAD, ...
    pub method: String,
    /// With the query.
    pub path: String,
    /// The answer's status.
    pub status: u16,
    /// Bytes of the answer's body.
    pub bytes: u64,
}

impl Request {
    /// The digest, when a blob was asked for.
    #[must_use]
    pub fn blob(&self) -> Option<&str> {
        let (_, digest) = self.path.split_once("/blobs/sha256:")?;
        let digest = digest.split(['?', '/']).next()?;
        (self.method == "GET" && digest.len() == 64).then_some(digest)
    }
}

impl Distribution {
    /// Starts one that keeps its blobs in `storage`; `name` is for its files in the run's directory.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(work: &WorkDir, name: &str, storage: &Path, read_only: bool) -> Result<Self> {
        let configuration = work.path().join(format!("registry-{name}.yml"));
        let log = work.path().join(format!("registry-{name}.log"));
        fs::write(
            &configuration,
            format!(
                "version: 0.1\n\
                 log: {{level: info, formatter: text}}\n\
                 storage:\n\
                 \x20 filesystem: {{rootdirectory: {}}}\n\
                 \x20 delete: {{enabled: true}}\n\
                 \x20 maintenance: {{readonly: {{enabled: {read_only}}}, uploadpurging: {{enabled: false}}}}\n\
                 http: {{addr: \"127.0.0.1:0\"}}\n",
                storage.display()
            ),
        )?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&configuration);
        let process = Process::start(work, &format!("registry {name}"), &mut command, &log)?;
        let address = process.wait_for("where it listens", |line| {
            let (_, rest) = line.split_once("listening on ")?;
            rest.split('"').next()?.trim().parse().ok()
        })?;
        Ok(Self {
            address,
            log,
            _process: process,
        })
    }

    /// `127.0.0.1:PORT`, as it stands in references.
    #[must_use]
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A place in the log: pass it to [`Distribution::requests_since`].
    ///
    /// # Errors
    /// As [`Distribution::requests_since`].
    pub fn mark(&self) -> Result<u64> {
        self.flush()?;
        Ok(fs::metadata(&self.log)?.len())
    }

    /// What was answered since a mark.
    ///
    /// # Errors
    /// When the log cannot be read or the registry does not answer.
    pub fn requests_since(&self, mark: u64) -> Result<Vec<Request>> {
        self.flush()?;
        let text = fs::read(&self.log)?;
        let from = usize::try_from(mark)?.min(text.len());
        Ok(String::from_utf8_lossy(&text[from..])
            .lines()
            .filter_map(request)
            .filter(|request| !request.path.starts_with("/flush-"))
            .collect())
    }

    /// Waits until the log holds all that was answered so far: asks for a path of its own and waits for its line. (A
    /// line is written right after its answer.)
    fn flush(&self) -> Result<()> {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let marker = format!("/flush-{}-{number} ", std::process::id());
        let mut stream = std::net::TcpStream::connect(self.address)?;
        std::io::Write::write_all(
            &mut stream,
            format!("GET {marker}HTTP/1.1\r\nHost: flush\r\nConnection: close\r\n\r\n").as_bytes(),
        )?;
        std::io::Read::read_to_end(&mut stream, &mut Vec::new())?;
        process::until(
            "the registry's log line",
            std::time::Duration::from_secs(10),
            || {
                let text = fs::read_to_string(&self.log).context("cannot read the log")?;
                Ok(text.contains(&marker).then_some(()))
            },
        )
    }
}

/// A line of the access log: `ADDRESS - - [TIME] "METHOD PATH PROTOCOL" STATUS BYTES "" "AGENT"`.
fn request(line: &str) -> Option<Request> {
    let (_, rest) = line.split_once("] \"")?;
    let (asked, rest) = rest.split_once("\" ")?;
    let mut asked = asked.split(' ');
    let method = asked.next()?.to_owned();
    let path = asked.next()?.to_owned();
    asked.next()?.starts_with("HTTP/").then_some(())?;
    let mut answer = rest.split(' ');
    Some(Request {
        method,
        path,
        status: answer.next()?.parse().ok()?,
        bytes: answer.next()?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_lines_are_read_and_others_passed_by() {
        let digest = "a".repeat(64);
        let line = format!(
            "127.0.0.1 - - [20/Nov/2026:23:22:10 +0000] \"GET /v2/x/blobs/sha256:{digest} HTTP/1.1\" 206 512 \"\" \"agent\""
        );
        let found = request(&line).expect("an access line");
        assert_eq!((found.status, found.bytes), (206, 512));
        assert_eq!(found.blob(), Some(digest.as_str()));
        assert_eq!(
            request("time=\"x\" level=info msg=\"response completed\""),
            None
        );
    }
}
