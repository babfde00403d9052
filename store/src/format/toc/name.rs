//! What an entry's name stands for: a path of the tree, a whiteout, an opaque mark, or nothing that is shown.
//!
//! Invariant: a path handed out has no empty, `.` or `..` component and no NUL byte, and keeps the limits.

use super::refusal::Refusal;
use crate::format::limits::Limits;

/// Prefix of a file that hides a name of the layers below.
const WHITEOUT: &str = ".wh.";
/// Prefix of AUFS' own files, which no engine shows.
const AUFS: &str = ".wh..wh.";
/// The file that makes its directory opaque.
const OPAQUE: &str = ".wh..wh..opq";
/// Longest name that file systems on Linux allow, in bytes (NAME_MAX).
const NAME_MAX: usize = 255;

/// Files of the formats themselves in the layer's root, which are not part of the tree.
pub(super) const TOC_FILE: &str = "stargz.index.json";
/// Ends the part of the blob that its builder wants to be fetched first.
pub(super) const LANDMARK: &str = ".prefetch.landmark";
/// Says that there is no such part.
pub(super) const NO_LANDMARK: &str = ".no.prefetch.landmark";

/// What a name stands for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning<'a> {
    /// The layer's root.
    Root,
    /// A name in a directory.
    Node { dir: &'a str, name: &'a str },
    /// `name` of the layers below is hidden.
    Whiteout { dir: &'a str, name: &'a str },
    /// Everything of the layers below in this directory is hidden.
    Opaque { dir: &'a str },
    /// The landmark: its offset is the end of the part to be fetched first.
    Landmark,
    /// Not shown.
    Hidden,
}

/// The names of a path, those that say nothing left out.
pub(super) fn components(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|name| !matches!(*name, "" | "."))
}

/// Whether two paths are the same after cleaning.
pub(super) fn same(a: &str, b: &str) -> bool {
    a == b || components(a).eq(components(b))
}

/// Checks a path and splits its last name off; `None`: it is the root.
pub(super) fn split<'a>(
    path: &'a str,
    limits: &Limits,
) -> Result<Option<(&'a str, &'a str)>, Refusal> {
    if path.len() > limits.max_path_bytes as usize {
        return Err(Refusal::PathLength {
            len: path.len(),
            limit: limits.max_path_bytes,
        });
    }
    if path.as_bytes().contains(&0) {
        return Err(Refusal::NameNul);
    }
    let mut last = None;
    let mut depth = 0_u32;
    for name in components(path) {
        if name == ".." {
            return Err(Refusal::NameDotDot);
        }
        if name.len() > NAME_MAX {
            return Err(Refusal::NameLength(name.len()));
        }
        depth += 1;
        last = Some(name);
    }
    let Some(name) = last else {
        return Ok(None);
    };
    if depth - 1 > limits.max_depth {
        return Err(Refusal::Depth(limits.max_depth));
    }
    // `name` is a part of `path`; what is before it is its directory.
    let start = name.as_ptr().addr() - path.as_ptr().addr();
    Ok(Some((&path[..start], name)))
}

/// Reads an entry's name.
pub(super) fn meaning<'a>(path: &'a str, limits: &Limits) -> Result<Meaning<'a>, Refusal> {
    let Some((dir, name)) = split(path, limits)? else {
        return Ok(Meaning::Root);
    };
    // Nearly no path has one; one search instead of one a component.
    if !path.contains(WHITEOUT) {
        if components(dir).next().is_none() {
            match name {
                LANDMARK => return Ok(Meaning::Landmark),
                TOC_FILE | NO_LANDMARK => return Ok(Meaning::Hidden),
                _ => {}
            }
        }
        return Ok(Meaning::Node { dir, name });
    }
    if components(dir).any(|above| above.starts_with(AUFS)) {
        return Ok(Meaning::Hidden);
    }
    if let Some(above) = components(dir).find(|above| above.starts_with(WHITEOUT)) {
        return Err(Refusal::WhiteoutParent(above.to_owned()));
    }
    if name == OPAQUE {
        return Ok(Meaning::Opaque { dir });
    }
    if name.starts_with(AUFS) {
        return Ok(Meaning::Hidden);
    }
    match name.strip_prefix(WHITEOUT) {
        Some("" | "." | "..") => Err(Refusal::WhiteoutName),
        Some(name) => Ok(Meaning::Whiteout { dir, name }),
        None => Ok(Meaning::Node { dir, name }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_mean_what_they_say() {
        let limits = Limits::default();
        for (path, expected) in [
            ("", Meaning::Root),
            ("./", Meaning::Root),
            ("/", Meaning::Root),
            ("a", Meaning::Node { dir: "", name: "a" }),
            (
                "./a/b/",
                Meaning::Node {
                    dir: "./a/",
                    name: "b",
                },
            ),
            (
                "/a//./b",
                Meaning::Node {
                    dir: "/a//./",
                    name: "b",
                },
            ),
            (
                "a/.wh.b",
                Meaning::Whiteout {
                    dir: "a/",
                    name: "b",
                },
            ),
            ("a/.wh..wh..opq", Meaning::Opaque { dir: "a/" }),
            (".wh..wh..opq", Meaning::Opaque { dir: "" }),
            (".wh..wh.plnk", Meaning::Hidden),
            (".wh..wh.plnk/12.34", Meaning::Hidden),
            ("./stargz.index.json", Meaning::Hidden),
            (".no.prefetch.landmark", Meaning::Hidden),
            (".prefetch.landmark", Meaning::Landmark),
            (
                "a/.prefetch.landmark",
                Meaning::Node {
                    dir: "a/",
                    name: ".prefetch.landmark",
                },
            ),
            (
                "a/x.wh.b",
                Meaning::Node {
                    dir: "a/",
                    name: "x.wh.b",
                },
            ),
        ] {
            assert_eq!(meaning(path, &limits), Ok(expected), "{path:?}");
        }
    }

    #[test]
    fn names_that_cannot_be_are_refused() {
        let limits = Limits {
            max_path_bytes: 1000,
            max_depth: 3,
            ..Limits::default()
        };
        let long = "x".repeat(256);
        for (path, expected) in [
            ("..", Refusal::NameDotDot),
            ("a/../b", Refusal::NameDotDot),
            ("a\0b", Refusal::NameNul),
            (&long, Refusal::NameLength(256)),
            ("1/2/3/4/5", Refusal::Depth(3)),
            (".wh.", Refusal::WhiteoutName),
            (".wh...", Refusal::WhiteoutName),
            (".wh.a/b", Refusal::WhiteoutParent(".wh.a".to_owned())),
            (
                &"y/".repeat(501),
                Refusal::PathLength {
                    len: 1002,
                    limit: 1000,
                },
            ),
        ] {
            assert_eq!(meaning(path, &limits), Err(expected), "{path:?}");
        }
        assert!(meaning(&"x".repeat(255), &limits).is_ok());
        assert!(meaning("1/2/3/4", &limits).is_ok());
    }
}
