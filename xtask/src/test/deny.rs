//! The dependencies by deny.toml. cargo-deny is built once into the cache; advisories are checked where their
//! database was fetched before, since fetching it needs more than the package registries.

use std::{path::PathBuf, process::Command};

use anyhow::Result;

use super::{Context, Outcome, check};

/// The release that is used; a newer one may read deny.toml differently.
const VERSION: &str = "0.20.2";

pub(super) fn run(context: &Context) -> Result<Outcome> {
    let program = install(context)?;
    let deny = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command
            .args(["--locked", "--all-features"])
            .args(arguments)
            .current_dir(&context.root);
        command
    };
    check(&mut deny(&["check", "licenses", "bans", "sources"]))?;
    if !advisories() {
        return Ok(Outcome::Skipped(
            "advisories only: their database was never fetched here (`cargo deny fetch`); the rest passed".into(),
        ));
    }
    check(&mut deny(&["--offline", "check", "advisories"]))
}

/// Builds cargo-deny unless the cache has it. Unoptimised: it builds in a third of the time and runs for two seconds.
fn install(context: &Context) -> Result<PathBuf> {
    let root = context.cache.join(format!("cargo-deny-{VERSION}"));
    let program = root.join("bin/cargo-deny");
    if !program.exists() {
        let mut cargo = context.cargo(&["install", "--debug", "--locked", "--root"]);
        cargo
            .arg(&root)
            .args(["--version", VERSION, "cargo-deny"])
            .env("CARGO_PROFILE_DEV_DEBUG", "false");
        check(&mut cargo)?;
    }
    Ok(program)
}

/// Whether cargo's home has an advisory database.
fn advisories() -> bool {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    home.and_then(|home| std::fs::read_dir(home.join("advisory-dbs")).ok())
        .is_some_and(|mut entries| entries.next().is_some())
}
