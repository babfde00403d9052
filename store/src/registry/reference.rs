//! Image references as engines write them: `host[:port]/repository[:tag][@digest]`.
//!
//! Invariant: what is displayed parses back to an equal value; names follow the grammar of the distribution
//! specification, so that no reference can lead a request to another path of the registry.

use std::{fmt, net::IpAddr, str::FromStr};

use crate::digest::{Digest, DigestError};

/// Where `docker.io` answers the registry API.
const DOCKER_API_HOST: &str = "registry-1.docker.io";
/// Longest repository name (host included), as the distribution specification bounds it.
const MAX_NAME: usize = 255;
/// Longest tag, from the same place.
const MAX_TAG: usize = 128;

/// A repository on a registry.
#[derive(
    Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct Repository {
    /// Host and port as the reference names it (`docker.io` is asked at its own API host).
    pub host: String,
    /// Path below the host.
    pub name: String,
}

impl Repository {
    /// The host (and port) that answers the API for this repository.
    #[must_use]
    pub fn api_host(&self) -> &str {
        if self.host == "docker.io" {
            DOCKER_API_HOST
        } else {
            &self.host
        }
    }
}

/// What an engine calls an image.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    /// Where.
    pub repository: Repository,
    /// Tag; `latest` if neither tag nor digest were given; with a digest the tag is dropped (as engines do).
    pub tag: Option<String>,
    /// Manifest digest.
    pub digest: Option<Digest>,
}

/// Why a text is no reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing is left where a part must be.
    #[error("image reference {0:?} has no repository name")]
    Empty(String),
    /// The host is no host name or address, or its port is no number.
    #[error("image reference {0:?}: {1:?} is not a registry host")]
    Host(String, String),
    /// A part of the path has other characters than the distribution specification allows.
    #[error(
        "image reference {0:?}: {1:?} is not a repository name (lower-case letters, digits, and . _ - between them)"
    )]
    Name(String, String),
    /// The name is longer than 255 characters.
    #[error("image reference {0:?}: the repository name is longer than {MAX_NAME} characters")]
    TooLong(String),
    /// The tag has other characters than allowed or is too long.
    #[error(
        "image reference {0:?}: {1:?} is not a tag (letters, digits, _ . -, at most {MAX_TAG} characters)"
    )]
    Tag(String, String),
    /// The digest cannot be used.
    #[error("image reference {0:?}: {1}")]
    Digest(String, #[source] DigestError),
}

impl FromStr for Reference {
    type Err = ReferenceError;

    /// Reads full references and the short names of docker.io (`alpine` is `docker.io/library/alpine:latest`).
    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let shown = || -> String { text.chars().take(300).collect() };
        let (rest, digest) = match text.split_once('@') {
            None => (text, None),
            Some((rest, digest)) => {
                let digest = digest
                    .parse()
                    .map_err(|e| ReferenceError::Digest(shown(), e))?;
                (rest, Some(digest))
            }
        };
        // A colon behind the last slash starts the tag; one before it belongs to the host's port.
        let slash = rest.rfind('/').map_or(0, |at| at + 1);
        let (name, tag) = match rest[slash..].find(':') {
            None => (rest, None),
            Some(at) => (&rest[..slash + at], Some(&rest[slash + at + 1..])),
        };
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(ReferenceError::Tag(shown(), tag.into()));
        }
        let (host, path) = match name.split_once('/') {
            Some((first, path)) if names_a_host(first) => (first, path.to_owned()),
            _ => ("docker.io", name.to_owned()),
        };
        if !is_host(host) {
            return Err(ReferenceError::Host(shown(), host.into()));
        }
        let (host, path) = match host {
            "docker.io" | "index.docker.io" if !path.contains('/') && !path.is_empty() => {
                ("docker.io", format!("library/{path}"))
            }
            "index.docker.io" => ("docker.io", path),
            _ => (host, path),
        };
        if path.is_empty() {
            return Err(ReferenceError::Empty(shown()));
        }
        if let Some(bad) = path.split('/').find(|part| !is_path_component(part)) {
            return Err(ReferenceError::Name(shown(), bad.into()));
        }
        if host.len() + 1 + path.len() > MAX_NAME {
            return Err(ReferenceError::TooLong(shown()));
        }
        let tag = match (tag, digest) {
            (_, Some(_)) => None,
            (Some(tag), None) => Some(tag.to_owned()),
            (None, None) => Some("latest".to_owned()),
        };
        Ok(Self {
            repository: Repository {
                host: host.to_owned(),
                name: path,
            },
            tag,
            digest,
        })
    }
}

impl Reference {
    /// What stands behind `/manifests/`: the digest if there is one, else the tag.
    #[must_use]
    pub fn manifest_name(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.name)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.repository.fmt(f)?;
        match (&self.tag, &self.digest) {
            (_, Some(digest)) => write!(f, "@{digest}"),
            (Some(tag), None) => write!(f, ":{tag}"),
            (None, None) => Ok(()),
        }
    }
}

/// Whether a host (with or without port) is this machine: those are asked over plain HTTP.
#[must_use]
pub fn is_loopback(host: &str) -> bool {
    let name = host_name(host);
    name.eq_ignore_ascii_case("localhost")
        || name
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// The host without its port, an IPv6 address without its brackets.
pub(super) fn host_name(host: &str) -> &str {
    match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split_once(':').map_or(host, |(name, _)| name),
    }
}

/// Docker's rule: what has a dot, a colon or a capital letter, or is `localhost`, is a host; all else is a path.
fn names_a_host(first: &str) -> bool {
    first == "localhost"
        || first
            .bytes()
            .any(|b| matches!(b, b'.' | b':') || b.is_ascii_uppercase())
}

fn is_host(host: &str) -> bool {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split_once(']').is_some_and(|(address, port)| {
            address.parse::<std::net::Ipv6Addr>().is_ok()
                && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
        });
    }
    let (name, port) = match host.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (host, None),
    };
    port.is_none_or(is_port)
        && name.split('.').all(|label| {
            !label.is_empty()
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

fn is_port(port: &str) -> bool {
    !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok()
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(part: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let mut separator = Vec::new();
    let mut after_word = false;
    for b in part.bytes() {
        if is_word(b) {
            let allowed = separator.is_empty()
                || matches!(separator.as_slice(), b"." | b"_" | b"__")
                || separator.iter().all(|&s| s == b'-');
            if !allowed {
                return false;
            }
            separator.clear();
            after_word = true;
        } else if matches!(b, b'.' | b'_' | b'-') && after_word {
            separator.push(b);
        } else {
            return false;
        }
    }
    after_word && separator.is_empty()
}

fn is_tag(tag: &str) -> bool {
    let mut bytes = tag.bytes();
    tag.len() <= MAX_TAG
        && bytes
            .next()
            .is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    fn shown(text: &str) -> String {
        text.parse::<Reference>().unwrap().to_string()
    }

    #[test]
    fn the_spellings_of_engines() {
        let digest = Digest::of(b"x");
        for (text, full) in [
            ("alpine", "docker.io/library/alpine:latest".to_owned()),
            ("me/tool:1", "docker.io/me/tool:1".into()),
            (
                "index.docker.io/alpine",
                "docker.io/library/alpine:latest".into(),
            ),
            ("localhost:5000/x", "localhost:5000/x:latest".into()),
            ("localhost/x", "localhost/x:latest".into()),
            ("127.0.0.1:5000/a/b:tag", "127.0.0.1:5000/a/b:tag".into()),
            ("[::1]:5000/a", "[::1]:5000/a:latest".into()),
            (
                "quay.io/a/b__c/d--e:V1.0_x-",
                "quay.io/a/b__c/d--e:V1.0_x-".into(),
            ),
            (&format!("a.b/c@{digest}"), format!("a.b/c@{digest}")),
            (&format!("a.b/c:1@{digest}"), format!("a.b/c@{digest}")),
        ] {
            assert_eq!(shown(text), full, "{text}");
        }
        assert_eq!(
            "alpine".parse::<Reference>().unwrap().repository.api_host(),
            "registry-1.docker.io"
        );
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        let long = "a/".repeat(130) + "a";
        for text in [
            "",
            "/",
            "a.b/",
            "a.b//c",
            "a.b/../c",
            "a.b/C",
            "a.b/c..d",
            "a.b/c___d",
            "a.b/c-",
            "a.b/-c",
            "a.b/c:",
            "a.b/c:.x",
            "a.b/c:x/y",
            "a.b/c@sha256:12",
            "a.b/c@md5:00000000000000000000000000000000",
            "a.b:port/c",
            "a.b:99999/c",
            "-a.b/c",
            "[::1/c",
            "[zz]:5/c",
            "https://a.b/c",
            "a.b/c?x=1",
            "a.b/c d",
            &long,
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn this_machine_is_known_by_its_addresses() {
        for host in [
            "localhost",
            "LOCALHOST:80",
            "127.0.0.1:5000",
            "127.9.9.9",
            "[::1]:5000",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "localhost.example",
            "128.0.0.1",
            "quay.io:443",
            "[::2]",
            "127.0.0.1.nip.io",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    proptest! {
        #[test]
        fn display_parses_back(
            host in "([a-z0-9]{1,8}\\.[a-z]{2,3}|localhost|127\\.0\\.0\\.[1-9]|\\[::1\\])(:[1-9][0-9]{0,3})?",
            path in "[a-z0-9]{1,5}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}(/[a-z0-9]{1,5}){0,3}",
            tag in proptest::option::of("[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}"),
            with_digest in any::<bool>(),
        ) {
            let mut text = format!("{host}/{path}");
            if let Some(tag) = &tag { text += &format!(":{tag}"); }
            if with_digest { text += &format!("@{}", Digest::of(path.as_bytes())); }
            let parsed: Reference = text.parse().unwrap();
            prop_assert_eq!(&parsed.repository.host, &host);
            prop_assert_eq!(&parsed.repository.name, &path);
            prop_assert_eq!(parsed.digest.is_some(), with_digest);
            prop_assert_eq!(parsed.to_string().parse::<Reference>().unwrap(), parsed);
        }

        #[test]
        fn no_text_panics_and_what_is_accepted_survives(text in "\\PC{0,60}") {
            if let Ok(parsed) = text.parse::<Reference>() {
                prop_assert_eq!(parsed.to_string().parse::<Reference>().unwrap(), parsed);
            }
        }

        #[test]
        fn near_misses_do_not_panic(text in "[a-zA-Z0-9./:@_\\[\\]-]{0,40}") {
            if let Ok(parsed) = text.parse::<Reference>() {
                let shown = parsed.to_string();
                prop_assert!(!shown.contains("//") && !shown.contains(".."), "{}", shown);
            }
        }
    }
}
