//! Serving a connection: the first time with the kernel's INIT, later by adopting it.
//!
//! Adoption rests on what fuser 0.18.0 does (pinned, docs/design.md "Adoption"): `Session::from_fd` does the INIT
//! handshake on the descriptor it is given, keeps nothing that was negotiated, and reads no more before it runs. So an
//! adopted session is given one end of a socket pair, an invented INIT, and then the real device under the same
//! descriptor number.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    thread,
};

use fuser::{Config, Filesystem, InitFlags, KernelConfig, Notifier, Session, SessionACL};
use tokio::sync::watch;

use super::{MountError, MountName};
use crate::sys::{device, seqpacket};

/// Threads that read requests of one connection. They never wait for the network, so a few are enough.
const THREADS: usize = 4;

/// Background requests (read-ahead) the kernel may have out at once, and from how many it holds back: 2,000 ranges of
/// read-ahead at 500 us took 0.19 s with 1,024 and 0.68 s with the usual 64/48.
const MAX_BACKGROUND: u16 = 1024;

/// Largest READ: the kernel's own limit (`fs.fuse.max_pages_limit`, 256 pages). With the default read-ahead of 128 KiB
/// it is only reached by direct reads.
const MAX_TRANSFER: u32 = 1 << 20;

/// A connection that is being served.
#[derive(Debug)]
pub struct Running {
    /// Which.
    pub name: MountName,
    /// For filling and invalidating the kernel's caches.
    pub notifier: Notifier,
    ended: watch::Receiver<Option<String>>,
}

/// Serves a connection on threads of its own; they end when it is unmounted or aborted.
///
/// # Errors
/// The handshake fails, the adoption fails, or no thread can be started.
pub fn start<F: Filesystem>(
    filesystem: F,
    name: MountName,
    device: OwnedFd,
    adopt: bool,
) -> Result<Running, MountError> {
    let failed = |what| {
        move |source| MountError::Session {
            mount: name,
            what,
            source,
        }
    };
    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(THREADS);
    // Closing a clone would end the requests that were read through it.
    config.clone_fd = false;
    let session = if adopt {
        adopted(filesystem, &device, config).map_err(failed("adopt the connection"))?
    } else {
        Session::from_fd(filesystem, device, SessionACL::All, config)
            .map_err(failed("shake hands with the kernel"))?
    };
    let notifier = session.notifier();
    let (end, ended) = watch::channel(None);
    thread::Builder::new()
        .name(format!("fuse-{name}"))
        .spawn(move || {
            let why = match session.run() {
                Ok(()) => "it was unmounted".to_owned(),
                Err(error) => error.to_string(),
            };
            tracing::info!(mount = %name, why, "the connection has ended");
            end.send_replace(Some(why));
        })
        .map_err(failed("start a thread"))?;
    Ok(Running {
        name,
        notifier,
        ended,
    })
}

impl Running {
    /// Waits until the connection ends (unmounted, aborted) and says why. Cancel safe.
    pub async fn ended(&self) -> String {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            Err(_) => "its thread panicked".to_owned(),
        }
    }
}

/// What every connection asks of the kernel; `data` mounts ask for more. What the kernel does not have is left out.
pub fn negotiate(config: &mut KernelConfig, data: bool) {
    let mut wanted = vec![
        InitFlags::FUSE_PARALLEL_DIROPS,
        // Survival of the store's death: unanswered requests can be asked for again (Linux 6.9).
        InitFlags::FUSE_HAS_RESEND,
    ];
    if data {
        wanted.extend([
            // Not the automatic kind: a walk would send READDIR and LOOKUP in turns.
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_NO_OPEN_SUPPORT,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
        ]);
    }
    for flag in wanted {
        if config.add_capabilities(flag).is_err() {
            tracing::warn!(?flag, "the kernel does not know this FUSE capability");
        }
    }
    // Neither can fail: none of the values is 0 or above fuser's own bound.
    let _ = config.set_max_background(MAX_BACKGROUND);
    let _ = config.set_congestion_threshold(MAX_BACKGROUND);
    let _ = config.set_max_write(MAX_TRANSFER);
}

/// A session on a connection whose INIT another process did.
fn adopted<F: Filesystem>(
    filesystem: F,
    device: &OwnedFd,
    config: Config,
) -> io::Result<Session<F>> {
    let (mine, theirs) = seqpacket::pair()?;
    seqpacket::send(&mine, &invented_init(), &[])?;
    let session = Session::from_fd(filesystem, theirs, SessionACL::All, config)?;
    let (answer, _) = seqpacket::receive(&mine, 4096)?;
    // fuse_out_header: length, error, unique.
    let error = answer
        .get(4..8)
        .and_then(|bytes| bytes.try_into().ok())
        .map(i32::from_ne_bytes);
    if error != Some(0) {
        return Err(io::Error::other(format!(
            "the answer to the invented INIT is {error:?}"
        )));
    }
    // From here on the session talks to the kernel.
    device::replace(session.as_fd(), device)?;
    // Before the loops run, or old and new requests could overtake each other.
    if let Err(error) = device::resend(device) {
        tracing::warn!(
            %error,
            "the kernel cannot send unanswered requests again (needs Linux 6.9): who waited for one when the last \
             store process ended will wait until the mount is taken away"
        );
    }
    Ok(session)
}

/// fuse_in_header (40 bytes) and fuse_init_in (64 bytes) as the kernel would send them, with every capability: what is
/// negotiated here is thrown away, the connection keeps what its first INIT agreed on.
fn invented_init() -> [u8; 104] {
    const OPCODE_INIT: u32 = 26;
    let mut message = [0; 104];
    let mut put = |at: usize, value: u32| {
        message[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    };
    put(0, 104);
    put(4, OPCODE_INIT);
    // unique 2, as 64 bits.
    put(
        if cfg!(target_endian = "little") {
            8
        } else {
            12
        },
        2,
    );
    put(40, 7);
    put(44, 40);
    put(48, 128 << 10);
    put(52, u32::MAX);
    put(56, u32::MAX);
    message
}
