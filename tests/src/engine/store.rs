//! The program under test: `forelayer serve` and `forelayer watch` with a state directory of their own.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::{UnixDatagram, UnixStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    process::{self, Process},
    work::{self, WorkDir},
};

/// How long the program may take for what it does at once; a bound against hanging, not a claim about speed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A store, running or stopped. Dropping it ends its processes and unmounts what is left.
#[derive(Debug)]
pub struct Store<'a> {
    work: &'a WorkDir,
    directory: PathBuf,
    binary: PathBuf,
    options: String,
    server: Option<Process>,
    witness: Option<Process>,
}

/// The program, from `FORELAYER_BIN` or the build directory that this program lies in.
///
/// # Errors
/// When it is at neither place.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("FORELAYER_BIN") {
        return Ok(path.into());
    }
    // target/<profile>/deps/<test> or target/<profile>/<program>.
    let own = std::env::current_exe()?;
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join("forelayer"))
        .find(|path| path.is_file())
        .context("the program `forelayer` is not built: `cargo build -p forelayer`, or set FORELAYER_BIN")
}

impl<'a> Store<'a> {
    /// A stopped store in `<run>/<name>`. `options`: lines of the configuration file, tables included.
    ///
    /// # Errors
    /// When its directory cannot be made or the program is not built.
    pub fn new(work: &'a WorkDir, name: &str, options: &str) -> Result<Self> {
        Self::with_program(work, name, options, &binary()?)
    }

    /// The same with another program than [`binary`].
    ///
    /// # Errors
    /// When its directory cannot be made.
    pub fn with_program(
        work: &'a WorkDir,
        name: &str,
        options: &str,
        program: &Path,
    ) -> Result<Self> {
        let directory = work.directory(name)?;
        let mut store = Self {
            work,
            directory,
            binary: program.to_path_buf(),
            options: String::new(),
            server: None,
            witness: None,
        };
        store.configure(options)?;
        Ok(store)
    }

    /// Replaces the configuration; counts from the next start.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn configure(&mut self, options: &str) -> Result<()> {
        options.clone_into(&mut self.options);
        let text = format!(
            "state_dir = \"{0}/state\"\nmount_dir = \"{0}/mounts\"\nrun_dir = \"{0}/run\"\n{options}\n[metrics]\nlisten = \"\"\n",
            self.directory.display()
        );
        fs::write(self.directory.join("config.toml"), text)?;
        Ok(())
    }

    /// A `forelayer` command with this store's configuration.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = process::command(&self.binary);
        self.configured(&mut command, arguments);
        command
    }

    fn configured(&self, command: &mut Command, arguments: &[&str]) {
        command
            .arg("--config")
            .arg(self.directory.join("config.toml"))
            .args(arguments)
            .env_remove("NOTIFY_SOCKET")
            // Credentials of this machine's user are none of the tests' business.
            .env("HOME", &self.directory)
            .env_remove("REGISTRY_AUTH_FILE")
            .env_remove("XDG_RUNTIME_DIR");
    }

    /// Starts a service of the program and waits for its `READY=1`.
    fn service(&self, name: &str, log_level: &str) -> Result<Process> {
        let notify = self.directory.join(format!("{name}.notify"));
        let _ = fs::remove_file(&notify);
        let socket = UnixDatagram::bind(&notify)
            .with_context(|| format!("cannot listen on {}", notify.display()))?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        let mut command = Command::new(&self.binary);
        self.configured(
            &mut command,
            &["--log-format", "json", "--log", log_level, name],
        );
        command.env("NOTIFY_SOCKET", &notify);
        let log = self.log_file(name);
        let mut process =
            Process::start(self.work, &format!("forelayer {name}"), &mut command, &log)?;
        let mut message = [0; 4096];
        process::until(&format!("READY=1 of forelayer {name}"), PATIENCE, || {
            if let Ok(length) = socket.recv(&mut message)
                && message[..length]
                    .split(|&byte| byte == b'\n')
                    .any(|line| line == b"READY=1")
            {
                return Ok(Some(()));
            }
            ensure!(
                process.is_running(),
                "forelayer {name} ended at its start:\n{}",
                fs::read_to_string(&log).unwrap_or_default()
            );
            Ok(None)
        })?;
        Ok(process)
    }

    /// Starts `forelayer serve` and waits until it serves.
    ///
    /// # Errors
    /// When it ends or does not become ready.
    pub fn start(&mut self) -> Result<()> {
        self.server = Some(self.service("serve", "info,forelayer=debug")?);
        Ok(())
    }

    /// Starts `forelayer watch`, waits until it is ready and, unless it is switched off, until the store knows it.
    ///
    /// # Errors
    /// When it ends or is not heard of.
    pub fn watch(&mut self) -> Result<()> {
        let mut process = self.service("watch", "info,forelayer=debug,forelayer_profiler=debug")?;
        if !self.options.contains("level = \"off\"") {
            process::until("the connection of the witness", PATIENCE, || {
                ensure!(
                    process.is_running(),
                    "forelayer watch ended at its start:\n{}",
                    self.log_end("watch")
                );
                Ok((self.metric("forelayer_witness_connected")? >= 1.0).then_some(()))
            })?;
        }
        self.witness = Some(process);
        Ok(())
    }

    /// Kills the witness as a crash would.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill_witness(&mut self) -> Result<()> {
        self.witness.take().context("no witness runs")?.kill()
    }

    /// The process id of `forelayer serve`.
    #[must_use]
    pub fn server_id(&self) -> Option<u32> {
        self.server.as_ref().map(Process::id)
    }

    /// The witness's process id.
    #[must_use]
    pub fn witness_id(&self) -> Option<u32> {
        self.witness.as_ref().map(Process::id)
    }

    /// Asks both services to end and waits for it.
    ///
    /// # Errors
    /// When one ends with an error, or something stays mounted.
    pub fn stop(&mut self) -> Result<()> {
        for (name, process) in [
            ("watch", self.witness.take()),
            ("serve", self.server.take()),
        ] {
            let Some(process) = process else { continue };
            let code = process.stop(Duration::from_secs(20))?;
            ensure!(
                code == Some(0),
                "forelayer {name} ended with {code:?}; its log ends:\n{}",
                self.log_end(name)
            );
        }
        Ok(())
    }

    /// Ends the server at once, as a crash would.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self) -> Result<()> {
        self.server.take().context("the store does not run")?.kill()
    }

    /// Deletes what a stopped store has kept, profiles excepted.
    ///
    /// # Errors
    /// When it runs or a file cannot be deleted.
    pub fn forget(&self) -> Result<()> {
        ensure!(self.server.is_none(), "the store still runs");
        let state = self.state_dir();
        work::unmount_below(&self.directory);
        for entry in fs::read_dir(&state)? {
            let entry = entry?;
            if entry.file_name() == "profiles" {
                continue;
            }
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// The state directory.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// The control mount, for storage.conf.
    #[must_use]
    pub fn mount(&self) -> PathBuf {
        self.directory.join("mounts/store")
    }

    fn log_file(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.log"))
    }

    /// What a service (`serve` or `watch`) has logged so far.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn log(&self, name: &str) -> Result<String> {
        Ok(fs::read_to_string(self.log_file(name))?)
    }

    /// The end of a service's log, for messages.
    #[must_use]
    pub fn log_end(&self, name: &str) -> String {
        let text = self.log(name).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// `GET` on the control socket; the body of a 200.
    ///
    /// # Errors
    /// When nobody answers, or not with 200.
    pub fn get(&self, path: &str) -> Result<String> {
        let socket = self.directory.join("run/control.sock");
        let mut stream = UnixStream::connect(&socket)
            .with_context(|| format!("cannot connect to {}", socket.display()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        // HTTP/1.0: the body is not chunked and ends with the connection.
        write!(stream, "GET {path} HTTP/1.0\r\nHost: forelayer\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer
            .split_once("\r\n\r\n")
            .with_context(|| format!("no HTTP answer to {path}: {answer}"))?;
        if head.split(' ').nth(1) != Some("200") {
            bail!("{path} was answered with {head}\n{body}");
        }
        Ok(body.to_owned())
    }

    /// A document of the control socket.
    ///
    /// # Errors
    /// As [`Store::get`], and when it is not JSON.
    pub fn get_json(&self, path: &str) -> Result<serde_json::Value> {
        let body = self.get(path)?;
        serde_json::from_str(&body).with_context(|| format!("{path} is not JSON: {body}"))
    }

    /// All profiles, whole.
    ///
    /// # Errors
    /// When the commands fail or print something else.
    pub fn profiles(&self) -> Result<Vec<serde_json::Value>> {
        let list = process::run(&mut self.command(&["profile", "list", "--json"]))?;
        let list: Vec<serde_json::Value> =
            serde_json::from_str(&list).with_context(|| format!("the list is {list}"))?;
        list.iter()
            .map(|entry| {
                let file = entry["file"].as_str().context("a profile without a file")?;
                let text = process::run(&mut self.command(&["profile", "show", "--json", file]))?;
                serde_json::from_str(&text).with_context(|| format!("{file} is {text}"))
            })
            .collect()
    }

    /// The fields of the log lines of a service with this message.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn logged(&self, service: &str, message: &str) -> Result<Vec<serde_json::Value>> {
        Ok(self
            .log(service)?
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .filter(|fields| fields["message"] == message)
            .collect())
    }

    /// A metric's value by its name and labels as the page writes them.
    ///
    /// # Errors
    /// When the page cannot be had, or has no such metric: all are there from the start.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let page = self.get("/metrics")?;
        page.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
            .with_context(|| format!("there is no metric {name}"))
    }
}

impl Drop for Store<'_> {
    fn drop(&mut self) {
        // In this order: the witness goes before the store it talks to.
        self.witness = None;
        self.server = None;
        work::unmount_below(&self.directory);
    }
}

/// Writes back and drops what the machine has cached of files, so that a start is cold.
///
/// # Errors
/// When the kernel does not allow it.
pub fn drop_caches() -> Result<()> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").context("cannot drop the machine's caches")
}

/// The path of a layer on the control mount: `<mount>/<base64 of the reference>/<digest>`.
#[must_use]
pub fn layer_path(mount: &Path, reference: &str, digest: &str) -> PathBuf {
    use base64::Engine as _;
    mount
        .join(base64::engine::general_purpose::STANDARD.encode(reference))
        .join(digest)
}
