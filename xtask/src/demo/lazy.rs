//! What Podman does with a layer store: look every layer up, announce its use, read what it is, link to it.
//!
//! The operations and their order are those of containers/storage 1.43 (Podman 4.3.1), which asks by blob digest.

use std::{
    fs,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use forelayer_tests::fixtures::Layer;

/// Looks all layers up, bottom first. Returns their trees, bottom first.
pub(crate) fn pull(store: &Path, reference: &str, layers: &[Layer]) -> Result<Vec<PathBuf>> {
    let image = store.join(STANDARD.encode(reference));
    let mut trees = Vec::new();
    for layer in layers {
        let target = image.join(&layer.digest);
        for name in ["diff", "info", "blob"] {
            let path = target.join(name);
            fs::symlink_metadata(&path).with_context(|| {
                format!(
                    "the store does not serve {}: {}",
                    layer.digest,
                    path.display()
                )
            })?;
        }
        use_layer(&target)?;
        let info = fs::read(target.join("info")).context("cannot read what the layer is")?;
        let info: serde_json::Value = serde_json::from_slice(&info)?;
        if info["toc-digest"].as_str() != Some(&layer.toc_digest) {
            bail!(
                "the store serves layer {} with another TOC: {info}",
                layer.digest
            );
        }
        // Once more for the record that is kept, as the engine does.
        fs::read(target.join("info"))?;
        use_layer(&target)?;
        trees.push(target.join("diff"));
    }
    for layer in layers {
        // One use less; the answer "it is not there" is what engines expect.
        let _ = fs::remove_dir(image.join(&layer.digest));
    }
    Ok(trees)
}

/// Tells the store that a layer is used: creating the file must fail with ENOENT.
fn use_layer(target: &Path) -> Result<()> {
    let answer = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o666)
        .open(target.join("use"));
    match answer {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).context("the store does not take the use of a layer"),
        Ok(_) => bail!("the store made a file of the use of a layer"),
    }
}
