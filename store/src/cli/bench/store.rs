//! A store of its own: services, what they count, and what they forget.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use forelayer::config::{self, Config};
use tokio::{
    net::UnixDatagram,
    process::Command,
    time::{Instant, interval, timeout, timeout_at},
};

use super::{
    counts::{Counts, count},
    tool::{self, Running},
};

/// How long a service may take to be ready, or to end.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a count is looked at that is waited for.
const POLL: Duration = Duration::from_millis(50);

/// A store in a directory of its own.
#[derive(Debug)]
pub(super) struct Store {
    dir: PathBuf,
    program: PathBuf,
    file: PathBuf,
    config: Config,
    http: reqwest::Client,
    /// Running services, in the order in which they were started.
    services: Vec<(&'static str, Running)>,
}

impl Store {
    /// One that does not run yet, configured as the machine's own but for its places.
    pub(super) fn new(dir: PathBuf, config: &Config) -> anyhow::Result<Self> {
        fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let config = placed(config.clone(), &dir);
        let file = dir.join("config.toml");
        let text = toml::to_string(&config).context("the configuration cannot be written")?;
        fs::write(&file, text).context("cannot write config.toml")?;
        let http = reqwest::Client::builder()
            .unix_socket(config.control_socket())
            .build()?;
        Ok(Self {
            program: std::env::current_exe().context("cannot find this program's own file")?,
            // What a file cannot say is refused here rather than by the first service.
            config: config::load(Some(&file))?,
            services: Vec::new(),
            dir,
            file,
            http,
        })
    }

    /// Its control mount, as long as it runs.
    pub(super) fn mount(&self) -> Option<PathBuf> {
        (!self.services.is_empty()).then(|| self.config.store_dir())
    }

    pub(super) const fn config(&self) -> &Config {
        &self.config
    }

    /// A command of this program for this store.
    pub(super) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = tool::command(&self.program);
        command.arg("--config").arg(&self.file).args(arguments);
        command
    }

    /// Starts `serve`, then `watch`, and waits until both work and know each other.
    pub(super) async fn start(&mut self) -> anyhow::Result<()> {
        self.service("serve").await?;
        self.service("watch").await?;
        self.reaches("forelayer_witness_connected", 1.0, PATIENCE)
            .await
    }

    async fn service(&mut self, name: &'static str) -> anyhow::Result<()> {
        let notify = self.dir.join(format!("{name}.notify"));
        let _ = fs::remove_file(&notify);
        let socket = UnixDatagram::bind(&notify)
            .with_context(|| format!("cannot listen on {}", notify.display()))?;
        let log = File::create(self.log(name)).context("cannot write a log")?;
        let mut command = self.command(&[name]);
        command
            .env("NOTIFY_SOCKET", &notify)
            .env_remove("WATCHDOG_USEC")
            .stdout(Stdio::null())
            .stderr(log);
        let shown = tool::shown(&command);
        let child = tool::start(&mut command)?;
        self.services.push((name, child));
        let (_, child) = self.services.last_mut().context("it was just put there")?;
        let ready = async {
            let mut message = [0; 4096];
            loop {
                let length = socket.recv(&mut message).await?;
                if message[..length]
                    .split(|b| *b == b'\n')
                    .any(|l| l == b"READY=1")
                {
                    return anyhow::Ok(());
                }
            }
        };
        let why = tokio::select! {
            ready = timeout(PATIENCE, ready) => match ready {
                Ok(ready) => return ready.context("cannot hear of a service"),
                Err(_) => "was not ready in time".to_owned(),
            },
            status = child.wait() => format!("ended with {}", status?),
        };
        bail!("`{shown}` {why}\n{}", self.log_end(name))
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }

    fn log_end(&self, name: &str) -> String {
        let text = fs::read(self.log(name)).unwrap_or_default();
        tool::tail(&String::from_utf8_lossy(&text)).to_owned()
    }

    /// Ends the services, the last first.
    pub(super) async fn stop(&mut self) -> anyhow::Result<()> {
        let mut result = Ok(());
        while let Some((name, mut child)) = self.services.pop() {
            child.ask_to_end();
            match timeout(PATIENCE, child.wait()).await {
                Ok(Ok(status)) if status.success() => {}
                ended => {
                    let _ = child.kill().await;
                    let log = self.log_end(name);
                    result = Err(anyhow::anyhow!(
                        "`forelayer {name}` did not end well: {ended:?}\n{log}"
                    ));
                }
            }
        }
        result
    }

    /// Deletes what the stopped store has kept; the profiles too if that is said.
    pub(super) fn forget(&self, profiles: bool) -> anyhow::Result<()> {
        ensure!(self.services.is_empty(), "the store still runs");
        let entries = match fs::read_dir(&self.config.state_dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            entries => entries.context("cannot read the store's directory")?,
        };
        for entry in entries {
            let path = entry?.path();
            if path == self.config.profiles_dir() && !profiles {
                continue;
            }
            if path.is_dir() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            }
            .with_context(|| format!("cannot delete {}", path.display()))?;
        }
        Ok(())
    }

    async fn page(&self) -> anyhow::Result<String> {
        let answer = self.http.get("http://forelayer/metrics").send().await;
        let page = answer
            .context("the store does not answer")?
            .error_for_status()?;
        Ok(page.text().await?)
    }

    /// A count by its name, over all its labels.
    pub(super) async fn count(&self, name: &str) -> anyhow::Result<f64> {
        count(&self.page().await?, name)
    }

    /// Waits until a count is as high.
    pub(super) async fn reaches(
        &self,
        name: &str,
        least: f64,
        patience: Duration,
    ) -> anyhow::Result<()> {
        let end = Instant::now() + patience;
        let mut again = interval(POLL);
        loop {
            if self.count(name).await? >= least {
                return Ok(());
            }
            if timeout_at(end, again.tick()).await.is_err() {
                bail!(
                    "{name} of the bench's own store did not come to {least} in {patience:?}; `forelayer watch` says\n{}",
                    self.log_end("watch")
                );
            }
        }
    }

    /// What counts for a start, by now.
    pub(super) async fn counts(&self) -> anyhow::Result<Counts> {
        Counts::of(&self.page().await?)
    }
}

/// A configuration with other places and without a port.
fn placed(mut config: Config, dir: &Path) -> Config {
    config.state_dir = dir.join("state");
    config.mount_dir = dir.join("mounts");
    config.run_dir = dir.join("run");
    config.metrics.listen = None;
    config
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_configuration_keeps_all_but_its_places() {
        let text = "state_dir = \"/var/lib/forelayer\"\n[metrics]\nlisten = \"127.0.0.1:9464\"\n[registry]\n\
                    plain_http = [\"r:5000\"]\ncredentials.\"r:5000\" = { username = \"u\", password = \"p\" }\n\
                    [witness]\nquiet = 2.5\n";
        let config = config::load::parse(text, Path::new("config.toml")).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("store");
        let store = Store::new(dir.clone(), &config).unwrap();
        let own = store.config();
        assert_eq!(own.store_dir(), dir.join("mounts/store"));
        assert_eq!(own.control_socket(), dir.join("run/control.sock"));
        assert!(own.metrics.listen.is_none());
        assert_eq!(*own, placed(config, &dir));
        assert!(store.mount().is_none());
    }

    #[test]
    fn profiles_are_forgotten_only_when_that_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path().join("store"), &Config::default()).unwrap();
        store.forget(true).unwrap();
        let (profiles, blobs) = (
            store.config.profiles_dir(),
            store.config.state_dir.join("blobs"),
        );
        fs::create_dir_all(&profiles).unwrap();
        fs::create_dir_all(&blobs).unwrap();
        store.forget(false).unwrap();
        assert!(profiles.exists() && !blobs.exists());
        store.forget(true).unwrap();
        assert!(!profiles.exists());
    }
}
