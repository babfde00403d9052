//! Sends single HTTP requests: which client, with or without TLS, how long to wait, how an answer becomes an error.
//!
//! Invariant: a request without TLS goes only to this machine or to a host configured for it.

use std::{
    sync::OnceLock,
    time::{Duration, SystemTime},
};

use reqwest::{
    RequestBuilder, Response,
    header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER},
    redirect,
};
use tokio::time::Instant;
use url::Url;

use super::{
    Repository,
    error::{Failure, hint},
    reference::{host_name, is_loopback},
};
use crate::config;

/// Idle connections kept for one host: as many as the scheduler has requests by default.
const IDLE_PER_HOST: usize = 32;
/// How much of an error's body is read, and shown.
const EXCERPT_READ: usize = 4096;
const EXCERPT_SHOWN: usize = 200;
/// How much is read of a body that nobody wants, to keep its connection. Those of redirects and refusals are shorter;
/// for a longer one a new connection is cheaper.
const UNWANTED_READ: usize = 64 << 10;

/// Metadata that comes more slowly than this, in bytes a second, byte by byte, is not waited for: a 32nd, as so many
/// may share a link, of 16 KiB.
const SLOWEST: u64 = 512;
/// What is said of it.
pub(super) const TOO_SLOW: &str = "it came more slowly than 512 bytes a second";

/// The HTTP clients and the rules for their use.
#[derive(Debug)]
pub(super) struct Transport {
    plain_http: Vec<String>,
    connect_timeout: Duration,
    /// Bound on the time between two pieces of an answer.
    pub(super) read_timeout: Duration,
    /// For loopback: no proxy.
    near: reqwest::Client,
    /// For hosts configured for plain HTTP.
    plain: reqwest::Client,
    /// Made at first need: a machine without certificate authorities can still use what needs no TLS.
    tls: OnceLock<Result<reqwest::Client, String>>,
}

impl Transport {
    pub(super) fn new(config: &config::Registry) -> Result<Self, Failure> {
        let without_tls = || builder(config.connect_timeout).tls_certs_only([]);
        let made = |builder: reqwest::ClientBuilder| {
            builder.build().map_err(|e| Failure::Setup(causes(&e)))
        };
        Ok(Self {
            plain_http: config.plain_http.clone(),
            connect_timeout: config.connect_timeout,
            read_timeout: config.read_timeout,
            near: made(without_tls().no_proxy())?,
            plain: made(without_tls())?,
            tls: OnceLock::new(),
        })
    }

    /// The root of the registry's API.
    pub(super) fn base(&self, repository: &Repository) -> Result<Url, Failure> {
        let host = repository.api_host();
        let scheme = if self.may_be_plain(host) {
            "http"
        } else {
            "https"
        };
        Url::parse(&format!("{scheme}://{host}/v2/")).map_err(|e| Failure::Connection {
            host: host.to_owned(),
            cause: e.to_string(),
        })
    }

    fn may_be_plain(&self, host: &str) -> bool {
        is_loopback(host)
            || self
                .plain_http
                .iter()
                .any(|entry| entry == host || entry == host_name(host))
    }

    /// Refuses URLs that are not HTTP, or are plain HTTP to a host that is not meant to be asked so.
    pub(super) fn check(&self, url: &Url, from: &str) -> Result<(), Failure> {
        match url.scheme() {
            "https" => Ok(()),
            "http" if self.may_be_plain(&authority(url)) => Ok(()),
            "http" => Err(Failure::PlainHttp {
                from: from.to_owned(),
                host: authority(url),
            }),
            _ => Err(Failure::Redirect {
                host: from.to_owned(),
                location: shorten(url.as_str()),
                cause: "it is neither http nor https",
            }),
        }
    }

    /// A GET request; `send` takes it.
    pub(super) fn get(&self, url: &Url) -> Result<RequestBuilder, Failure> {
        Ok(self.client(url)?.get(url.clone()))
    }

    /// A POST request; `send` takes it.
    pub(super) fn post(&self, url: &Url) -> Result<RequestBuilder, Failure> {
        Ok(self.client(url)?.post(url.clone()))
    }

    fn client(&self, url: &Url) -> Result<&reqwest::Client, Failure> {
        if url.scheme() == "http" {
            let near = is_loopback(&authority(url));
            return Ok(if near { &self.near } else { &self.plain });
        }
        self.tls
            .get_or_init(|| {
                builder(self.connect_timeout)
                    .build()
                    .map_err(|e| causes(&e))
            })
            .as_ref()
            .map_err(|cause| Failure::Setup(cause.clone()))
    }

    /// Sends a request and waits for the status line.
    pub(super) async fn send(
        &self,
        url: &Url,
        request: RequestBuilder,
    ) -> Result<Response, Failure> {
        let bound = self.connect_timeout + self.read_timeout;
        let lost = |cause| Failure::Connection {
            host: authority(url),
            cause,
        };
        match tokio::time::timeout(bound, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            // Without the URL: signed ones are secrets, and the host is named anyway.
            Ok(Err(e)) => Err(lost(causes(&e.without_url()))),
            Err(_) => Err(lost(format!("no answer within {bound:?}"))),
        }
    }

    /// The next piece of a body. Cancelling it loses nothing; the bound starts anew with each call, so that a body
    /// nobody read for a while (a paused lane) does not count as silent.
    pub(super) async fn piece(
        &self,
        response: &mut Response,
    ) -> Result<Option<bytes::Bytes>, String> {
        match tokio::time::timeout(self.read_timeout, response.chunk()).await {
            Ok(Ok(piece)) => Ok(piece),
            Ok(Err(e)) => Err(causes(&e.without_url())),
            Err(_) => Err(format!("nothing arrived for {:?}", self.read_timeout)),
        }
    }

    /// Until when a body of so many bytes at most, asked for now, is waited for. A lookup that never ends would keep its
    /// image from every later one.
    pub(super) fn patience(&self, bytes: u64) -> Instant {
        Instant::now() + self.read_timeout + Duration::from_secs(bytes / SLOWEST)
    }

    /// The next piece of a body that must be there by then.
    pub(super) async fn piece_until(
        &self,
        until: Instant,
        response: &mut Response,
    ) -> Result<Option<bytes::Bytes>, String> {
        (tokio::time::timeout_at(until, self.piece(response)).await)
            .unwrap_or_else(|_| Err(TOO_SLOW.to_owned()))
    }

    /// Reads the rest of an answer that nobody wants, so that its connection can be used again; what is long or slow
    /// is closed instead. The bound is on the whole: a body that trickles must not hold a lookup.
    pub(super) async fn finish(&self, mut response: Response) {
        let too_long = |len| len > UNWANTED_READ as u64;
        if response.content_length().is_some_and(too_long) {
            return;
        }
        let read = async {
            let mut left = UNWANTED_READ;
            while let Ok(Some(piece)) = response.chunk().await {
                match left.checked_sub(piece.len()) {
                    Some(less) => left = less,
                    None => break,
                }
            }
        };
        // Either way the answer is dropped now.
        let _ = tokio::time::timeout(self.read_timeout, read).await;
    }

    /// Makes an error of an answer whose status says that it is none.
    pub(super) async fn refusal(&self, url: &Url, response: Response) -> Failure {
        let status = response.status().as_u16();
        let retry_after = retry_after(response.headers(), SystemTime::now());
        Failure::Status {
            host: authority(url),
            status,
            excerpt: self.excerpt(response).await,
            retry_after,
            hint: hint(status),
        }
    }

    /// A web page instead of data.
    pub(super) async fn page(&self, url: &Url, response: Response) -> Failure {
        Failure::Html {
            host: authority(url),
            status: response.status().as_u16(),
            content_type: content_type(response.headers()).unwrap_or_default(),
            excerpt: self.excerpt(response).await,
        }
    }

    async fn excerpt(&self, mut response: Response) -> String {
        let mut body = Vec::new();
        let until = self.patience(EXCERPT_READ as u64);
        while body.len() < EXCERPT_READ {
            match self.piece_until(until, &mut response).await {
                Ok(Some(piece)) => body.extend_from_slice(&piece),
                Ok(None) | Err(_) => break,
            }
        }
        body.truncate(EXCERPT_READ);
        summary(&body)
    }
}

fn builder(connect_timeout: Duration) -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .user_agent(concat!("forelayer/", env!("CARGO_PKG_VERSION")))
        // One connection a request under way: ranges must not share one flow-control window.
        .http1_only()
        .redirect(redirect::Policy::none())
        .referer(false)
        .connect_timeout(connect_timeout)
        .pool_max_idle_per_host(IDLE_PER_HOST)
}

/// Host and port of a URL; the port only where it is not the scheme's own.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// Media type without parameters, in lower case.
pub(super) fn content_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    let media = value.split(';').next()?.trim().to_ascii_lowercase();
    (!media.is_empty()).then_some(media)
}

/// Whether an answer is a web page by its own account.
pub(super) fn is_html(headers: &HeaderMap) -> bool {
    content_type(headers)
        .is_some_and(|media| media == "text/html" || media == "application/xhtml+xml")
}

fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// The registry's own words where the body is the specification's error document, else its beginning, on one line.
fn summary(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Document {
        errors: Vec<Entry>,
    }
    #[derive(serde::Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    if let Ok(document) = serde_json::from_slice::<Document>(body)
        && let Some(Entry { code, message }) = document.errors.first()
    {
        return shorten(&format!("{code} {message}"));
    }
    shorten(&String::from_utf8_lossy(body))
}

/// One line of bounded length, without control characters.
pub(super) fn shorten(text: &str) -> String {
    let mut line = String::new();
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()) {
        if word.is_empty() {
            continue;
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
        if line.len() > EXCERPT_SHOWN {
            let end = (0..=EXCERPT_SHOWN)
                .rev()
                .find(|&at| line.is_char_boundary(at));
            line.truncate(end.unwrap_or(0));
            line.push_str("...");
            break;
        }
    }
    line
}

/// An error and what caused it, on one line.
fn causes(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        next = cause.source();
    }
    line
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::time::UNIX_EPOCH;

    use proptest::prelude::*;

    use super::*;

    fn transport(plain: &[&str]) -> Transport {
        Transport::new(&config::Registry {
            plain_http: plain.iter().map(ToString::to_string).collect(),
            ..config::Registry::default()
        })
        .unwrap()
    }

    #[test]
    fn plain_http_is_for_this_machine_and_for_configured_hosts() {
        let transport = transport(&["lab.example", "port.example:5000"]);
        let base = |host: &str| {
            let repository = Repository {
                host: host.into(),
                name: "x".into(),
            };
            transport.base(&repository).unwrap().to_string()
        };
        for (host, url) in [
            ("127.0.0.1:5000", "http://127.0.0.1:5000/v2/"),
            ("[::1]:5000", "http://[::1]:5000/v2/"),
            ("localhost", "http://localhost/v2/"),
            ("lab.example", "http://lab.example/v2/"),
            ("lab.example:81", "http://lab.example:81/v2/"),
            ("port.example:5000", "http://port.example:5000/v2/"),
            ("port.example", "https://port.example/v2/"),
            ("docker.io", "https://registry-1.docker.io/v2/"),
            ("10.0.0.1:5000", "https://10.0.0.1:5000/v2/"),
        ] {
            assert_eq!(base(host), url);
        }
        let check = |url: &str| transport.check(&Url::parse(url).unwrap(), "a");
        assert_eq!(check("https://cdn.example/x"), Ok(()));
        assert_eq!(check("http://127.0.0.2:1/x"), Ok(()));
        assert!(matches!(
            check("http://cdn.example/x"),
            Err(Failure::PlainHttp { .. })
        ));
        assert!(matches!(
            check("file:///etc/passwd"),
            Err(Failure::Redirect { .. })
        ));
    }

    #[test]
    fn bodies_of_errors_become_one_line() {
        assert_eq!(
            summary(br#"{"errors":[{"code":"DENIED","message":"no\naccess","detail":{}}]}"#),
            "DENIED no access"
        );
        assert_eq!(summary(b"<h1>Bad\r\n gateway</h1>"), "<h1>Bad gateway</h1>");
        assert_eq!(summary(b""), "");
        assert_eq!(summary(b"{\"errors\":[]}"), "{\"errors\":[]}");
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let read = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, value.parse().unwrap());
            retry_after(&headers, UNIX_EPOCH + Duration::from_secs(784_111_770))
        };
        assert_eq!(read("7"), Some(Duration::from_secs(7)));
        assert_eq!(
            read("Sun, 06 Nov 1994 08:49:37 GMT"),
            Some(Duration::from_secs(7))
        );
        assert_eq!(read("Tue, 06 Nov 1984 08:49:37 GMT"), Some(Duration::ZERO));
        assert_eq!(read("later"), None);
    }

    proptest! {
        #[test]
        fn excerpts_are_short_lines(body in proptest::collection::vec(any::<u8>(), 0..1000)) {
            let line = summary(&body);
            prop_assert!(line.len() <= EXCERPT_SHOWN + 3);
            prop_assert!(!line.contains(|c: char| c.is_control()));
        }
    }
}
