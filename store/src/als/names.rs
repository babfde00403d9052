//! Names on the control mount: `<base64(reference)>/<digest>/{diff,info,blob,use}`.

use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::{digest::Digest, registry::Reference};

/// The file an engine creates to say that it uses a layer; never there.
pub(crate) const USE: &[u8] = b"use";

/// References are shorter: a repository name has at most 255 characters, a tag 128, a digest 71.
const MAX_REFERENCE: usize = 1024;

/// What a digest's directory holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Item {
    /// The layer's tree, as a symbolic link.
    Diff,
    /// What the engine wants to know of the layer.
    Info,
    /// The raw blob.
    Blob,
}

impl Item {
    pub(crate) const ALL: [Self; 3] = [Self::Diff, Self::Info, Self::Blob];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Diff => "diff",
            Self::Info => "info",
            Self::Blob => "blob",
        }
    }

    /// The item of this name. `use` and `diff1` (which Podman 4 asks for at every mount) are none.
    pub(crate) fn parse(name: &[u8]) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|item| item.name().as_bytes() == name)
    }
}

/// The reference of a directory's name: standard base64 with padding, exactly as the engine would write it.
///
/// Anything else (a digest where storage.conf lacks `:ref`, a name somebody typed) is none. What a registry says of
/// the reference is found out at the first lookup of a layer, not here: this must answer at once.
pub(crate) fn reference(name: &[u8]) -> Option<String> {
    let decoded = STANDARD.decode(name).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let plausible = !text.is_empty()
        && text.len() <= MAX_REFERENCE
        // Engines write short names out.
        && text.contains('/')
        && text.parse::<Reference>().is_ok();
    // One reference has one name, or its inodes would have two.
    (plausible && STANDARD.encode(&text).as_bytes() == name).then_some(text)
}

/// The digest of a directory's name.
pub(crate) fn digest(name: &[u8]) -> Option<Digest> {
    std::str::from_utf8(name).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_engines_write_is_understood() {
        assert_eq!(
            reference(b"MTI3LjAuMC4xOjU1NTYvYjp6Yw==").as_deref(),
            Some("127.0.0.1:5556/b:zc")
        );
        let hex = "5".repeat(64);
        assert_eq!(
            digest(format!("sha256:{hex}").as_bytes()).map(|d| d.hex()),
            Some(hex)
        );
        assert_eq!(Item::parse(b"info"), Some(Item::Info));
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        let encode = |text: &[u8]| STANDARD.encode(text).into_bytes();
        for name in [
            b"".to_vec(),
            // Without padding, and in the URL's alphabet.
            b"MTI3LjAuMC4xOjU1NTYvYjp6Yw".to_vec(),
            b"-_8=".to_vec(),
            // A digest: storage.conf lacks `:ref`.
            format!("sha256:{}", "5".repeat(64)).into_bytes(),
            encode(b"no-slash"),
            encode(b"a/b c"),
            encode(b"a/\xff"),
            encode("a/".repeat(600).as_bytes()),
            b".prime".to_vec(),
        ] {
            assert_eq!(reference(&name), None, "{}", name.escape_ascii());
        }
        for name in [&b"use"[..], b"diff1", b"", b"Diff"] {
            assert_eq!(Item::parse(name), None);
        }
    }

    proptest! {
        #[test]
        fn any_name_is_survived(name in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Some(text) = reference(&name) {
                prop_assert_eq!(STANDARD.encode(text).into_bytes(), name.clone());
            }
            digest(&name);
            Item::parse(&name);
        }

        #[test]
        fn every_reference_survives_its_encoding(text in "[a-z0-9]{1,10}(\\.[a-z]{2,5})?(:[1-9][0-9]{1,3})?/[a-z0-9]{1,10}(/[a-z0-9]{1,10})?(:[a-z0-9]{1,20})?") {
            prop_assert_eq!(reference(STANDARD.encode(&text).as_bytes()), Some(text));
        }
    }
}
