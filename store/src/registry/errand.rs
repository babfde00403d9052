//! One question on its way to its answer: redirects, authorization, and which requests are counted.
//!
//! Invariant: `Authorization` is sent only where scheme, host and port are the registry's own.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use reqwest::{
    Response, StatusCode,
    header::{
        ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, HeaderValue, LOCATION, RANGE,
    },
};
use url::Url;

use super::{
    Failure, Question, RegistryError, Repository,
    ahead::Shelf,
    auth::Auth,
    redirects::{self, Redirects},
    transport::{Transport, authority, is_html, shorten},
};
use crate::{
    digest::Digest,
    metrics::{ByLane, Lane, Metrics},
};

/// Redirects followed for one request.
const MAX_HOPS: usize = 5;

/// What all clones of a client share.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) transport: Arc<Transport>,
    pub(super) auth: Arc<Auth>,
    pub(super) redirects: Redirects,
    pub(super) metrics: Arc<Metrics>,
    pub(super) shelf: Shelf,
    pub(super) metadata: tokio::sync::Semaphore,
}

/// One question on its way to its answer: what is asked, and which of the requests it takes are counted here.
pub(super) struct Errand<'a> {
    pub(super) question: &'a Arc<Question>,
    pub(super) repository: &'a Repository,
    /// Below the repository: `manifests/latest`.
    pub(super) path: String,
    pub(super) accept: Option<&'static str>,
    pub(super) range: Option<&'a Range<u64>>,
    /// The blob whose place is remembered.
    pub(super) blob: Option<Digest>,
    /// The caller counts the first request.
    pub(super) caller_counts: AtomicBool,
}

impl<'a> Errand<'a> {
    pub(super) fn metadata(
        question: &'a Arc<Question>,
        repository: &'a Repository,
        path: String,
        accept: Option<&'static str>,
    ) -> Self {
        Self {
            question,
            repository,
            path,
            accept,
            range: None,
            blob: None,
            caller_counts: false.into(),
        }
    }
}

impl Inner {
    /// Asks the registry, or the place that it named before, until there is an answer that is neither a redirect nor a
    /// question for authorization. Its status may still be an error.
    pub(super) async fn run(&self, errand: &Errand<'_>) -> Result<(Url, Response), RegistryError> {
        self.walk(errand).await.map_err(|failure| RegistryError {
            question: Arc::clone(errand.question),
            failure,
        })
    }

    async fn walk(&self, errand: &Errand<'_>) -> Result<(Url, Response), Arc<Failure>> {
        let base = self.transport.base(errand.repository)?;
        if let Some(blob) = &errand.blob
            && let Some(place) = self.redirects.get(errand.repository, blob, Instant::now())
        {
            let answer = self.send(errand, &base, &place).await;
            let failed = |response: &Response| response.status().is_server_error();
            if answer.as_ref().map_or(true, failed) {
                // Whoever asks again is led to where the blob is then.
                self.redirects.forget(errand.repository, blob, &place);
            }
            let response = answer?;
            let status = response.status();
            if !status.is_redirection() && !is_refused(status) {
                return Ok((place, response));
            }
            tracing::debug!(host = authority(&place), %status, "a remembered place refuses; asking the registry again");
            self.redirects.forget(errand.repository, blob, &place);
        }
        let first = base
            .join(&format!("{}/{}", errand.repository.name, errand.path))
            .map_err(|e| Failure::Connection {
                host: authority(&base),
                cause: e.to_string(),
            })?;
        let mut url = first.clone();
        let mut response = self.admitted(errand, &base, &url).await?;
        let mut lifetime: Option<Duration> = None;
        for _ in 0..MAX_HOPS {
            if !response.status().is_redirection() {
                if let (Some(lifetime), Some(blob)) = (lifetime, &errand.blob)
                    && response.status().is_success()
                {
                    let now = Instant::now();
                    self.redirects
                        .put(errand.repository, blob, url.clone(), now, lifetime);
                }
                return Ok((url, response));
            }
            let target = self.target(&url, &response)?;
            let this = redirects::lifetime(&target, response.headers(), SystemTime::now());
            lifetime = Some(lifetime.map_or(this, |earlier| earlier.min(this)));
            self.transport.finish(response).await;
            response = if same_origin(&target, &base) {
                self.admitted(errand, &base, &target).await?
            } else {
                self.send(errand, &base, &target).await?
            };
            url = target;
        }
        Err(Arc::new(Failure::Redirect {
            host: authority(&first),
            location: authority(&url),
            cause: "too many redirects",
        }))
    }

    /// Where a redirect leads.
    fn target(&self, url: &Url, response: &Response) -> Result<Url, Failure> {
        let host = authority(url);
        let location = response
            .headers()
            .get(LOCATION)
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        let Some(location) = location else {
            return Err(Failure::Status {
                host,
                status: response.status().as_u16(),
                excerpt: "a redirect without a location".to_owned(),
                retry_after: None,
                hint: "",
            });
        };
        let target = url.join(&location).map_err(|_| Failure::Redirect {
            host: host.clone(),
            location: shorten(&location),
            cause: "that is no URL",
        })?;
        self.transport.check(&target, &host)?;
        Ok(target)
    }

    /// Asks the registry itself, with a pass where it wants one.
    async fn admitted(
        &self,
        errand: &Errand<'_>,
        base: &Url,
        url: &Url,
    ) -> Result<Response, Arc<Failure>> {
        let mut used = self.auth.pass(errand.repository).await?;
        // A pass may have ended or been taken back on the way: one renewal, no more.
        for _ in 0..2 {
            let header = used.as_ref().map(|pass| pass.header().clone());
            let response = self.send_with(errand, base, url, header).await?;
            if response.status() != StatusCode::UNAUTHORIZED {
                return Ok(response);
            }
            let headers = response.headers().clone();
            self.transport.finish(response).await;
            used = Some(
                self.auth
                    .answer(errand.repository, url, &headers, used.as_ref())
                    .await?,
            );
        }
        let header = used.as_ref().map(|pass| pass.header().clone());
        self.send_with(errand, base, url, header).await
    }

    async fn send(
        &self,
        errand: &Errand<'_>,
        base: &Url,
        url: &Url,
    ) -> Result<Response, Arc<Failure>> {
        // A place on the registry's own host (a redirect within it) is under its authorization.
        let header = if same_origin(url, base) {
            let pass = self.auth.pass(errand.repository).await?;
            pass.map(|pass| pass.header().clone())
        } else {
            None
        };
        self.send_with(errand, base, url, header).await
    }

    async fn send_with(
        &self,
        errand: &Errand<'_>,
        base: &Url,
        url: &Url,
        authorization: Option<HeaderValue>,
    ) -> Result<Response, Arc<Failure>> {
        let mut request = self.transport.get(url)?;
        if let Some(accept) = errand.accept {
            request = request.header(ACCEPT, accept);
        } else {
            // Offsets mean nothing in a body that was compressed on the way.
            request = request.header(ACCEPT_ENCODING, "identity");
        }
        if let Some(range) = errand.range {
            request = request.header(RANGE, format!("bytes={}-{}", range.start, range.end - 1));
        }
        if let Some(header) = authorization
            && same_origin(url, base)
        {
            request = request.header(AUTHORIZATION, header);
        }
        let free = errand.caller_counts.swap(false, Ordering::Relaxed);
        if !free {
            let lane = ByLane {
                lane: Lane::Metadata,
            };
            self.metrics.requests.get_or_create(&lane).inc();
        }
        Ok(self.transport.send(url, request).await?)
    }

    /// Makes errors of answers that are none.
    pub(super) async fn data(
        &self,
        question: &Arc<Question>,
        url: Url,
        response: Response,
    ) -> Result<(Url, Response), RegistryError> {
        if response.status() != StatusCode::OK {
            return Err(question.fails(self.transport.refusal(&url, response).await));
        }
        if is_html(response.headers()) {
            return Err(question.fails(self.transport.page(&url, response).await));
        }
        Ok((url, response))
    }

    /// A whole body of at most `max` bytes.
    pub(super) async fn body(
        &self,
        question: &Arc<Question>,
        url: &Url,
        mut response: Response,
        max: u64,
    ) -> Result<Bytes, RegistryError> {
        let announced: Option<u64> = response
            .headers()
            .get(CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.parse().ok());
        if announced.is_some_and(|size| size > max) {
            return Err(question.fails(Failure::TooLarge {
                limit: max,
                size: announced,
            }));
        }
        let mut body = bytes::BytesMut::new();
        let until = self.transport.patience(announced.unwrap_or(max));
        loop {
            match self.transport.piece_until(until, &mut response).await {
                Ok(Some(piece)) => body.extend_from_slice(&piece),
                Ok(None) => break,
                Err(cause) => {
                    let got = body.len() as u64;
                    let host = authority(url);
                    return Err(question.fails(match announced {
                        Some(wanted) => Failure::EarlyEnd {
                            host,
                            got,
                            wanted,
                            cause,
                        },
                        None => Failure::Connection { host, cause },
                    }));
                }
            }
            if body.len() as u64 > max {
                return Err(question.fails(Failure::TooLarge {
                    limit: max,
                    size: announced,
                }));
            }
        }
        self.count_bytes(body.len());
        Ok(body.freeze())
    }

    pub(super) fn count_bytes(&self, count: usize) {
        let lane = ByLane {
            lane: Lane::Metadata,
        };
        self.metrics
            .fetched_bytes
            .get_or_create(&lane)
            .inc_by(count as u64);
    }
}

/// Whether a remembered place no longer answers: expired signatures give 400, 401, 403, moved objects 404 or 410.
fn is_refused(status: StatusCode) -> bool {
    status.is_client_error()
        && status != StatusCode::RANGE_NOT_SATISFIABLE
        && status != StatusCode::TOO_MANY_REQUESTS
}

/// Authorization stays with scheme, host and port.
fn same_origin(a: &Url, b: &Url) -> bool {
    a.origin() == b.origin()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn authorization_stays_with_scheme_host_and_port() {
        let same = |a: &str, b: &str| same_origin(&Url::parse(a).unwrap(), &Url::parse(b).unwrap());
        assert!(same("https://a.example/x", "https://a.example:443/v2/"));
        assert!(!same("http://a.example/x", "https://a.example/v2/"));
        assert!(!same("https://a.example:444/x", "https://a.example/v2/"));
        assert!(!same("https://b.a.example/x", "https://a.example/v2/"));
    }
}
