//! What the configuration file says -> what the program uses; nothing below reads files, environment or arguments.
//!
//! Every key is documented with unit and default in docs/configuration.md; a test compares the two.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

pub mod load;

pub use load::{ConfigError, DEFAULT_PATH, load};

use crate::format::limits::Limits;

/// The whole file. Unknown keys are refused. Without a file the defaults apply.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where cache, indexes, records and profiles are kept.
    pub state_dir: PathBuf,
    /// Below which the mounts lie; empty: `state_dir`.
    pub mount_dir: PathBuf,
    /// Where sockets lie.
    pub run_dir: PathBuf,
    /// Looking images up.
    pub lookup: Lookup,
    /// Registries.
    pub registry: Registry,
    /// Fetching.
    pub fetch: Fetch,
    /// Reading ahead.
    pub prefetch: Prefetch,
    /// Watching containers start.
    pub witness: Witness,
    /// Metrics.
    pub metrics: Metrics,
    /// Bounds on what a TOC may be.
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: "/var/lib/forelayer".into(),
            mount_dir: PathBuf::new(),
            run_dir: "/run/forelayer".into(),
            lookup: Lookup::default(),
            registry: Registry::default(),
            fetch: Fetch::default(),
            prefetch: Prefetch::default(),
            witness: Witness::default(),
            metrics: Metrics::default(),
            limits: Limits::default(),
        }
    }
}

impl Config {
    /// Directory of the mount points.
    #[must_use]
    pub fn mount_dir(&self) -> &Path {
        if self.mount_dir.as_os_str().is_empty() {
            &self.state_dir
        } else {
            &self.mount_dir
        }
    }
    /// The control mount, for storage.conf's `additionallayerstores` (with `:ref`).
    #[must_use]
    pub fn store_dir(&self) -> PathBuf {
        self.mount_dir().join("store")
    }
    /// Directory of the data mounts.
    #[must_use]
    pub fn layers_dir(&self) -> PathBuf {
        self.mount_dir().join("layers")
    }
    /// Directory of the profiles.
    #[must_use]
    pub fn profiles_dir(&self) -> PathBuf {
        self.state_dir.join("profiles")
    }
    /// Directory of the early requests: what the next pull of each image asks for first.
    #[must_use]
    pub fn early_dir(&self) -> PathBuf {
        self.profiles_dir().join("early")
    }
    /// The control socket.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.run_dir.join("control.sock")
    }
    /// The holder's socket.
    #[must_use]
    pub fn mount_socket(&self) -> PathBuf {
        self.run_dir.join("mount.sock")
    }
}

/// How an engine's first question is answered.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lookup {
    /// How long a first lookup may take before the engine is told to pull normally.
    #[serde(with = "seconds")]
    pub timeout: Duration,
    /// Look for a TOC also in layers whose manifest does not announce one (invariant 2's exception).
    pub probe_unannotated: bool,
    /// Bytes asked for at the end of an eStargz blob: footer and, with luck, the whole TOC.
    pub tail_bytes: u64,
    /// How long a failed lookup is remembered.
    #[serde(with = "seconds")]
    pub retry_delay: Duration,
}

impl Default for Lookup {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(5),
            probe_unannotated: false,
            tail_bytes: 512 << 10,
            retry_delay: Duration::from_secs(1),
        }
    }
}

/// How registries are reached.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Registry {
    /// Hosts (`name` or `name:port`) that are asked over plain HTTP; loopback addresses always are.
    pub plain_http: Vec<String>,
    /// Bound on making a connection.
    #[serde(with = "seconds")]
    pub connect_timeout: Duration,
    /// Bound on the time between two pieces of an answer.
    #[serde(with = "seconds")]
    pub read_timeout: Duration,
    /// Files that may hold credentials, asked in this order; empty: the places containers-auth.json(5) names.
    pub auth_files: Vec<PathBuf>,
    /// Username and password by host, before any file.
    pub credentials: std::collections::BTreeMap<String, Credentials>,
}

/// A username and a password.
#[derive(Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    /// The name.
    pub username: String,
    /// The password.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({}, ...)", self.username)
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            plain_http: Vec::new(),
            connect_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(20),
            auth_files: Vec::new(),
            credentials: std::collections::BTreeMap::new(),
        }
    }
}

/// How chunks are fetched.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Fetch {
    /// Range requests under way at once to one registry, all lanes together.
    pub max_requests: usize,
    /// Of these, how many may be predicted, nearby or background.
    pub max_ahead_requests: usize,
    /// Compressed bytes of one range request at most.
    pub max_request_bytes: u64,
    /// Compressed and decoded bytes held in memory at once, of all registries.
    pub max_bytes_in_flight: u64,
    /// A gap of at most this many compressed bytes between two wanted chunks is fetched along.
    pub max_gap_bytes: u64,
    /// Compressed bytes behind a miss that nothing predicted, brought along at most; 0: none.
    pub nearby_bytes: u64,
    /// Threads that decode and verify what nobody waits for yet; half as many more are for readers. 0: one a
    /// processor, but one fewer where there are several.
    pub decode_threads: usize,
    /// Whether the rest of an image follows in the background.
    pub background: bool,
    /// Bytes per second of the background lane; 0: unlimited.
    pub background_bytes_per_second: u64,
    /// How often a demanded chunk is asked for before the reader gets EIO.
    pub demand_attempts: u32,
    /// The same for predicted and background chunks.
    pub ahead_attempts: u32,
}

impl Default for Fetch {
    fn default() -> Self {
        Self {
            max_requests: 32,
            max_ahead_requests: 24,
            max_request_bytes: 4 << 20,
            max_bytes_in_flight: 256 << 20,
            max_gap_bytes: 64 << 10,
            // Keeps a 1 Gbit/s link full at up to 130 ms of latency.
            nearby_bytes: 16 << 20,
            decode_threads: 0,
            background: true,
            background_bytes_per_second: 0,
            demand_attempts: 5,
            ahead_attempts: 3,
        }
    }
}

/// How predictions are used.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Prefetch {
    /// Whether predicted chunks are fetched at all.
    pub enabled: bool,
    /// Bytes of page cache filled ahead for one start; 0: none.
    pub warm_bytes: u64,
    /// Paths looked up ahead for one start; 0: none.
    pub warm_paths: u32,
    /// Bytes of layers asked for while the manifest is still on its way, held in memory until they are used; 0: none.
    pub early_bytes: u64,
    /// Whether the command lines of engines are read for images that they are about to pull.
    pub read_commands: bool,
    /// Runs kept in a profile.
    pub keep_runs: usize,
}

impl Default for Prefetch {
    fn default() -> Self {
        Self {
            enabled: true,
            warm_bytes: 2 << 30,
            warm_paths: 50_000,
            early_bytes: 64 << 20,
            read_commands: true,
            keep_runs: 8,
        }
    }
}

/// How containers are watched.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Witness {
    /// Which programs are used: `auto` takes the best that attaches.
    pub level: WitnessLevel,
    /// The window closes when nothing new was touched for this long.
    #[serde(with = "seconds")]
    pub quiet: Duration,
    /// The window closes after this long in any case.
    #[serde(with = "seconds")]
    pub max_window: Duration,
    /// How long a container's mount waits for the programs to be attached.
    #[serde(with = "seconds")]
    pub attach_wait: Duration,
}

/// Choice of the witness's programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum WitnessLevel {
    /// The best that attaches.
    #[default]
    Auto,
    /// The page cache's own events.
    Tracepoints,
    /// Kprobes.
    Kprobes,
    /// Pages entering the page cache.
    Add,
    /// None.
    Off,
}

impl Default for Witness {
    fn default() -> Self {
        Self {
            level: WitnessLevel::Auto,
            quiet: Duration::from_secs(15),
            max_window: Duration::from_secs(600),
            attach_wait: Duration::from_millis(20),
        }
    }
}

/// Where metrics are served.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// Address of the Prometheus page; `""` in the file: none.
    #[serde(with = "address")]
    pub listen: Option<SocketAddr>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            listen: Some(SocketAddr::from(([127, 0, 0, 1], 9464))),
        }
    }
}

/// Durations are written as seconds, whole or with a fraction.
mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(
        value: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(value.as_secs_f64())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        let seconds = f64::deserialize(deserializer)?;
        Duration::try_from_secs_f64(seconds)
            .map_err(|_| D::Error::custom(format!("{seconds} is not a number of seconds")))
    }
}

/// An address, or nothing for the empty text.
mod address {
    use std::net::SocketAddr;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    #[expect(
        clippy::ref_option,
        reason = "the signature that serde's `with` asks for"
    )]
    pub(super) fn serialize<S: Serializer>(
        value: &Option<SocketAddr>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&value.map(|address| address.to_string()).unwrap_or_default())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<SocketAddr>, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.is_empty() {
            return Ok(None);
        }
        text.parse().map(Some).map_err(|_| {
            D::Error::custom(format!("{text:?} is not an address like 127.0.0.1:9464"))
        })
    }
}
