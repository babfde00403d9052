//! Finds the credentials for a repository: the configuration first, then the files containers-auth.json(5) names.
//!
//! Invariant: files are read when a registry asks for authorization and not before, so that a login after the start of
//! the daemon counts; nothing of what they hold reaches a log.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;

use super::Repository;
use crate::config;

/// How a user is known to a registry.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Secret {
    /// Username and password.
    Password {
        /// The name.
        username: String,
        /// The password.
        password: String,
    },
    /// A refresh token, exchanged at the token server (OAuth2).
    IdentityToken(String),
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Password { .. } => "Password(...)",
            Self::IdentityToken(_) => "IdentityToken(...)",
        })
    }
}

/// Where credentials are looked for.
#[derive(Debug)]
pub(super) struct Credentials {
    configured: BTreeMap<String, config::Credentials>,
    files: Vec<PathBuf>,
}

/// The files that may hold credentials, first asked first, for these environment variables.
///
/// As the engines do: `REGISTRY_AUTH_FILE` alone where it is set; otherwise `$XDG_RUNTIME_DIR/containers/auth.json`,
/// `/run/containers/0/auth.json`, `$XDG_CONFIG_HOME/containers/auth.json` (`~/.config`), and docker's
/// `$DOCKER_CONFIG/config.json` (`~/.docker`). Without `HOME` (a system service) root's home is meant.
pub fn default_auth_files(env: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let dir = |name: &str| {
        env(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(file) = dir("REGISTRY_AUTH_FILE") {
        return vec![file];
    }
    let home = dir("HOME").unwrap_or_else(|| PathBuf::from("/root"));
    let mut files = Vec::new();
    if let Some(run) = dir("XDG_RUNTIME_DIR") {
        files.push(run.join("containers/auth.json"));
    }
    files.push("/run/containers/0/auth.json".into());
    let config = dir("XDG_CONFIG_HOME").unwrap_or_else(|| home.join(".config"));
    files.push(config.join("containers/auth.json"));
    let docker = dir("DOCKER_CONFIG").unwrap_or_else(|| home.join(".docker"));
    files.push(docker.join("config.json"));
    files
}

impl Credentials {
    pub(super) fn new(config: &config::Registry) -> Self {
        Self {
            configured: config.credentials.clone(),
            files: config.auth_files.clone(),
        }
    }

    /// The credentials for a repository, and where they were found (for messages).
    pub(super) async fn find(&self, repository: &Repository) -> Option<(Secret, String)> {
        for key in keys(repository) {
            if let Some(found) = self.configured.get(&key) {
                let secret = Secret::Password {
                    username: found.username.clone(),
                    password: found.password.clone(),
                };
                return Some((secret, "registry.credentials".to_owned()));
            }
        }
        for path in &self.files {
            let bytes = match tokio::fs::read(path).await {
                Ok(bytes) => bytes,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => {
                    tracing::warn!(path = %path.display(), error = %e, "cannot read credentials");
                    continue;
                }
            };
            if let Some(secret) = in_file(path, &bytes, repository) {
                return Some((secret, path.display().to_string()));
            }
        }
        None
    }
}

/// The part of an auth file that is understood; other keys are left alone.
#[derive(Deserialize)]
struct AuthFile {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default, rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    auth: String,
    #[serde(default, rename = "identitytoken")]
    identity_token: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

fn in_file(path: &Path, bytes: &[u8], repository: &Repository) -> Option<Secret> {
    let file: AuthFile = match serde_json::from_slice(bytes) {
        Ok(file) => file,
        Err(e) => {
            // The position says enough; the text may hold secrets.
            let (line, column) = (e.line(), e.column());
            tracing::warn!(path = %path.display(), line, column, "not a JSON file of credentials");
            return None;
        }
    };
    let exact = keys(repository)
        .into_iter()
        .find_map(|key| file.auths.get(&key).map(|entry| (key, entry)));
    // Older files of docker name the host as a URL.
    let found = exact.or_else(|| {
        let host = old_name(&repository.host);
        file.auths
            .iter()
            .find(|(key, _)| old_name(key) == host && !is_namespaced(key))
            .map(|(key, entry)| (key.clone(), entry))
    });
    let Some((key, entry)) = found else {
        if let Some(helper) = file.helpers.get(&repository.host) {
            tracing::warn!(
                path = %path.display(), host = %repository.host, helper,
                "credential helpers are not asked; log in with podman login or set registry.credentials"
            );
        }
        return None;
    };
    let secret = secret(entry);
    if secret.is_none() {
        tracing::warn!(path = %path.display(), key, "the entry holds no credentials that can be used");
    }
    secret
}

fn secret(entry: &Entry) -> Option<Secret> {
    if !entry.identity_token.is_empty() {
        return Some(Secret::IdentityToken(entry.identity_token.clone()));
    }
    let (username, password) = if entry.auth.is_empty() {
        (entry.username.clone(), entry.password.clone())
    } else {
        let text = String::from_utf8(STANDARD.decode(entry.auth.trim()).ok()?).ok()?;
        let (username, password) = text.split_once(':')?;
        // Some writers pad with NUL.
        (
            username.to_owned(),
            password.trim_end_matches('\0').to_owned(),
        )
    };
    (!username.is_empty()).then_some(Secret::Password { username, password })
}

/// What a repository's credentials may be filed under, the most special first: `host/a/b`, `host/a`, `host`.
fn keys(repository: &Repository) -> Vec<String> {
    let full = repository.to_string();
    let mut keys = vec![full.clone()];
    let mut rest = full.as_str();
    while let Some((shorter, _)) = rest.rsplit_once('/') {
        keys.push(shorter.to_owned());
        rest = shorter;
    }
    keys
}

/// Whether a key of an auth file is for a namespace and not a host (old URL keys have a scheme or a `/v1/` path).
fn is_namespaced(key: &str) -> bool {
    !key.contains("://") && key.contains('/') && !key.contains("/v1") && !key.contains("/v2")
}

/// A host as docker's old files may spell it, all spellings of docker.io made equal.
fn old_name(key: &str) -> &str {
    let key = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key);
    match key.split('/').next().unwrap_or(key) {
        "docker.io" | "registry-1.docker.io" => "index.docker.io",
        host => host,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn repository(host: &str, name: &str) -> Repository {
        Repository {
            host: host.into(),
            name: name.into(),
        }
    }

    fn user(name: &str) -> serde_json::Value {
        serde_json::json!({ "auth": STANDARD.encode(format!("{name}:pass:word")) })
    }

    fn found(file: &serde_json::Value, host: &str, name: &str) -> Option<String> {
        let bytes = serde_json::to_vec(file).unwrap();
        match in_file(Path::new("auth.json"), &bytes, &repository(host, name))? {
            Secret::Password { username, password } => {
                assert_eq!(password, "pass:word");
                Some(username)
            }
            Secret::IdentityToken(token) => Some(token),
        }
    }

    #[test]
    fn the_most_special_entry_counts() {
        let file = serde_json::json!({ "auths": {
            "r.example": user("host"), "r.example/a": user("namespace"), "r.example/a/b": user("repository"),
            "https://index.docker.io/v1/": user("docker"), "r.example:5000": user("port"),
            "ghcr.io": { "identitytoken": "refresh" }, "empty.example": {},
        }});
        for (host, name, expected) in [
            ("r.example", "a/b", Some("repository")),
            ("r.example", "a/c", Some("namespace")),
            ("r.example", "ab/c", Some("host")),
            ("r.example:5000", "a/b", Some("port")),
            ("docker.io", "library/alpine", Some("docker")),
            ("ghcr.io", "x", Some("refresh")),
            ("empty.example", "x", None),
            ("other.example", "x", None),
        ] {
            assert_eq!(
                found(&file, host, name).as_deref(),
                expected,
                "{host}/{name}"
            );
        }
    }

    #[test]
    fn files_that_are_none_hold_nothing() {
        for bytes in [
            &b""[..],
            b"[]",
            b"{\"auths\": 3}",
            b"{\"auths\":{\"h\":{\"auth\":\"%%\"}}}",
        ] {
            assert_eq!(in_file(Path::new("x"), bytes, &repository("h", "n")), None);
        }
    }

    #[tokio::test]
    async fn configuration_then_files_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, value: serde_json::Value| {
            let path = dir.path().join(name);
            std::fs::write(&path, value.to_string()).unwrap();
            path
        };
        let first = write(
            "first",
            serde_json::json!({ "auths": { "a.example": user("first") } }),
        );
        let second = write(
            "second",
            serde_json::json!({ "auths": { "a.example": user("second"), "b.example": user("second") } }),
        );
        let mut config = config::Registry {
            auth_files: vec![dir.path().join("missing"), first, second],
            ..config::Registry::default()
        };
        config.credentials.insert(
            "c.example".into(),
            config::Credentials {
                username: "config".into(),
                password: "p".into(),
            },
        );
        let credentials = Credentials::new(&config);
        for (host, expected) in [
            ("a.example", "first"),
            ("b.example", "second"),
            ("c.example", "config"),
        ] {
            let (secret, _) = credentials.find(&repository(host, "x/y")).await.unwrap();
            assert!(matches!(&secret, Secret::Password { username, .. } if username == expected));
            assert!(
                !format!("{secret:?}").contains("pass"),
                "secrets stay out of logs"
            );
        }
        assert_eq!(credentials.find(&repository("d.example", "x")).await, None);
    }

    #[test]
    fn the_environment_names_the_files() {
        let env = |set: &'static [(&'static str, &'static str)]| {
            default_auth_files(|name| {
                set.iter()
                    .find(|(key, _)| *key == name)
                    .map(|(_, value)| OsString::from(value))
            })
        };
        assert_eq!(env(&[("REGISTRY_AUTH_FILE", "/x")]), [PathBuf::from("/x")]);
        assert_eq!(
            env(&[
                ("XDG_RUNTIME_DIR", "/run/user/0"),
                ("HOME", "/h"),
                ("REGISTRY_AUTH_FILE", "")
            ]),
            [
                "/run/user/0/containers/auth.json",
                "/run/containers/0/auth.json",
                "/h/.config/containers/auth.json",
                "/h/.docker/config.json"
            ]
            .map(PathBuf::from)
        );
        assert_eq!(
            env(&[])[1],
            PathBuf::from("/root/.config/containers/auth.json")
        );
    }
}
