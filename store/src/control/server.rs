//! The control socket's server, and the metrics page.

use std::{
    convert::Infallible, fs, io, net::SocketAddr, os::unix::fs::PermissionsExt as _, path::Path,
    sync::Arc,
};

use bytes::Bytes;
use forelayer_profiler::protocol::{Attached, Started, Trace};
use futures_util::{StreamExt as _, future::BoxFuture, stream};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, StreamBody, combinators::BoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Frame, Incoming},
    header::CONTENT_TYPE,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::mpsc,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    hub::WitnessHub,
    types::{Background, ErrorBody, PrefetchProgress, PrefetchRequest, RunSummary, Status},
};
use crate::metrics::Metrics;

/// A trace of a large start has a few megabytes.
const MAX_BODY: usize = 256 << 20;

type Body = BoxBody<Bytes, Infallible>;

/// What the store can do for those who ask; implemented where the store is put together.
pub trait Backend: Send + Sync + 'static {
    /// What is served, and how much of it is here.
    fn status(&self) -> Status;
    /// A container started, and its command is known. Does not wait.
    fn started(&self, started: Started);
    /// Takes a trace into its profile.
    fn take_in(&self, trace: Trace) -> BoxFuture<'static, Result<RunSummary, String>>;
    /// Fetches an image ahead; progress comes until `finished`.
    fn prefetch(
        &self,
        request: PrefetchRequest,
    ) -> BoxFuture<'static, Result<mpsc::Receiver<PrefetchProgress>, String>>;
    /// Stops or resumes the background lane.
    fn pause_background(&self, paused: bool);
}

/// What the server needs.
#[derive(Clone)]
pub struct Server {
    /// The store.
    pub backend: Arc<dyn Backend>,
    /// The witnesses.
    pub hub: Arc<WitnessHub>,
    /// The table.
    pub metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Server")
    }
}

impl Server {
    /// Listens on the control socket (0600; one left by a dead store is replaced) until `stop`.
    ///
    /// # Errors
    /// When the socket cannot be made, or another store answers on it.
    pub fn listen(
        self,
        socket: &Path,
        stop: CancellationToken,
        tasks: &TaskTracker,
    ) -> io::Result<()> {
        if let Some(dir) = socket.parent() {
            fs::create_dir_all(dir)?;
        }
        if std::os::unix::net::UnixStream::connect(socket).is_ok() {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "another store answers on this socket",
            ));
        }
        match fs::remove_file(socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(socket)?;
        fs::set_permissions(socket, fs::Permissions::from_mode(0o600))?;
        let (connections, path) = (tasks.clone(), socket.to_owned());
        tasks.spawn(async move {
            loop {
                let accepted = tokio::select! {
                    () = stop.cancelled() => break,
                    accepted = listener.accept() => accepted,
                };
                match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(serve(stream, self.clone(), Page::Control, stop.clone()));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the control socket cannot accept a connection");
                        // Out of descriptors: trying again at once would spin.
                        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    }
                }
            }
            let _ = fs::remove_file(path);
        });
        Ok(())
    }

    /// Serves `/metrics` over TCP until `stop`.
    ///
    /// # Errors
    /// When the address cannot be used.
    pub async fn listen_metrics(
        self,
        address: SocketAddr,
        stop: CancellationToken,
        tasks: &TaskTracker,
    ) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind(address).await?;
        let local = listener.local_addr()?;
        let connections = tasks.clone();
        tasks.spawn(async move {
            loop {
                let accepted = tokio::select! {
                    () = stop.cancelled() => break,
                    accepted = listener.accept() => accepted,
                };
                match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(serve(stream, self.clone(), Page::Metrics, stop.clone()));
                    }
                    Err(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
                }
            }
        });
        Ok(local)
    }

    async fn answer(&self, request: Request<Incoming>, page: Page) -> Response<Body> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let answered = match (page, &method, path.as_str()) {
            (_, &Method::GET, "/metrics") => Ok(Response::builder()
                .header(
                    CONTENT_TYPE,
                    "application/openmetrics-text; version=1.0.0; charset=utf-8",
                )
                .body(full(self.metrics.page()))),
            (Page::Metrics, ..) => Err((
                StatusCode::NOT_FOUND,
                format!("there is nothing at {path}; ask for /metrics"),
            )),
            (Page::Control, &Method::GET, "/v1/status") => Ok(json(&self.backend.status())),
            (Page::Control, &Method::GET, "/v1/witness/events") => self.events(),
            (Page::Control, &Method::POST, "/v1/witness/attached") => self.attached(request).await,
            (Page::Control, &Method::POST, "/v1/witness/started") => self.started(request).await,
            (Page::Control, &Method::POST, "/v1/traces") => self.traces(request).await,
            (Page::Control, &Method::POST, "/v1/prefetch") => self.prefetch(request).await,
            (Page::Control, &Method::POST, "/v1/background") => self.background(request).await,
            (Page::Control, ..) => Err((
                StatusCode::NOT_FOUND,
                format!("this store does not know {method} {path}"),
            )),
        };
        match answered {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => failure(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
            Err((status, error)) => failure(status, error),
        }
    }

    fn events(&self) -> Answer {
        let listener = self.hub.connect().ok_or_else(|| {
            (
                StatusCode::SERVICE_UNAVAILABLE,
                "the store is still starting".to_owned(),
            )
        })?;
        let lines = stream::unfold(listener, |mut listener| async move {
            let event = listener.next().await?;
            Some((line(&event), listener))
        });
        Ok(lines_response(lines))
    }

    async fn attached(&self, request: Request<Incoming>) -> Answer {
        let attached: Attached = body(request).await?;
        self.hub.attached(attached.window);
        Ok(json(&serde_json::json!({})))
    }

    async fn started(&self, request: Request<Incoming>) -> Answer {
        self.backend.started(body(request).await?);
        Ok(json(&serde_json::json!({})))
    }

    async fn traces(&self, request: Request<Incoming>) -> Answer {
        let trace: Trace = body(request).await?;
        match self.backend.take_in(trace).await {
            Ok(summary) => Ok(json(&summary)),
            Err(error) => Err((StatusCode::UNPROCESSABLE_ENTITY, error)),
        }
    }

    async fn prefetch(&self, request: Request<Incoming>) -> Answer {
        let request: PrefetchRequest = body(request).await?;
        let progress = self
            .backend
            .prefetch(request)
            .await
            .map_err(|error| (StatusCode::UNPROCESSABLE_ENTITY, error))?;
        let lines = stream::unfold(progress, |mut progress| async move {
            let step = progress.recv().await?;
            Some((line(&step), progress))
        });
        Ok(lines_response(lines))
    }

    async fn background(&self, request: Request<Incoming>) -> Answer {
        let background: Background = body(request).await?;
        self.backend.pause_background(background.paused);
        Ok(json(&background))
    }
}

/// Which server a connection came to.
#[derive(Debug, Clone, Copy)]
enum Page {
    Control,
    Metrics,
}

type Answer = Result<Result<Response<Body>, hyper::http::Error>, (StatusCode, String)>;

async fn serve<S>(stream: S, server: Server, page: Page, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let server = server.clone();
        async move { Ok::<_, Infallible>(server.answer(request, page).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        // Event streams do not end by themselves.
        () = stop.cancelled() => {}
        outcome = connection => {
            if let Err(error) = outcome {
                tracing::debug!(%error, "a connection of the control socket ended early");
            }
        }
    }
}

async fn body<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, (StatusCode, String)> {
    let bytes = Limited::new(request.into_body(), MAX_BODY)
        .collect()
        .await
        .map_err(|error| {
            if error.is::<LengthLimitError>() {
                (
                    StatusCode::PAYLOAD_TOO_LARGE,
                    format!("the body has more than {MAX_BODY} bytes"),
                )
            } else {
                (
                    StatusCode::BAD_REQUEST,
                    format!("the body cannot be read: {error}"),
                )
            }
        })?;
    serde_json::from_slice(&bytes.to_bytes()).map_err(|error| {
        (
            StatusCode::BAD_REQUEST,
            format!("the body is malformed: {error}"),
        )
    })
}

fn json<T: Serialize>(document: &T) -> Result<Response<Body>, hyper::http::Error> {
    match serde_json::to_vec(document) {
        Ok(bytes) => Response::builder()
            .header(CONTENT_TYPE, "application/json")
            .body(full(bytes)),
        Err(error) => Ok(failure(
            StatusCode::INTERNAL_SERVER_ERROR,
            error.to_string(),
        )),
    }
}

fn line<T: Serialize>(document: &T) -> Bytes {
    let mut bytes = serde_json::to_vec(document).unwrap_or_default();
    bytes.push(b'\n');
    bytes.into()
}

fn lines_response(
    lines: impl futures_util::Stream<Item = Bytes> + Send + Sync + 'static,
) -> Result<Response<Body>, hyper::http::Error> {
    let frames = lines.map(|line| Ok::<_, Infallible>(Frame::data(line)));
    Response::builder()
        .header(CONTENT_TYPE, "application/x-ndjson")
        .body(BodyExt::boxed(StreamBody::new(frames)))
}

fn failure(status: StatusCode, error: String) -> Response<Body> {
    let body = serde_json::to_vec(&ErrorBody { error }).unwrap_or_default();
    let mut response = Response::new(full(body));
    *response.status_mut() = status;
    response
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed()
}
