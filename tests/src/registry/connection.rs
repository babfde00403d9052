//! Listeners and connections; a connection can be made to end with a reset.

use std::{
    io,
    net::TcpListener as StdListener,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{State, serve};

/// What requests know of their connection.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    /// From 1.
    pub(super) number: u64,
    /// It came to the second listener.
    pub(super) other: bool,
    /// Set to make it end with a reset.
    pub(super) reset: Arc<AtomicBool>,
}

/// Serves both listeners until told to stop.
pub(super) async fn listen(
    state: Arc<State>,
    listeners: Vec<(StdListener, bool)>,
    stop: CancellationToken,
) {
    let numbers = Arc::new(AtomicU64::new(0));
    let mut accepting = JoinSet::new();
    for (listener, other) in listeners {
        // It is non-blocking already; only a runtime without I/O could refuse it.
        let Ok(listener) = TcpListener::from_std(listener) else {
            return;
        };
        let (state, numbers) = (Arc::clone(&state), Arc::clone(&numbers));
        accepting.spawn(accept(state, listener, other, numbers));
    }
    stop.cancelled().await;
    // Dropping the set ends the listeners, and with them their connections.
}

async fn accept(state: Arc<State>, listener: TcpListener, other: bool, numbers: Arc<AtomicU64>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // Out of descriptors, or the peer went away again: the next one may fare better.
                let Ok((stream, _)) = accepted else {
                    tokio::task::yield_now().await;
                    continue;
                };
                let connection = Connection {
                    number: numbers.fetch_add(1, Ordering::Relaxed) + 1,
                    other,
                    reset: Arc::default(),
                };
                connections.spawn(serve_connection(Arc::clone(&state), stream, connection));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve_connection(state: Arc<State>, stream: TcpStream, connection: Connection) {
    state.shape.connection().await;
    // Without it small answers wait for the peer's acknowledgement.
    let _ = stream.set_nodelay(true);
    let stream = Resettable {
        stream,
        reset: Arc::clone(&connection.reset),
    };
    let service =
        service_fn(move |request| serve::answer(Arc::clone(&state), connection.clone(), request));
    // How a connection ends is the peer's business, or a fault rule's.
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// A stream that is reset when it is dropped, if so wanted.
struct Resettable {
    stream: TcpStream,
    reset: Arc<AtomicBool>,
}

impl Drop for Resettable {
    fn drop(&mut self) {
        if self.reset.load(Ordering::Relaxed) {
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Resettable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Resettable {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
