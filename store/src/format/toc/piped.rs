//! A stream that is unpacked by a thread of its own while what came of it is parsed: an engine waits for both.
//!
//! Invariants: at most [`DEPTH`] pieces are between the two; the thread has ended when [`piped`] returns, whether all
//! was read or not.

use std::{
    io::{self, Read},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

/// Bytes handed over at once.
const PIECE: usize = 128 << 10;
/// Pieces that may wait.
const DEPTH: usize = 4;

type Piece = io::Result<Vec<u8>>;

/// Gives `parse` what `unpacked` reads, in order, and with the error it ends with if it does.
///
/// # Errors
/// If no thread can be started.
pub(super) fn piped<T>(unpacked: impl Read + Send, parse: impl FnOnce(Pipe) -> T) -> io::Result<T> {
    thread::scope(|scope| {
        let (send, receive) = sync_channel(DEPTH);
        thread::Builder::new()
            .name("unpack".to_owned())
            .spawn_scoped(scope, move || pump(unpacked, &send))?;
        // With the pipe the receiver goes away, and with it the reason to unpack on.
        Ok(parse(Pipe {
            pieces: receive,
            piece: Vec::new(),
            at: 0,
        }))
    })
}

fn pump(mut unpacked: impl Read, pieces: &SyncSender<Piece>) {
    loop {
        let mut piece = vec![0; PIECE];
        let mut filled = 0;
        let ended = loop {
            match unpacked.read(&mut piece[filled..]) {
                Ok(0) => break Some(Ok(())),
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Some(Err(error)),
            }
            if filled == PIECE {
                break None;
            }
        };
        piece.truncate(filled);
        if filled > 0 && pieces.send(Ok(piece)).is_err() {
            return;
        }
        match ended {
            None => {}
            Some(Ok(())) => return,
            Some(Err(error)) => {
                // Whoever stopped reading has its own reason.
                let _ = pieces.send(Err(error));
                return;
            }
        }
    }
}

/// The reading end.
#[derive(Debug)]
pub(super) struct Pipe {
    pieces: Receiver<Piece>,
    piece: Vec<u8>,
    at: usize,
}

impl Read for Pipe {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.len() {
            self.piece = match self.pieces.recv() {
                Ok(piece) => piece?,
                // The other end is gone: that was all.
                Err(_) => return Ok(0),
            };
            self.at = 0;
        }
        let rest = &self.piece[self.at..];
        let length = rest.len().min(buf.len());
        buf[..length].copy_from_slice(&rest[..length]);
        self.at += length;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    /// Gives bytes in pieces of any size, then ends or fails.
    struct Source {
        bytes: Vec<u8>,
        at: usize,
        fails: bool,
    }

    impl Read for Source {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let rest = &self.bytes[self.at..];
            if rest.is_empty() && self.fails {
                return Err(io::Error::other("damaged"));
            }
            let length = rest.len().min(buf.len()).min(1 + self.at % 70_000);
            buf[..length].copy_from_slice(&rest[..length]);
            self.at += length;
            Ok(length)
        }
    }

    fn source(length: usize, fails: bool) -> Source {
        Source {
            bytes: (0..length).map(|n| (n % 251) as u8).collect(),
            at: 0,
            fails,
        }
    }

    #[test]
    fn every_byte_comes_in_order_and_then_the_end() {
        for length in [0, 1, PIECE - 1, PIECE, PIECE + 1, 20 * PIECE + 7] {
            let read = piped(source(length, false), |mut pipe| {
                let mut all = Vec::new();
                pipe.read_to_end(&mut all).map(|_| all)
            });
            assert!(
                read.unwrap().unwrap() == source(length, false).bytes,
                "{length}"
            );
        }
    }

    #[test]
    fn what_came_before_an_error_comes_before_the_error() {
        let (all, error) = piped(source(3 * PIECE + 5, true), |mut pipe| {
            let mut all = Vec::new();
            let error = pipe.read_to_end(&mut all).unwrap_err();
            (all, error)
        })
        .unwrap();
        assert_eq!(
            (all.len(), error.to_string().as_str()),
            (3 * PIECE + 5, "damaged")
        );
    }

    #[test]
    fn who_stops_reading_does_not_wait_for_the_rest() {
        let first = piped(source(100 * PIECE, false), |mut pipe| {
            let mut first = [0; 3];
            pipe.read_exact(&mut first).map(|()| first)
        });
        assert_eq!(first.unwrap().unwrap(), [0, 1, 2]);
    }
}
