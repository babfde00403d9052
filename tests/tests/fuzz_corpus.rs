//! Runs the kept corpus of the fuzz targets through what they run (fuzz/Cargo.toml).

#[path = "../../fuzz/src/lib.rs"]
#[allow(unreachable_pub, reason = "a crate of its own elsewhere")]
mod targets;

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

/// Runs every file of a target's corpus.
fn replay(target: &str, run: fn(&[u8])) -> Result<()> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/corpus")
        .join(target);
    let mut files = 0;
    for file in fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))? {
        let path = file?.path();
        // Shown only if the test fails.
        println!("{}", path.display());
        run(&fs::read(&path)?);
        files += 1;
    }
    anyhow::ensure!(files > 0, "{} is empty", dir.display());
    Ok(())
}

#[test]
fn toc() -> Result<()> {
    replay("toc", targets::toc)
}

#[test]
fn footer() -> Result<()> {
    replay("footer", targets::footer)
}

#[test]
fn zstd_manifest() -> Result<()> {
    replay("zstd_manifest", targets::zstd_manifest)
}

#[test]
fn annotations() -> Result<()> {
    replay("annotations", targets::annotations)
}

#[test]
fn manifest() -> Result<()> {
    replay("manifest", targets::manifest)
}

#[test]
fn reference() -> Result<()> {
    replay("reference", targets::reference)
}

#[test]
fn config() -> Result<()> {
    replay("config", targets::config)
}

#[test]
fn profile() -> Result<()> {
    replay("profile", targets::profile)
}
