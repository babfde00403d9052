//! What the engine's own files say of a container: `containers.json` of its storage and the OCI configuration in the
//! container's bundle (Podman and CRI-O keep both in the same places).

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::protocol::Container;

/// Larger files are not read: a list of ten thousand containers takes about 10 MB.
const MAX_FILE: u64 = 64 << 20;
/// Bounds on what is kept of labels, which users write.
const MAX_LABELS: usize = 256;
/// Bytes of one label or one argument.
const MAX_TEXT: usize = 4096;
/// Arguments of a command that are kept.
const MAX_ARGUMENTS: usize = 1024;

/// One container of `overlay-containers/containers.json`.
#[derive(Deserialize)]
struct Stored {
    id: String,
    /// JSON within a string, written by the engine for itself.
    #[serde(default)]
    metadata: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Metadata {
    #[serde(default)]
    image_name: String,
}

/// The part of an OCI runtime configuration that matters here.
#[derive(Default, Deserialize)]
struct Oci {
    process: Option<OciProcess>,
    root: Option<OciRoot>,
    #[serde(default)]
    mounts: Vec<OciMount>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct OciProcess {
    #[serde(default)]
    args: Vec<String>,
}

#[derive(Deserialize)]
struct OciRoot {
    path: PathBuf,
}

#[derive(Deserialize)]
struct OciMount {
    #[serde(default)]
    source: PathBuf,
}

/// Image name, command and labels of the container `id`, as far as its engine's files below `graph_root` tell.
///
/// Id and slots are left empty: the caller knows them from the process.
pub(super) fn describe(graph_root: &Path, id: &str, prefixes: &[PathBuf]) -> Container {
    let oci = oci(graph_root, id, prefixes).unwrap_or_default();
    let mut container = Container {
        image: image_name(graph_root, id, prefixes, &oci),
        labels: labels(&oci.annotations),
        ..Container::default()
    };
    if let Some(process) = oci.process {
        container.command = process.args;
        container.command.truncate(MAX_ARGUMENTS);
        for argument in &mut container.command {
            shorten(argument);
        }
    }
    container
}

/// Where the engine mounted the container's overlay, by the container's configuration.
pub(super) fn root_path(graph_root: &Path, id: &str, prefixes: &[PathBuf]) -> Option<PathBuf> {
    Some(oci(graph_root, id, prefixes)?.root?.path)
}

fn oci(graph_root: &Path, id: &str, prefixes: &[PathBuf]) -> Option<Oci> {
    let path = graph_root
        .join("overlay-containers")
        .join(id)
        .join("userdata/config.json");
    read(&path, prefixes)
}

fn image_name(graph_root: &Path, id: &str, prefixes: &[PathBuf], oci: &Oci) -> String {
    for key in [
        "io.kubernetes.cri-o.ImageName",
        "io.container.manager.image",
    ] {
        if let Some(name) = oci.annotations.get(key).filter(|name| !name.is_empty()) {
            return name.clone();
        }
    }
    let permanent = graph_root.join("overlay-containers/containers.json");
    // `run --rm` is written to the run root, which the bundle's bind mounts name:
    // <run root>/overlay-containers/<id>/userdata/hosts.
    let volatile = oci.mounts.iter().find_map(|mount| {
        let dir = mount.source.ancestors().nth(3)?;
        let of_container = mount.source.parent()?.parent()?.file_name()? == id;
        (of_container && dir.file_name()? == "overlay-containers")
            .then(|| dir.join("volatile-containers.json"))
    });
    [Some(permanent), volatile]
        .into_iter()
        .flatten()
        .find_map(|path| {
            let all: Vec<Stored> = read(&path, prefixes)?;
            let stored = all.into_iter().find(|stored| stored.id == id)?;
            let metadata: Metadata = serde_json::from_str(&stored.metadata).ok()?;
            Some(metadata.image_name).filter(|name| !name.is_empty())
        })
        .unwrap_or_default()
}

/// Kubernetes' names for the container, and the labels that CRI-O was given with it.
fn labels(annotations: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let given: BTreeMap<String, String> = annotations
        .get("io.kubernetes.cri-o.Labels")
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default();
    let names = annotations
        .iter()
        .filter(|(key, _)| {
            matches!(
                key.as_str(),
                "io.kubernetes.pod.namespace"
                    | "io.kubernetes.pod.name"
                    | "io.kubernetes.container.name"
            )
        })
        .map(|(key, value)| (key.clone(), value.clone()));
    given
        .into_iter()
        .chain(names)
        .filter(|(key, value)| key.len() <= MAX_TEXT && value.len() <= MAX_TEXT)
        .take(MAX_LABELS)
        .collect()
}

fn shorten(text: &mut String) {
    if text.len() > MAX_TEXT {
        let end = (0..=MAX_TEXT)
            .rev()
            .find(|&at| text.is_char_boundary(at))
            .unwrap_or(0);
        text.truncate(end);
    }
}

/// Reads JSON from the first of the roots that has it.
fn read<T: for<'a> Deserialize<'a>>(path: &Path, prefixes: &[PathBuf]) -> Option<T> {
    let below = path.strip_prefix("/").ok()?;
    prefixes.iter().find_map(|prefix| {
        let path = prefix.join(below);
        if fs::metadata(&path).ok()?.len() > MAX_FILE {
            return None;
        }
        match serde_json::from_slice(&fs::read(&path).ok()?) {
            Ok(value) => Some(value),
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "an engine's file is not as expected");
                None
            }
        }
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn here() -> Vec<PathBuf> {
        vec!["/".into()]
    }

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn podman_s_files_are_understood() {
        let dir = tempfile::tempdir().unwrap();
        let containers = dir.path().join("overlay-containers");
        write(
            &containers.join("containers.json"),
            r#"[{"id":"other","metadata":"{}"},{"id":"c1","names":["n"],"image":"1234","layer":"l","metadata":"{\"image-name\":\"localhost/app:1\",\"image-id\":\"1234\"}"}]"#,
        );
        write(
            &containers.join("c1/userdata/config.json"),
            r#"{"ociVersion":"1.0.2","process":{"args":["python3","-m","app"]},"root":{"path":"/g/overlay/l/merged"},"annotations":{"io.container.manager":"libpod"}}"#,
        );
        let found = describe(dir.path(), "c1", &here());
        assert_eq!(found.image, "localhost/app:1");
        assert_eq!(found.command, ["python3", "-m", "app"]);
        assert!(found.labels.is_empty());
        assert_eq!(
            root_path(dir.path(), "c1", &here()).unwrap(),
            Path::new("/g/overlay/l/merged")
        );
    }

    #[test]
    fn a_container_that_is_removed_after_its_run_is_found_in_the_run_root() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run/overlay-containers");
        write(
            &run.join("volatile-containers.json"),
            r#"[{"id":"c1","metadata":"{\"image-name\":\"app\"}"}]"#,
        );
        write(
            &dir.path()
                .join("graph/overlay-containers/c1/userdata/config.json"),
            &format!(
                r#"{{"mounts":[{{"destination":"/proc","source":"proc"}},{{"destination":"/etc/hosts","source":"{}/c1/userdata/hosts"}}]}}"#,
                run.display()
            ),
        );
        assert_eq!(
            describe(&dir.path().join("graph"), "c1", &here()).image,
            "app"
        );
    }

    #[test]
    fn cri_o_s_annotations_are_understood() {
        let dir = tempfile::tempdir().unwrap();
        write(
            &dir.path()
                .join("overlay-containers/c1/userdata/config.json"),
            r#"{"annotations":{"io.kubernetes.cri-o.ImageName":"quay.io/a/b:2","io.kubernetes.pod.name":"p","io.kubernetes.pod.namespace":"ns","io.kubernetes.container.name":"c","io.kubernetes.cri-o.Labels":"{\"app\":\"web\"}","other":"x"}}"#,
        );
        let found = describe(dir.path(), "c1", &here());
        assert_eq!(found.image, "quay.io/a/b:2");
        assert_eq!(
            found.labels,
            BTreeMap::from(
                [
                    ("app", "web"),
                    ("io.kubernetes.container.name", "c"),
                    ("io.kubernetes.pod.name", "p"),
                    ("io.kubernetes.pod.namespace", "ns"),
                ]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
            )
        );
    }

    #[test]
    fn missing_and_malformed_files_leave_fields_empty() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(describe(dir.path(), "c1", &here()), Container::default());
        let containers = dir.path().join("overlay-containers");
        for text in ["", "{", "[]", "null", r#"{"process":7}"#, r#"[{"id":7}]"#] {
            write(&containers.join("containers.json"), text);
            write(&containers.join("c1/userdata/config.json"), text);
            assert_eq!(
                describe(dir.path(), "c1", &here()),
                Container::default(),
                "{text:?}"
            );
        }
        // Metadata that is not what Podman writes.
        write(
            &containers.join("containers.json"),
            r#"[{"id":"c1","metadata":"no json"}]"#,
        );
        assert_eq!(describe(dir.path(), "c1", &here()), Container::default());
    }
}
