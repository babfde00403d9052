//! Reads the configuration file.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use super::Config;

/// Where the file is looked for when none is named. It need not be there.
pub const DEFAULT_PATH: &str = "/etc/forelayer/config.toml";

/// Seconds that a duration may have: a day. Times are sums of an instant and a duration, which must not overflow.
const MAX_SECONDS: u64 = 86_400;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It does not say what a configuration may say.
    #[error("the configuration {path} cannot be used: {why}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Line, column and reason.
        why: String,
    },
    /// A value makes no sense.
    #[error("the configuration {path} cannot be used: {key} {why}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

/// The configuration in `path`; without a path that of [`DEFAULT_PATH`] if it is there, the defaults otherwise.
///
/// # Errors
/// A file that is named must be there; unknown keys and values out of range are refused.
pub fn load(path: Option<&Path>) -> Result<Config, ConfigError> {
    let (path, named) = path.map_or((Path::new(DEFAULT_PATH), false), |path| (path, true));
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !named => {
            return Ok(Config::default());
        }
        Err(source) => {
            return Err(ConfigError::Io {
                path: path.to_owned(),
                source,
            });
        }
    };
    parse(&text, path)
}

/// The configuration that a text says; `path` is for messages.
///
/// # Errors
/// See [`load`].
pub fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
    let config: Config = toml::from_str(text).map_err(|error| ConfigError::Malformed {
        path: path.to_owned(),
        why: error.to_string(),
    })?;
    match wrong(&config) {
        Some((key, why)) => Err(ConfigError::Value {
            path: path.to_owned(),
            key,
            why,
        }),
        None => Ok(config),
    }
}

/// The first value that makes no sense.
fn wrong(config: &Config) -> Option<(&'static str, String)> {
    for (key, dir) in [
        ("state_dir", config.state_dir.as_path()),
        ("mount_dir", config.mount_dir()),
        ("run_dir", &config.run_dir),
    ] {
        // Engines split the name of a store at these two (docs/installation.md).
        let text = dir.to_string_lossy();
        if !dir.is_absolute() || text.contains([',', ':']) {
            return Some((
                key,
                format!("must be an absolute path without ',' and ':', not {text:?}"),
            ));
        }
    }
    if let Some(wrong) = wrong_duration(config) {
        return Some(wrong);
    }
    let at_least = |key, value: u64, least: u64| {
        (value < least).then(|| (key, format!("must be at least {least}, not {value}")))
    };
    let fetch = &config.fetch;
    at_least("fetch.max_requests", fetch.max_requests as u64, 2)
        .or_else(|| {
            at_least(
                "fetch.max_ahead_requests",
                fetch.max_ahead_requests as u64,
                1,
            )
        })
        .or_else(|| at_least("fetch.max_request_bytes", fetch.max_request_bytes, 4096))
        .or_else(|| {
            at_least(
                "fetch.max_bytes_in_flight",
                fetch.max_bytes_in_flight,
                1 << 20,
            )
        })
        .or_else(|| at_least("fetch.demand_attempts", fetch.demand_attempts.into(), 1))
        .or_else(|| at_least("fetch.ahead_attempts", fetch.ahead_attempts.into(), 1))
        .or_else(|| at_least("lookup.tail_bytes", config.lookup.tail_bytes, 1024))
        .or_else(|| at_least("prefetch.keep_runs", config.prefetch.keep_runs as u64, 1))
        .or_else(|| {
            (fetch.max_ahead_requests >= fetch.max_requests).then(|| {
                let why = format!(
                    "must be less than fetch.max_requests = {}, or demands would have to wait",
                    fetch.max_requests
                );
                ("fetch.max_ahead_requests", why)
            })
        })
}

/// The first duration that makes no sense.
fn wrong_duration(config: &Config) -> Option<(&'static str, String)> {
    let Config {
        lookup,
        registry,
        witness,
        ..
    } = config;
    // With zero for these nothing would ever be answered in time.
    let positive = [
        ("lookup.timeout", lookup.timeout),
        ("registry.connect_timeout", registry.connect_timeout),
        ("registry.read_timeout", registry.read_timeout),
    ];
    let others = [
        ("lookup.retry_delay", lookup.retry_delay),
        ("witness.quiet", witness.quiet),
        ("witness.max_window", witness.max_window),
        ("witness.attach_wait", witness.attach_wait),
    ];
    if let Some((key, _)) = positive.iter().find(|(_, value)| value.is_zero()) {
        return Some((key, "must be more than 0 seconds".to_owned()));
    }
    let too_long = |value: &Duration| *value > Duration::from_secs(MAX_SECONDS);
    let mut all = positive.into_iter().chain(others);
    all.find(|(_, value)| too_long(value)).map(|(key, value)| {
        let why = format!(
            "must be at most {MAX_SECONDS} seconds, not {}",
            value.as_secs_f64()
        );
        (key, why)
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn flat(prefix: &str, value: &toml::Value, into: &mut BTreeMap<String, String>) {
        match value {
            toml::Value::Table(table) if !table.is_empty() => {
                for (key, value) in table {
                    let path = if prefix.is_empty() {
                        key.clone()
                    } else {
                        format!("{prefix}.{key}")
                    };
                    flat(&path, value, into);
                }
            }
            toml::Value::Table(_) => {
                into.insert(prefix.to_owned(), "{}".to_owned());
            }
            // A whole number of seconds is written as people write it.
            other => {
                let text = other.to_string();
                into.insert(
                    prefix.to_owned(),
                    text.strip_suffix(".0").unwrap_or(&text).to_owned(),
                );
            }
        }
    }

    #[test]
    fn every_key_is_documented_with_its_default() {
        let mut keys = BTreeMap::new();
        flat(
            "",
            &toml::Value::try_from(Config::default()).unwrap(),
            &mut keys,
        );
        let page = include_str!("../../../docs/configuration.md");
        let documented: BTreeMap<String, String> = page
            .lines()
            .filter_map(|line| line.strip_prefix("| `"))
            .filter_map(|row| {
                let (key, rest) = row.split_once("` | `")?;
                let (default, _) = rest.split_once("` |")?;
                Some((key.to_owned(), default.to_owned()))
            })
            .collect();
        assert_eq!(documented, keys);
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let error = parse("[fetch]\nmax_request = 3\n", Path::new("/etc/x.toml"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("/etc/x.toml") && error.contains("max_request"),
            "{error}"
        );
    }

    #[test]
    fn values_that_make_no_sense_are_refused() {
        for (text, key) in [
            ("state_dir = \"relative\"", "state_dir"),
            ("state_dir = \"/a:b\"", "state_dir"),
            ("mount_dir = \"mnt\"", "mount_dir"),
            ("[fetch]\nmax_requests = 1", "fetch.max_requests"),
            (
                "[fetch]\nmax_ahead_requests = 32",
                "fetch.max_ahead_requests",
            ),
            ("[prefetch]\nkeep_runs = 0", "prefetch.keep_runs"),
            ("[lookup]\ntimeout = 0", "lookup.timeout"),
            ("[lookup]\ntimeout = 86401", "lookup.timeout"),
            ("[lookup]\nretry_delay = 1e18", "lookup.retry_delay"),
            ("[registry]\nread_timeout = 0", "registry.read_timeout"),
            ("[registry]\nread_timeout = 1e18", "registry.read_timeout"),
            (
                "[registry]\nconnect_timeout = 0.0",
                "registry.connect_timeout",
            ),
            (
                "[registry]\nconnect_timeout = 1e9",
                "registry.connect_timeout",
            ),
            ("[witness]\nmax_window = 1e18", "witness.max_window"),
        ] {
            let error = parse(text, Path::new("/c")).unwrap_err().to_string();
            assert!(error.contains(key), "{text}: {error}");
        }
        assert!(parse("[lookup]\ntimeout = -1", Path::new("/c")).is_err());
        let day = "[lookup]\ntimeout = 86400\nretry_delay = 0";
        assert!(parse(day, Path::new("/c")).is_ok());
        assert!(parse("[metrics]\nlisten = \"here\"", Path::new("/c")).is_err());
    }

    #[test]
    fn a_file_may_say_a_little() {
        let config = parse(
            "[lookup]\ntimeout = 2\n[metrics]\nlisten = \"\"\n[witness]\nlevel = \"add\"",
            Path::new("/c"),
        )
        .unwrap();
        assert_eq!(config.lookup.timeout.as_secs(), 2);
        assert_eq!(config.metrics.listen, None);
        assert_eq!(config.witness.level, super::super::WitnessLevel::Add);
        assert_eq!(config.fetch, Config::default().fetch);
    }

    #[test]
    fn a_named_file_must_be_there() {
        assert!(matches!(
            load(Some(Path::new("/nonexistent/forelayer.toml"))),
            Err(ConfigError::Io { .. })
        ));
    }

    proptest! {
        #[test]
        fn nothing_panics(text in ".{0,200}") {
            let _ = parse(&text, Path::new("/c"));
        }
    }
}
