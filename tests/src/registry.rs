//! A registry to test against: serves images from memory and disk or stands in front of a real one, slow and faulty as
//! told.
//!
//! Everything that a test relies on is in the request log, so that "nothing was downloaded" is a statement about
//! requests. What can be set at run time: latency, bandwidth, authorization, redirects ([`Options`]), faults
//! ([`Faults`]). It runs on a thread of its own; dropping it closes all connections.

mod auth;
mod body;
mod connection;
mod content;
mod faults;
mod log;
mod serve;
mod shape;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use self::{auth::Auth, shape::Shape};
pub use self::{
    auth::AuthMode,
    content::{Content, digest_of},
    faults::{Fault, Faults, Rule},
    log::{Log, Record},
};

/// A running registry.
#[derive(Debug)]
pub struct Server {
    state: Arc<State>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

/// What all connections share.
#[derive(Debug)]
struct State {
    address: SocketAddr,
    /// The second listener, on another loopback address: redirected blobs, and the token server.
    other: SocketAddr,
    /// Host and port of the registry this one stands in front of.
    upstream: Option<String>,
    content: Content,
    faults: Faults,
    log: Log,
    shape: Shape,
    auth: Auth,
    options: parking_lot::RwLock<Options>,
}

/// What can be switched at run time.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Send blob requests to the second listener with a signed URL of this lifetime.
    pub redirect_blobs: Option<Duration>,
    /// Count the signed URLs given out so far as expired.
    revoked: u64,
}

impl Server {
    /// Serves `content` on a free port of 127.0.0.1.
    pub fn start(content: Content) -> io::Result<Self> {
        Self::start_with(content, None, 0)
    }

    /// Stands in front of the registry at `upstream` (`host:port`, plain HTTP): all methods, pushes included. Blobs
    /// added to its content are given from there.
    pub fn start_proxy(upstream: &str) -> io::Result<Self> {
        Self::start_with(Content::default(), Some(upstream.to_owned()), 0)
    }

    /// The same as the other two, on a given port; 0 takes a free one.
    pub fn start_with(content: Content, upstream: Option<String>, port: u16) -> io::Result<Self> {
        let bind = |address: Ipv4Addr, port| {
            let listener = TcpListener::bind((address, port))?;
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            Ok::<_, io::Error>((listener, address))
        };
        let (listener, address) = bind(Ipv4Addr::LOCALHOST, port)?;
        let (other_listener, other) = bind(Ipv4Addr::new(127, 0, 0, 2), 0)?;
        let state = Arc::new(State {
            address,
            other,
            upstream,
            content,
            faults: Faults::default(),
            log: Log::default(),
            shape: Shape::default(),
            auth: Auth::default(),
            options: parking_lot::RwLock::default(),
        });
        let stop = CancellationToken::new();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("registry")
            .enable_all()
            .build()?;
        let thread = {
            let (state, stop) = (Arc::clone(&state), stop.clone());
            std::thread::Builder::new()
                .name("registry".to_owned())
                .spawn(move || {
                    runtime.block_on(connection::listen(
                        state,
                        vec![(listener, false), (other_listener, true)],
                        stop,
                    ));
                    // Connections end here, not when their peers like.
                    runtime.shutdown_background();
                })?
        };
        Ok(Self {
            state,
            stop,
            thread: Some(thread),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.state.address
    }

    /// `127.0.0.1:port`, as references name it.
    #[must_use]
    pub fn host(&self) -> String {
        self.state.address.to_string()
    }

    /// The second listener, which redirected blobs and tokens come from.
    #[must_use]
    pub fn other_addr(&self) -> SocketAddr {
        self.state.other
    }

    /// What it serves; more can be added at any time.
    #[must_use]
    pub fn content(&self) -> &Content {
        &self.state.content
    }

    /// What it does wrong.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.state.faults
    }

    /// What it was asked.
    #[must_use]
    pub fn log(&self) -> &Log {
        &self.state.log
    }

    /// Time added before each request is answered.
    pub fn set_latency(&self, latency: Duration) {
        self.state.shape.set_latency(latency);
    }

    /// Time added before a new connection is served (the round trips that making it takes elsewhere).
    pub fn set_connection_latency(&self, latency: Duration) {
        self.state.shape.set_connection_latency(latency);
    }

    /// Bytes per second of all bodies together; `None`: as fast as it goes.
    pub fn set_bandwidth(&self, bytes_per_second: Option<u64>) {
        self.state.shape.set_bandwidth(bytes_per_second);
    }

    /// Who may ask.
    pub fn set_auth(&self, mode: AuthMode) {
        self.state.auth.set(mode);
    }

    /// Takes back all tokens given out so far.
    pub fn revoke_tokens(&self) {
        self.state.auth.revoke();
    }

    /// Redirects blob requests to the second listener, with URLs of this lifetime; `None` stops it.
    pub fn set_redirect(&self, lifetime: Option<Duration>) {
        self.state.options.write().redirect_blobs = lifetime;
    }

    /// Makes all redirect URLs given out so far refuse with 403.
    pub fn revoke_redirects(&self) {
        self.state.options.write().revoked += 1;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // A panic of that thread was reported by the thread itself.
            let _ = thread.join();
        }
    }
}
