//! The control socket's client, for the other commands and the witness.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use forelayer_profiler::protocol::{Attached, Started, StoreEvent, Trace};
use reqwest::{Method, Response};
use serde::{Serialize, de::DeserializeOwned};

use super::types::{Background, ErrorBody, PrefetchProgress, PrefetchRequest, RunSummary, Status};

/// Talks to the store that listens on a socket; cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
    http: reqwest::Client,
}

/// Why the store did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers.
    #[error(
        "no store answers on {socket}: {why}; is `forelayer serve` running, and is this user root?"
    )]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// Why.
        why: String,
    },
    /// The store answered with an error.
    #[error("{0}")]
    Refused(String),
    /// The connection broke or the answer makes no sense.
    #[error("the store's answer on {socket} broke off: {why}")]
    Broken {
        /// The socket.
        socket: PathBuf,
        /// Why.
        why: String,
    },
}

/// Lines of JSON that come one by one.
#[derive(Debug)]
pub struct Lines<T> {
    socket: PathBuf,
    response: Response,
    buffer: Vec<u8>,
    kind: std::marker::PhantomData<fn() -> T>,
}

impl Client {
    /// A client for the store on this socket. Nothing is connected yet.
    ///
    /// # Errors
    /// [`ClientError::Broken`] if no HTTP client can be made.
    pub fn new(socket: &Path) -> Result<Self, ClientError> {
        let http = reqwest::Client::builder()
            .unix_socket(socket)
            .connect_timeout(Duration::from_secs(5))
            .build()
            .map_err(|error| ClientError::Broken {
                socket: socket.to_owned(),
                why: chain(&error),
            })?;
        Ok(Self {
            socket: socket.to_owned(),
            http,
        })
    }

    /// `GET /v1/status`.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.get_json("/v1/status").await
    }

    /// Connects as a witness; the first line is [`StoreEvent::Hello`].
    pub async fn witness_events(&self) -> Result<Lines<StoreEvent>, ClientError> {
        let response = self
            .send(Method::GET, "/v1/witness/events", None::<&()>)
            .await?;
        Ok(self.lines(response))
    }

    /// Answers [`StoreEvent::Mounted`].
    pub async fn attached(&self, window: u64) -> Result<(), ClientError> {
        self.post_json::<_, serde_json::Value>("/v1/witness/attached", &Attached { window })
            .await
            .map(|_| ())
    }

    /// Says who started.
    pub async fn started(&self, started: &Started) -> Result<(), ClientError> {
        self.post_json::<_, serde_json::Value>("/v1/witness/started", started)
            .await
            .map(|_| ())
    }

    /// Hands in a trace.
    pub async fn hand_in(&self, trace: &Trace) -> Result<RunSummary, ClientError> {
        self.post_json("/v1/traces", trace).await
    }

    /// Fetches an image ahead; the last line is `finished`.
    pub async fn prefetch(
        &self,
        request: &PrefetchRequest,
    ) -> Result<Lines<PrefetchProgress>, ClientError> {
        let response = self
            .send(Method::POST, "/v1/prefetch", Some(request))
            .await?;
        Ok(self.lines(response))
    }

    /// Stops or resumes the background lane.
    pub async fn pause_background(&self, paused: bool) -> Result<(), ClientError> {
        self.post_json::<_, Background>("/v1/background", &Background { paused })
            .await
            .map(|_| ())
    }

    /// Any document of the store.
    pub async fn get_json<A: DeserializeOwned>(&self, path: &str) -> Result<A, ClientError> {
        let response = self.send(Method::GET, path, None::<&()>).await?;
        self.document(response).await
    }

    /// Any question to the store.
    pub async fn post_json<Q: Serialize, A: DeserializeOwned>(
        &self,
        path: &str,
        body: &Q,
    ) -> Result<A, ClientError> {
        let response = self.send(Method::POST, path, Some(body)).await?;
        self.document(response).await
    }

    async fn document<A: DeserializeOwned>(&self, response: Response) -> Result<A, ClientError> {
        let bytes = response
            .bytes()
            .await
            .map_err(|error| self.broken(chain(&error)))?;
        serde_json::from_slice(&bytes).map_err(|error| self.broken(error.to_string()))
    }

    async fn send<Q: Serialize>(
        &self,
        method: Method,
        path: &str,
        body: Option<&Q>,
    ) -> Result<Response, ClientError> {
        // The host is never looked up: all connections go to the socket.
        let mut request = self.http.request(method, format!("http://forelayer{path}"));
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request
            .send()
            .await
            .map_err(|error| ClientError::Unreachable {
                socket: self.socket.clone(),
                why: chain(&error),
            })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let text = response.text().await.unwrap_or_default();
        let error = serde_json::from_str::<ErrorBody>(&text)
            .map_or_else(|_| format!("{status}: {text}"), |body| body.error);
        Err(ClientError::Refused(error))
    }

    fn lines<T>(&self, response: Response) -> Lines<T> {
        Lines {
            socket: self.socket.clone(),
            response,
            buffer: Vec::new(),
            kind: std::marker::PhantomData,
        }
    }

    fn broken(&self, why: String) -> ClientError {
        ClientError::Broken {
            socket: self.socket.clone(),
            why,
        }
    }
}

impl<T: DeserializeOwned> Lines<T> {
    /// The next line; `None` when the store closed the stream.
    ///
    /// # Errors
    /// [`ClientError::Broken`] when the connection breaks or a line is malformed.
    pub async fn next(&mut self) -> Result<Option<T>, ClientError> {
        let broken = |socket: &Path, why: String| ClientError::Broken {
            socket: socket.to_owned(),
            why,
        };
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return serde_json::from_slice(&line)
                    .map(Some)
                    .map_err(|error| broken(&self.socket, error.to_string()));
            }
            match self.response.chunk().await {
                Ok(Some(piece)) => self.buffer.extend_from_slice(&piece),
                Ok(None) if self.buffer.is_empty() => return Ok(None),
                Ok(None) => {
                    return Err(broken(
                        &self.socket,
                        io::Error::from(io::ErrorKind::UnexpectedEof).to_string(),
                    ));
                }
                Err(error) => return Err(broken(&self.socket, chain(&error))),
            }
        }
    }
}

/// An error with its causes: reqwest's own text names only the outermost.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
