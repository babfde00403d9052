//! What is said over the holder's socket (docs/formats.md, "Holder socket"): one JSON document a message, descriptors
//! beside it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};

use super::MountName;
use crate::sys::seqpacket;

/// Version of the protocol; both sides refuse another.
pub const VERSION: u32 = 1;

/// No message is longer.
pub const MAX_MESSAGE: usize = 16 << 10;

/// From the store to the holder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ToHolder {
    /// The first message.
    Hello {
        /// [`VERSION`].
        version: u32,
    },
    /// Every INIT is done and the loops run: from now on the connections can be adopted.
    Serving,
    /// Unmount and exit. Only a holder that a store started obeys.
    Stop,
}

/// From the holder to the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ToStore {
    /// Another store is connected; [`ToStore::Mounts`] follows when it has gone.
    Busy {
        /// Its process id.
        pid: i32,
    },
    /// The connections, their descriptors beside it in this order.
    Mounts {
        /// [`VERSION`].
        version: u32,
        /// Whether a store has served them before: then there is no INIT to wait for.
        adopt: bool,
        /// Whether a store started this holder, so that a store has to stop it.
        child: bool,
        /// What is mounted.
        mounts: Vec<HeldMount>,
    },
    /// The mounts are gone (answer to [`ToHolder::Stop`]).
    Stopped,
    /// The store was not understood; the holder hangs up.
    Refused {
        /// Why.
        why: String,
    },
}

/// One connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldMount {
    /// Which.
    pub name: MountName,
    /// Where it is mounted.
    pub target: std::path::PathBuf,
    /// Device number as the kernel writes it in its events (`major << 20 | minor`).
    pub device: u32,
}

/// Sends a message.
///
/// # Errors
/// The other side has gone.
pub fn send<M: Serialize>(
    socket: impl AsFd,
    message: &M,
    fds: &[BorrowedFd<'_>],
) -> std::io::Result<()> {
    let text = serde_json::to_vec(message)?;
    seqpacket::send(socket, &text, fds)
}

/// Receives a message; `None` when the other side has gone.
///
/// # Errors
/// The message is not one of this protocol.
pub fn receive<M: for<'de> Deserialize<'de>>(
    socket: impl AsFd,
) -> std::io::Result<Option<(M, Vec<OwnedFd>)>> {
    let (text, fds) = match seqpacket::receive(socket, MAX_MESSAGE) {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Ok(None),
        other => other?,
    };
    if text.is_empty() {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&text)?, fds)))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn the_wire_form_is_as_documented() {
        assert_eq!(
            serde_json::to_string(&ToHolder::Hello { version: VERSION }).unwrap(),
            r#"{"type":"hello","version":1}"#
        );
        assert_eq!(
            serde_json::to_string(&ToStore::Mounts {
                version: VERSION,
                adopt: true,
                child: false,
                mounts: vec![HeldMount {
                    name: MountName::Control,
                    target: "/var/lib/forelayer/store".into(),
                    device: 41,
                }],
            })
            .unwrap(),
            r#"{"type":"mounts","version":1,"adopt":true,"child":false,"mounts":[{"name":"control","target":"/var/lib/forelayer/store","device":41}]}"#
        );
        assert_eq!(
            serde_json::to_string(&ToHolder::Serving).unwrap(),
            r#"{"type":"serving"}"#
        );
    }

    #[test]
    fn what_is_not_of_the_protocol_is_refused() {
        let (a, b) = seqpacket::pair().unwrap();
        for text in [
            &b"{\"type\":\"dance\"}"[..],
            b"{\"type\":\"hello\",\"version\":1,\"more\":2}",
            b"\xff",
            b"null",
        ] {
            seqpacket::send(&a, text, &[]).unwrap();
            assert!(receive::<ToHolder>(&b).is_err(), "{text:?}");
        }
        drop(a);
        assert!(receive::<ToHolder>(&b).unwrap().is_none());
    }
}
