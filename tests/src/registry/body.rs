//! Bodies on their way out: through the bandwidth bucket, past the faults, into the log.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};

use super::{State, content::Blob, faults::Fault, log::Open};

/// The body of every answer.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Bytes handed to the connection at once: small, so that bandwidth and faults are met closely.
const PIECE: usize = 32 << 10;

/// Where bytes come from.
pub(super) enum Source {
    /// A blob's bytes up to `end`; behind the blob's own end there are zeros.
    Blob {
        /// The blob.
        blob: Blob,
        /// Offset behind the last byte.
        end: u64,
    },
    /// A document.
    Document(Bytes),
    /// Another registry.
    Upstream(Incoming),
}

/// A body being sent.
pub(super) struct Sending {
    pub(super) state: Arc<State>,
    pub(super) source: Source,
    /// Offset in the blob of the next byte.
    pub(super) position: u64,
    pub(super) fault: Option<Fault>,
    pub(super) open: Ended,
    /// Set to make the connection end with a reset.
    pub(super) reset: Arc<AtomicBool>,
    sent: u64,
}

/// Writes the time of the end into the log when the body is gone, for whatever reason.
pub(super) struct Ended(pub(super) Open);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Sending {
    pub(super) fn new(
        state: Arc<State>,
        source: Source,
        position: u64,
        fault: Option<Fault>,
        open: Ended,
        reset: Arc<AtomicBool>,
    ) -> Self {
        Self {
            state,
            source,
            position,
            fault,
            open,
            reset,
            sent: 0,
        }
    }

    /// The body for hyper.
    pub(super) fn into_body(self) -> Body {
        let pieces = stream::unfold(Some(self), |sending| async {
            let mut sending = sending?;
            match sending.piece().await {
                Ok(Some(piece)) => Some((Ok(Frame::data(piece)), Some(sending))),
                Ok(None) => None,
                Err(e) => Some((Err(e), None)),
            }
        });
        StreamBody::new(pieces).boxed_unsync()
    }

    async fn piece(&mut self) -> io::Result<Option<Bytes>> {
        let cut = match &self.fault {
            Some(Fault::Truncate { after } | Fault::Reset { after } | Fault::Stall { after }) => {
                Some(*after)
            }
            _ => None,
        };
        if cut == Some(self.sent) {
            return self.cut().await;
        }
        let Some(mut piece) = self.read().await? else {
            return Ok(None);
        };
        if let Some(left) = cut.map(|after| after - self.sent)
            && left < piece.len() as u64
        {
            piece.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        }
        if let (Some(Fault::Drip { every }), Source::Blob { .. }) = (&self.fault, &self.source) {
            tokio::time::sleep(*every).await;
            piece.truncate(1);
        }
        if let Some(Fault::FlipBit { offset }) = self.fault
            && let Some(at) = offset.checked_sub(self.position)
            && at < piece.len() as u64
        {
            let mut changed = BytesMut::from(&piece[..]);
            changed[usize::try_from(at).unwrap_or(0)] ^= 1;
            piece = changed.freeze();
        }
        self.state.shape.pass(piece.len()).await;
        self.position += piece.len() as u64;
        self.sent += piece.len() as u64;
        self.open.0.sent(piece.len());
        Ok(Some(piece))
    }

    /// What was sent so far is flushed while this is pending; then the connection ends, or nothing happens any more.
    async fn cut(&mut self) -> io::Result<Option<Bytes>> {
        if matches!(self.fault, Some(Fault::Stall { .. })) {
            std::future::pending::<()>().await;
        }
        tokio::task::yield_now().await;
        if matches!(self.fault, Some(Fault::Reset { .. })) {
            self.reset.store(true, Ordering::Relaxed);
        }
        Err(io::Error::other("cut off by a fault rule"))
    }

    async fn read(&mut self) -> io::Result<Option<Bytes>> {
        match &mut self.source {
            Source::Blob { blob, end } => {
                let left = end.saturating_sub(self.position);
                let len = usize::try_from(left).unwrap_or(usize::MAX).min(PIECE);
                if len == 0 {
                    return Ok(None);
                }
                let bytes = blob.read(self.position, len)?;
                if bytes.is_empty() {
                    return Ok(Some(Bytes::from(vec![0; len])));
                }
                Ok(Some(bytes))
            }
            Source::Document(bytes) => {
                let len = bytes.len().min(PIECE);
                let piece = bytes.split_to(len);
                Ok((!piece.is_empty()).then_some(piece))
            }
            Source::Upstream(incoming) => loop {
                match incoming.frame().await {
                    None => return Ok(None),
                    Some(Err(e)) => return Err(io::Error::other(e)),
                    Some(Ok(frame)) => {
                        if let Ok(data) = frame.into_data()
                            && !data.is_empty()
                        {
                            return Ok(Some(data));
                        }
                    }
                }
            },
        }
    }
}

/// A body that is there at once and not shaped.
pub(super) fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}
