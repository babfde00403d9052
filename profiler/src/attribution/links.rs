//! From a lower directory through the engine's links to a layer of the store.
//!
//! `<graph root>/overlay/l/<short>` -> `../<layer>/diff` -> `<store>/<reference>/<digest>/diff` ->
//! `../../../layers/<plain|xattr>/<slot>/diff`. Each link is read, never followed by the kernel, so that the walk ends
//! at the name of the data mount's directory and sends it nothing.

use std::path::{Component, Path, PathBuf};

/// More links than any engine makes; ends a loop.
const MAX_LINKS: usize = 16;

/// The directory that holds the store's data mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayersDir {
    path: PathBuf,
    /// The same without links on the way, for a storage.conf that spells it differently.
    canonical: PathBuf,
}

impl LayersDir {
    /// `path` as the store tells it (`Hello`).
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_path_buf(),
            // The directory itself is an ordinary one: the mounts lie in it.
            canonical: path.canonicalize().unwrap_or_else(|_| path.to_path_buf()),
        }
    }

    /// The slot whose tree `path` is.
    fn slot(&self, path: &Path) -> Option<u32> {
        let (layers, slot) = split(path)?;
        if layers == self.path || layers == self.canonical {
            return Some(slot);
        }
        (layers.file_name() == self.path.file_name()
            && layers.canonicalize().ok()? == self.canonical)
            .then_some(slot)
    }
}

/// `<layers>/<plain|xattr>/<slot>/diff` -> (`<layers>`, slot).
fn split(path: &Path) -> Option<(&Path, u32)> {
    let slot_dir = path.ends_with("diff").then(|| path.parent()).flatten()?;
    let slot = slot_dir.file_name()?.to_str()?.parse().ok()?;
    let mount = slot_dir.parent()?;
    if !mount.ends_with("plain") && !mount.ends_with("xattr") {
        return None;
    }
    Some((mount.parent()?, slot))
}

/// The slot that `lower` leads to, if it is a layer of the store.
///
/// `base` is where a relative name starts; `prefixes` are the roots from which the engine's files may be seen, tried in
/// order.
pub(super) fn slot(
    lower: &Path,
    base: Option<&Path>,
    prefixes: &[PathBuf],
    layers: &LayersDir,
) -> Option<u32> {
    let start = match base {
        _ if lower.is_absolute() => lower.to_path_buf(),
        Some(base) => base.join(lower),
        None => return None,
    };
    prefixes
        .iter()
        .find_map(|prefix| follow(start.clone(), prefix, layers))
}

fn follow(start: PathBuf, prefix: &Path, layers: &LayersDir) -> Option<u32> {
    let mut path = start;
    for _ in 0..MAX_LINKS {
        path = normalise(&path);
        if let Some(slot) = layers.slot(&path) {
            return Some(slot);
        }
        let below_prefix = path.strip_prefix("/").ok()?;
        let target = std::fs::read_link(prefix.join(below_prefix)).ok()?;
        path = path.parent()?.join(target);
    }
    None
}

/// Takes `.` and `..` out of an absolute path by its text: in the engine's storage no directory on the way is a link.
fn normalise(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::{fs, os::unix::fs::symlink};

    use super::*;

    /// A graph root and a store as the engine leaves them; the layers' own directories do not exist.
    fn storage() -> (tempfile::TempDir, LayersDir) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let target = root.join("store/ZXhhbXBsZQ==/sha256:aa");
        fs::create_dir_all(&target).unwrap();
        symlink("../../../layers/plain/7/diff", target.join("diff")).unwrap();
        fs::create_dir_all(root.join("layers")).unwrap();
        fs::create_dir_all(root.join("graph/overlay/l")).unwrap();
        fs::create_dir_all(root.join("graph/overlay/layer1")).unwrap();
        fs::create_dir_all(root.join("graph/overlay/layer2/diff")).unwrap();
        symlink(target.join("diff"), root.join("graph/overlay/layer1/diff")).unwrap();
        symlink("../layer1/diff", root.join("graph/overlay/l/AAA")).unwrap();
        symlink("../layer2/diff", root.join("graph/overlay/l/BBB")).unwrap();
        symlink("CCC", root.join("graph/overlay/l/CCC")).unwrap();
        let layers = LayersDir::new(&root.join("layers"));
        (dir, layers)
    }

    fn here() -> Vec<PathBuf> {
        vec!["/".into()]
    }

    #[test]
    fn the_engine_s_links_lead_to_the_slot() {
        let (dir, layers) = storage();
        let base = dir.path().join("graph/overlay");
        assert_eq!(slot(&base.join("l/AAA"), None, &here(), &layers), Some(7));
        assert_eq!(
            slot(Path::new("l/AAA"), Some(&base), &here(), &layers),
            Some(7)
        );
        assert_eq!(
            slot(
                &dir.path().join("layers/xattr/12/diff"),
                None,
                &here(),
                &layers
            ),
            Some(12)
        );
    }

    #[test]
    fn ordinary_layers_loops_and_unknown_names_are_none() {
        let (dir, layers) = storage();
        let base = dir.path().join("graph/overlay");
        for name in ["l/BBB", "l/CCC", "l/DDD", "layer2/diff"] {
            assert_eq!(
                slot(Path::new(name), Some(&base), &here(), &layers),
                None,
                "{name}"
            );
        }
        assert_eq!(slot(Path::new("l/AAA"), None, &here(), &layers), None);
        for name in [
            "layers/other/7/diff",
            "layers/plain/x/diff",
            "layers/plain/7",
        ] {
            assert_eq!(
                slot(&dir.path().join(name), None, &here(), &layers),
                None,
                "{name}"
            );
        }
    }

    #[test]
    fn a_store_behind_a_link_is_recognised() {
        let (dir, layers) = storage();
        let other = tempfile::tempdir().unwrap();
        symlink(dir.path(), other.path().join("forelayer")).unwrap();
        let path = other.path().join("forelayer/layers/plain/3/diff");
        assert_eq!(slot(&path, None, &here(), &layers), Some(3));
    }

    #[test]
    fn a_namespace_of_the_engine_s_own_is_seen_through_its_process() {
        let (dir, layers) = storage();
        // The link's absolute target is meant in the engine's namespace, where the store has the same path.
        let prefixes = vec!["/nonexistent".into(), PathBuf::from("/proc/self/root")];
        let lower = dir.path().join("graph/overlay/l/AAA");
        assert_eq!(slot(&lower, None, &prefixes, &layers), Some(7));
    }
}
