//! containerd with a root and socket of its own and `ctr-remote`, only to convert images to eStargz.

use std::{fs, path::PathBuf, process::Command};

use anyhow::Result;

use super::{
    process::{self, Process},
    work::WorkDir,
};

/// A running containerd.
#[derive(Debug)]
pub struct Containerd {
    socket: PathBuf,
    // Kept for its drop.
    _process: Process,
}

impl Containerd {
    /// Starts one below the run's directory.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(work: &WorkDir) -> Result<Self> {
        let directory = work.directory("containerd")?;
        let socket = directory.join("sock");
        let configuration = directory.join("config.toml");
        fs::write(
            &configuration,
            format!(
                "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\n\
                 disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n\
                 [grpc]\naddress = \"{0}/sock\"\n",
                directory.display()
            ),
        )?;
        let mut command = Command::new("containerd");
        command.arg("--config").arg(&configuration);
        let process = Process::start(work, "containerd", &mut command, &directory.join("log"))?;
        process.wait_for("that it serves", |line| {
            line.contains("containerd successfully booted")
                .then_some(())
        })?;
        Ok(Self {
            socket,
            _process: process,
        })
    }

    fn ctr(&self, arguments: &[&str]) -> Result<String> {
        process::run(
            process::command("ctr-remote")
                .arg("--address")
                .arg(&self.socket)
                .args(arguments),
        )
    }

    /// Pulls `from`, converts every layer with `options` of `ctr-remote images optimize`, pushes the result as `to`.
    ///
    /// # Errors
    /// ctr-remote's.
    pub fn convert(&self, from: &str, to: &str, options: &[&str]) -> Result<()> {
        // Not `images pull`, which unpacks it as well.
        self.ctr(&["content", "fetch", "--plain-http", from])?;
        let mut optimize = vec!["images", "optimize", "--no-optimize", "--oci"];
        optimize.extend(options);
        optimize.extend([from, to]);
        self.ctr(&optimize)?;
        self.ctr(&["images", "push", "--plain-http", to])?;
        self.ctr(&["images", "remove", "--sync", from, to])?;
        Ok(())
    }
}
