//! One request: who asks, where it leads, what goes wrong, what is answered.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{
        ACCEPT_RANGES, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE,
        ETAG, HeaderMap, HeaderValue, LOCATION, RANGE, RETRY_AFTER, TRANSFER_ENCODING,
        WWW_AUTHENTICATE,
    },
};
use hyper_util::rt::TokioIo;
use serde_json::json;
use url::Url;

use super::{
    State,
    body::{Body, Ended, Sending, Source, whole},
    connection::Connection,
    faults::Fault,
    log::Record,
};

/// Path prefix of the second listener's blobs.
const STORE: &str = "/store";

/// An answer before the faults.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    source: Source,
    /// Offset in the blob of the first byte.
    position: u64,
}

/// Answers one request; an error ends the connection.
pub(super) async fn answer(
    state: Arc<State>,
    connection: Connection,
    request: Request<Incoming>,
) -> io::Result<Response<Body>> {
    let record = record(&state, &connection, &request);
    let open = Ended(state.log.open(record.clone()));
    state.shape.request().await;
    let url =
        Url::parse(&format!("http://{}{}", record.host, record.path)).map_err(io::Error::other)?;
    if let Some(response) = at_the_door(&state, &connection, &request, &url, &record) {
        open.0.status(response.status().as_u16());
        if let Some(size) = hyper::body::Body::size_hint(response.body()).exact()
            && request.method() != Method::HEAD
        {
            open.0.sent(usize::try_from(size).unwrap_or(usize::MAX));
        }
        return Ok(response);
    }
    let fault = state.faults.strike(&record);
    if fault == Some(Fault::Hold) {
        state.faults.hold().await;
    }
    let answer = match &fault {
        Some(Fault::Silence) => std::future::pending().await,
        Some(Fault::Html) => document(
            200,
            "text/html; charset=utf-8",
            "<html><body>Please log in</body></html>",
        ),
        Some(Fault::Status {
            status,
            retry_after,
        }) => {
            let text =
                json!({"errors": [{"code": "UNAVAILABLE", "message": "a fault rule says so"}]})
                    .to_string();
            let mut answer = document(*status, "application/json", &text);
            if let Some(seconds) = retry_after {
                answer
                    .headers
                    .insert(RETRY_AFTER, HeaderValue::from(*seconds));
            }
            answer
        }
        Some(Fault::RangeNotSatisfiable) => document(416, "text/plain", "no such range"),
        _ if state.upstream.is_some() && !is_own_blob(&state, &request) => {
            match upstream(&state, request, fault.as_ref()).await {
                Ok(answer) => answer,
                Err(e) => document(
                    502,
                    "text/plain",
                    &format!("the registry behind this one: {e}"),
                ),
            }
        }
        _ => local(
            &state,
            request.method(),
            url.path(),
            &record,
            fault.as_ref(),
        ),
    };
    Ok(finish(&state, &connection, answer, fault, open))
}

/// Whether a blob is asked for that this registry has itself, though another one stands behind it.
fn is_own_blob(state: &State, request: &Request<Incoming>) -> bool {
    let digest = request.uri().path().split_once("/blobs/");
    request.method() == Method::GET
        && digest.is_some_and(|(_, digest)| state.content.blob(digest).is_some())
}

fn record(state: &State, connection: &Connection, request: &Request<Incoming>) -> Record {
    let text = |name| {
        request
            .headers()
            .get(name)
            .and_then(|value: &HeaderValue| value.to_str().ok())
    };
    let address = if connection.other {
        state.other
    } else {
        state.address
    };
    Record {
        method: request.method().to_string(),
        path: request
            .uri()
            .path_and_query()
            .map_or_else(|| "/".to_owned(), ToString::to_string),
        host: address.to_string(),
        connection: connection.number,
        range: text(RANGE).and_then(range),
        authorization: text(AUTHORIZATION)
            .map(|header| header.split(' ').next().unwrap_or_default().to_owned()),
        status: 0,
        bytes: 0,
        start: Instant::now(),
        end: None,
    }
}

/// `bytes=first-last` or `bytes=first-`.
fn range(header: &str) -> Option<(u64, u64)> {
    let (first, last) = header.strip_prefix("bytes=")?.split_once('-')?;
    let last = if last.is_empty() {
        u64::MAX
    } else {
        last.parse().ok()?
    };
    Some((first.parse().ok()?, last))
}

/// Repository of a path `/v2/<repository>/(manifests|blobs|tags)/...`.
fn repository(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("/v2/")?;
    ["/manifests/", "/blobs/", "/tags/"]
        .iter()
        .find_map(|part| rest.find(part))
        .map(|end| &rest[..end])
}

/// Tokens, refusals and redirects.
fn at_the_door(
    state: &State,
    connection: &Connection,
    request: &Request<Incoming>,
    url: &Url,
    record: &Record,
) -> Option<Response<Body>> {
    let authorization = request
        .headers()
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    if connection.other {
        if url.path() == "/token" {
            let (status, text) = state.auth.token(url, authorization);
            return Some(small(status, &[], text));
        }
        let (revoked, now) = (state.options.read().revoked, unix_now());
        let number = |wanted: &str| {
            let (_, value) = url.query_pairs().find(|(name, _)| name == wanted)?;
            value.parse::<u64>().ok()
        };
        if !url.path().starts_with(STORE) {
            return Some(small(404, &[], "this host stores blobs".to_owned()));
        }
        if number("Expires").is_none_or(|end| end <= now) || number("generation") != Some(revoked) {
            return Some(small(403, &[], "Request has expired".to_owned()));
        }
        return None;
    }
    let name = repository(url.path()).unwrap_or_default();
    if let Err(challenges) = state.auth.admits(authorization, name, state.other) {
        let text =
            json!({"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]});
        let headers: Vec<_> = challenges
            .into_iter()
            .map(|challenge| (WWW_AUTHENTICATE, challenge))
            .collect();
        return Some(small(401, &headers, text.to_string()));
    }
    let options = state.options.read().clone();
    if let Some(lifetime) = options.redirect_blobs
        && record.blob().is_some()
        && request.method() == Method::GET
    {
        let location = format!(
            "http://{}{STORE}{}?Expires={}&generation={}",
            state.other,
            url.path(),
            unix_now() + lifetime.as_secs(),
            options.revoked,
        );
        return Some(small(307, &[(LOCATION, location)], String::new()));
    }
    None
}

fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

fn small(
    status: u16,
    headers: &[(hyper::header::HeaderName, String)],
    text: String,
) -> Response<Body> {
    let mut response = Response::new(whole(text));
    *response.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in headers {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().append(name.clone(), value);
        }
    }
    response
}

fn document(status: u16, media_type: &str, text: &str) -> Answer {
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_str(media_type) {
        headers.insert(CONTENT_TYPE, value);
    }
    headers.insert(CONTENT_LENGTH, HeaderValue::from(text.len()));
    Answer {
        status: StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
        headers,
        source: Source::Document(text.to_owned().into()),
        position: 0,
    }
}

fn not_found(code: &str) -> Answer {
    let text = json!({"errors": [{"code": code, "message": "not known to this registry"}]});
    document(404, "application/json", &text.to_string())
}

/// Answers from memory and files.
fn local(
    state: &State,
    method: &Method,
    path: &str,
    record: &Record,
    fault: Option<&Fault>,
) -> Answer {
    if method != Method::GET && method != Method::HEAD {
        return document(405, "text/plain", "this registry only gives");
    }
    let path = path.strip_prefix(STORE).unwrap_or(path);
    if path == "/v2/" || path == "/v2" {
        return document(200, "application/json", "{}");
    }
    let Some(name) = repository(path) else {
        return not_found("NAME_UNKNOWN");
    };
    let rest = &path["/v2/".len() + name.len() + 1..];
    match rest.split_once('/') {
        Some(("manifests", wanted)) => match state.content.manifest(name, wanted) {
            None => not_found("MANIFEST_UNKNOWN"),
            Some((digest, media_type, bytes)) => {
                let mut answer = document(200, &media_type, "");
                answer
                    .headers
                    .insert(CONTENT_LENGTH, HeaderValue::from(bytes.len()));
                if let Ok(value) = HeaderValue::from_str(&digest) {
                    answer.headers.insert("docker-content-digest", value);
                }
                answer.source = Source::Document(bytes);
                answer
            }
        },
        Some(("blobs", digest)) => blob(state, digest, record, fault),
        Some(("tags", "list")) => {
            let tags = json!({"name": name, "tags": state.content.tags(name)});
            document(200, "application/json", &tags.to_string())
        }
        _ => not_found("UNSUPPORTED"),
    }
}

fn blob(state: &State, digest: &str, record: &Record, fault: Option<&Fault>) -> Answer {
    let Some(blob) = state.content.blob(digest) else {
        return not_found("BLOB_UNKNOWN");
    };
    let size = blob.size();
    let wanted = match fault {
        Some(Fault::IgnoreRange) => None,
        _ => record.range,
    };
    let bytes = match fault {
        Some(Fault::OtherBlob { digest }) => state.content.blob(digest).unwrap_or(blob),
        _ => blob,
    };
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    if let Ok(value) = HeaderValue::from_str(digest) {
        headers.insert(ETAG, value);
    }
    let (status, start, end) = match wanted {
        None => (StatusCode::OK, 0, size),
        Some((first, last)) if first < size && first <= last => {
            let end = last.saturating_add(1).min(size);
            let value = format!("bytes {first}-{}/{size}", end - 1);
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(CONTENT_RANGE, value);
            }
            (StatusCode::PARTIAL_CONTENT, first, end)
        }
        Some(_) => return document(416, "text/plain", "no such range"),
    };
    headers.insert(CONTENT_LENGTH, HeaderValue::from(end - start));
    Answer {
        status,
        headers,
        source: Source::Blob { blob: bytes, end },
        position: start,
    }
}

/// Asks the registry behind this one.
async fn upstream(
    state: &State,
    mut request: Request<Incoming>,
    fault: Option<&Fault>,
) -> io::Result<Answer> {
    let host = state.upstream.as_deref().unwrap_or_default();
    if let Some(path) = request.uri().path_and_query() {
        let mut path = path.as_str();
        path = path.strip_prefix(STORE).unwrap_or(path);
        let path = match fault {
            Some(Fault::OtherBlob { digest }) => match path.split_once("/blobs/") {
                Some((before, _)) => format!("{before}/blobs/{digest}"),
                None => path.to_owned(),
            },
            _ => path.to_owned(),
        };
        *request.uri_mut() = path.parse().map_err(io::Error::other)?;
    }
    if fault == Some(&Fault::IgnoreRange) {
        request.headers_mut().remove(RANGE);
    }
    request.headers_mut().remove(CONNECTION);
    let stream = tokio::net::TcpStream::connect(host).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    // It ends with the exchange; what goes wrong shows in the body.
    tokio::spawn(connection);
    let (parts, body) = sender
        .send_request(request)
        .await
        .map_err(io::Error::other)?
        .into_parts();
    let mut headers = parts.headers;
    headers.remove(CONNECTION);
    headers.remove(TRANSFER_ENCODING);
    let position = headers
        .get(CONTENT_RANGE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| {
            value
                .strip_prefix("bytes ")?
                .split('-')
                .next()?
                .parse()
                .ok()
        })
        .unwrap_or(0);
    Ok(Answer {
        status: parts.status,
        headers,
        source: Source::Upstream(body),
        position,
    })
}

/// Does to an answer's head what its fault says, and sends it.
fn finish(
    state: &Arc<State>,
    connection: &Connection,
    mut answer: Answer,
    fault: Option<Fault>,
    open: Ended,
) -> Response<Body> {
    let length = |headers: &HeaderMap| {
        let value = headers.get(CONTENT_LENGTH)?.to_str().ok()?;
        value.parse::<u64>().ok()
    };
    match fault {
        Some(Fault::WrongContentRange) => {
            let moved = answer
                .headers
                .get(CONTENT_RANGE)
                .and_then(|value| value.to_str().ok())
                .and_then(shifted);
            if let Some(value) = moved.and_then(|text| HeaderValue::from_str(&text).ok()) {
                answer.headers.insert(CONTENT_RANGE, value);
            }
        }
        Some(Fault::ShortBody { missing }) => {
            if let Some(length) = length(&answer.headers) {
                let short = length.saturating_sub(missing);
                answer
                    .headers
                    .insert(CONTENT_LENGTH, HeaderValue::from(short));
                if let Source::Blob { end, .. } = &mut answer.source {
                    *end = answer.position + short;
                }
            }
        }
        Some(Fault::LongBody { extra }) => {
            answer.headers.remove(CONTENT_LENGTH);
            if let Source::Blob { end, .. } = &mut answer.source {
                *end += extra;
            }
        }
        _ => {}
    }
    open.0.status(answer.status.as_u16());
    connection.reset.store(false, Ordering::Relaxed);
    let sending = Sending::new(
        Arc::clone(state),
        answer.source,
        answer.position,
        fault,
        open,
        Arc::clone(&connection.reset),
    );
    let mut response = Response::new(sending.into_body());
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    response
}

/// A Content-Range one byte further on.
fn shifted(header: &str) -> Option<String> {
    let (span, size) = header.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = span.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    Some(format!("bytes {}-{}/{size}", first + 1, last + 1))
}
