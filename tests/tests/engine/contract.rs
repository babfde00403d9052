//! What CRI-O does at the mount, operation by operation, for both keys: lookup, commit, release, a second pull, a
//! container's mount, a restart of the engine, export, removal. (Its steps are numbered as in the description of
//! containers/storage's additional layer stores, from 1, the existence checks, to 14, the removal.)

use std::{
    fs::{self, OpenOptions},
    io::Read as _,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, symlink},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use forelayer_tests::engine::{
    images::Format,
    store::{Store, layer_path},
    stored::{StoredImage, StoredLayer},
    tree,
};
use rustix::{
    fs::{Access, AtFlags, CWD},
    io::Errno,
    mount::{MountFlags, UnmountFlags},
};
use serde_json::Value;

use crate::{
    Test,
    lab::{DEMAND_ONLY, Lab},
};

/// What stands for a layer in the paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    /// Digest of the blob: CRI-O up to 1.30.
    Blob,
    /// Digest of the TOC: CRI-O 1.31 and 1.32.
    Toc,
}

pub(crate) fn add(tests: &mut Vec<Test>) {
    for (key, name, format) in [
        (Key::Blob, "by_blob", Format::Zstd4),
        (Key::Blob, "by_blob", Format::Zstd5),
        (Key::Blob, "by_blob", Format::Estargz),
        (Key::Toc, "by_toc", Format::Zstd5),
        (Key::Toc, "by_toc", Format::Estargz),
    ] {
        tests.push((
            format!("contract::whole_life::{name}::{}", format.name()),
            Box::new(move |lab| whole_life(lab, key, format)),
        ));
    }
    tests.push((
        "contract::unknown_names_are_not_there".into(),
        Box::new(unknown),
    ));
}

/// An engine's storage: links and files as containers/storage leaves them.
struct Graph {
    root: PathBuf,
}

/// A layer of an image under its key.
struct Target<'a> {
    layer: &'a StoredLayer,
    path: PathBuf,
    /// Digest in the path.
    digest: String,
    id: String,
}

fn whole_life(lab: &Lab, key: Key, format: Format) -> Result<()> {
    let mut store = lab.running(DEMAND_ONLY)?;
    let image = lab.image(format, "hard")?;
    let reference = lab.reference(format, "hard");
    let graph = Graph {
        root: lab
            .work
            .directory(format!("crio-{key:?}-{}", format.name()))?,
    };
    fs::create_dir_all(graph.root.join("l"))?;
    let targets = targets(&store, &image, &reference, key)?;

    pull(&targets, &graph, key, false).context("the first pull")?;
    container(&targets, &graph).context("the first container")?;
    pull(&targets, &graph, key, true).context("the second pull")?;
    export(&targets).context("the export")?;
    restart(&store, &targets, &graph).context("the engine's restart")?;
    container(&targets, &graph).context("the container after it")?;
    remove(&targets, &graph).context("the removal")?;
    // What was removed can be pulled again, and the store is whole enough to end cleanly.
    pull(&targets, &graph, key, false).context("the pull after the removal")?;
    remove(&targets, &graph)?;
    store.stop()
}

fn targets<'a>(
    store: &Store<'_>,
    image: &'a StoredImage,
    reference: &str,
    key: Key,
) -> Result<Vec<Target<'a>>> {
    image
        .layers
        .iter()
        .enumerate()
        .map(|(number, layer)| {
            let digest = match key {
                Key::Blob => layer.blob.clone(),
                Key::Toc => layer.toc.clone().context("a layer without a TOC")?,
            };
            Ok(Target {
                layer,
                path: layer_path(&store.mount(), reference, &digest),
                digest,
                id: format!("{number:064x}"),
            })
        })
        .collect()
}

/// Steps 1 to 9 for all layers of an image. `again`: the image is there already, so nothing is committed.
fn pull(targets: &[Target<'_>], graph: &Graph, key: Key, again: bool) -> Result<()> {
    for target in targets {
        // 1. What newer engines do with faccessat, older ones do with stat; each error means "not found".
        for name in ["diff", "info", "blob"] {
            let path = target.path.join(name);
            rustix::fs::accessat(CWD, &path, Access::EXISTS, AtFlags::empty())
                .with_context(|| format!("access of {}", path.display()))?;
            rustix::fs::stat(&path).with_context(|| format!("stat of {}", path.display()))?;
        }
        // 2.
        announce_use(target)?;
        // 3.
        check_info(target, key)?;
    }
    if !again {
        for (number, target) in targets.iter().enumerate() {
            commit(targets, number, target, graph, key)?;
        }
    }
    for target in targets {
        // 9. One release a handle.
        release(target)?;
    }
    Ok(())
}

/// Steps 4 to 8.
fn commit(
    targets: &[Target<'_>],
    number: usize,
    target: &Target<'_>,
    graph: &Graph,
    key: Key,
) -> Result<()> {
    check_info(target, key)?;
    let own = graph.root.join(&target.id);
    fs::create_dir(&own)?;
    // 5. A new layer copies mode and owner of its parent's root.
    if let Some(parent) = number.checked_sub(1).and_then(|number| targets.get(number)) {
        let root = fs::metadata(graph.root.join(&parent.id).join("diff"))?;
        ensure!(
            root.is_dir() && root.uid() == 0 && root.gid() == 0 && root.mode() & 0o777 != 0,
            "the root of the parent has mode {:o} and owner {}:{}",
            root.mode(),
            root.uid(),
            root.gid()
        );
    }
    fs::write(
        own.join("additionallayer"),
        target.path.to_str().context("a path that is not UTF-8")?,
    )?;
    announce_use(target)?;
    symlink(target.path.join("diff"), own.join("diff"))?;
    symlink(
        Path::new("..").join(&target.id).join("diff"),
        graph.link(target),
    )?;
    Ok(())
}

impl Graph {
    /// The short name under which overlayfs is given the layer.
    fn link(&self, target: &Target<'_>) -> PathBuf {
        self.root.join("l").join(format!("L{}", &target.id[60..]))
    }
}

/// `creat(use)` must fail with "not found".
fn announce_use(target: &Target<'_>) -> Result<()> {
    let path = target.path.join("use");
    match OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o666)
        .open(&path)
    {
        Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => Ok(()),
        Err(error) => bail!("creating {} failed with {error}", path.display()),
        Ok(_) => bail!("{} could be created", path.display()),
    }
}

/// `rmdir(target)` must fail with "not found".
fn release(target: &Target<'_>) -> Result<()> {
    match rustix::fs::unlinkat(CWD, &target.path, AtFlags::REMOVEDIR) {
        Err(Errno::NOENT) => Ok(()),
        other => bail!("rmdir of {} gave {other:?}", target.path.display()),
    }
}

/// `info` satisfies every engine and tells the truth.
fn check_info(target: &Target<'_>, key: Key) -> Result<()> {
    let path = target.path.join("info");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let info: Value = serde_json::from_str(&text).with_context(|| format!("info is {text:?}"))?;
    let layer = target.layer;
    let compression = if layer_is_gzip(layer) { 2 } else { 4 };
    ensure!(info["compression"] == compression, "compression: {text}");
    ensure!(
        info["compressed-diff-digest"] == layer.blob.as_str()
            || info["compressed-diff-digest"].is_null(),
        "compressed-diff-digest: {text}"
    );
    ensure!(
        info["compressed-size"] == layer.size || info["compressed-size"].is_null(),
        "compressed-size: {text}"
    );
    match key {
        Key::Toc => ensure!(
            info["toc-digest"] == target.digest.as_str(),
            "toc-digest: {text}"
        ),
        // Older engines panic without it.
        Key::Blob => ensure!(
            info["diff-digest"] == layer.diff_id.as_str(),
            "diff-digest: {text}, the image says {}",
            layer.diff_id
        ),
    }
    // Where it is not given, newer engines can export only with this.
    if info["diff-digest"].is_null() {
        ensure!(
            info["flags"]["expected-layer-diffid"] == layer.diff_id.as_str(),
            "expected-layer-diffid: {text}"
        );
    } else {
        ensure!(
            info["diff-digest"] == layer.diff_id.as_str(),
            "diff-digest: {text}"
        );
    }
    ensure!(info["diff-size"].is_i64(), "diff-size: {text}");
    Ok(())
}

fn layer_is_gzip(layer: &StoredLayer) -> bool {
    layer
        .annotations
        .contains_key("containerd.io/snapshot/stargz/toc.digest")
}

/// Steps 10 to 13: everything that a container's mount asks for, and the mount itself.
fn container(targets: &[Target<'_>], graph: &Graph) -> Result<()> {
    let mut lowers = Vec::new();
    for target in targets.iter().rev() {
        let link = graph.link(target);
        // 10. Another lower layer would be `diff1`.
        ensure!(
            fs::metadata(&link)?.is_dir(),
            "{} is no directory",
            link.display()
        );
        match fs::metadata(link.join("../diff1")) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            other => bail!("stat of diff1 gave {other:?}"),
        }
        // 12. and 13.
        let own = graph.root.join(&target.id).join("diff");
        let metadata = fs::metadata(&own)?;
        ensure!(
            (metadata.uid(), metadata.gid()) == (0, 0),
            "the root belongs to another"
        );
        rustix::fs::accessat(CWD, &own, Access::EXISTS, AtFlags::empty())?;
        lowers.push(
            link.to_str()
                .context("a path that is not UTF-8")?
                .to_owned(),
        );
    }
    // 11.
    let merged = graph.root.join("merged");
    for directory in ["merged", "upper", "work"] {
        let _ = fs::remove_dir_all(graph.root.join(directory));
        fs::create_dir(graph.root.join(directory))?;
    }
    let options = std::ffi::CString::new(format!(
        "lowerdir={},upperdir={},workdir={}",
        lowers.join(":"),
        graph.root.join("upper").display(),
        graph.root.join("work").display()
    ))?;
    rustix::mount::mount(
        "overlay",
        &merged,
        "overlay",
        MountFlags::empty(),
        &*options,
    )
    .context("mounting the overlay")?;
    let seen = look_around(&merged);
    rustix::mount::unmount(&merged, UnmountFlags::empty()).context("unmounting the overlay")?;
    seen
}

fn look_around(merged: &Path) -> Result<()> {
    let many = fs::read_dir(merged.join("hard/many"))?.count();
    ensure!(many == 10_000, "{many} names in the large directory");
    ensure!(
        !merged.join("hard/doomed/file").exists(),
        "a removed file is there"
    );
    let opaque: Vec<_> = fs::read_dir(merged.join("hard/doomed/opaque"))?
        .map(|entry| Ok(entry?.file_name()))
        .collect::<Result<_>>()?;
    ensure!(opaque.len() == 2, "the opaque directory shows {opaque:?}");
    ensure!(
        fs::read_to_string(merged.join("hard/doomed/changed"))? == "changed\n",
        "a changed file is not"
    );
    let shell = fs::read(merged.join("bin/bash"))?;
    ensure!(shell.starts_with(b"\x7fELF"), "the shell is no program");
    fs::write(
        merged.join("hard/doomed/merged/written"),
        "by the container",
    )?;
    fs::remove_dir_all(merged.join("hard/links"))?;
    Ok(())
}

/// An export: one more use, `info`, all of `blob`, and a release when it is closed.
fn export(targets: &[Target<'_>]) -> Result<()> {
    for target in targets {
        announce_use(target)?;
        let path = target.path.join("blob");
        let digest = format!("sha256:{}", hex::encode(tree::hash(&path)?));
        ensure!(
            digest == target.layer.blob,
            "{} holds {digest}",
            path.display()
        );
        release(target)?;
    }
    Ok(())
}

/// An engine that starts looks at the store's directory and at every layer it has on record; a dead mount would stop it.
fn restart(store: &Store<'_>, targets: &[Target<'_>], graph: &Graph) -> Result<()> {
    ensure!(fs::metadata(store.mount())?.is_dir());
    for target in targets {
        let record = fs::read_to_string(graph.root.join(&target.id).join("additionallayer"))?;
        ensure!(Path::new(&record) == target.path);
        rustix::fs::accessat(CWD, Path::new(&record), Access::EXISTS, AtFlags::empty())?;
        fs::metadata(Path::new(&record).join("diff"))?;
        let mut info = String::new();
        fs::File::open(Path::new(&record).join("info"))?.read_to_string(&mut info)?;
    }
    Ok(())
}

/// Step 14.
fn remove(targets: &[Target<'_>], graph: &Graph) -> Result<()> {
    for target in targets {
        fs::remove_file(graph.link(target))?;
        release(target)?;
        fs::remove_dir_all(graph.root.join(&target.id))?;
    }
    Ok(())
}

/// Names that mean nothing, digests that the image does not have, and images that are not there.
fn unknown(lab: &Lab) -> Result<()> {
    let store = lab.running(DEMAND_ONLY)?;
    let mount = store.mount();
    let reference = lab.reference(Format::Zstd5, "base");
    let absent = format!("sha256:{}", "0".repeat(64));
    let gone = lab.reference(Format::Zstd5, "no-such-image");
    let paths = [
        layer_path(&mount, &reference, &absent),
        layer_path(&mount, &gone, &absent),
        layer_path(&mount, &reference, "sha256:short"),
        layer_path(&mount, &reference, "no-digest"),
        mount.join("not base64!").join(&absent),
        mount.join("bm90IGEgcmVmZXJlbmNlIQ==").join(&absent),
    ];
    for path in paths {
        match fs::metadata(path.join("diff")) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            other => bail!("{} gave {other:?}", path.display()),
        }
    }
    ensure!(
        store.metric("forelayer_layers")? == 0.0,
        "a layer is served"
    );
    Ok(())
}
