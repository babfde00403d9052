//! Starts with a profile that is all wrong: of the workload that is started, recorded of a container that read every file
//! of the image in an order that no program has. It is the most that a hostile profile can ask for.

use std::{ffi::OsString, fs};

use anyhow::{Context as _, Result};
use forelayer_tests::engine::images::Format;
use serde_json::Value;

use super::{
    runner::Bench,
    start::{Mode, Start},
};

/// What the container does whose record misleads.
const READ_ALL: &str =
    "find / -xdev -type f | sort -r | xargs -d '\\n' cat > /dev/null 2>&1; echo done";
/// Its touches come this many times sooner, so that all of it seems to be needed at once.
const SOONER: i64 = 100;

/// A profile's file.
pub(super) struct WrongProfile {
    name: OsString,
    text: Vec<u8>,
}

impl Bench<'_> {
    /// A cold start with a wrong profile and nothing else.
    pub(super) fn misled(&mut self, format: Format) -> Result<Start> {
        if !self.wrong.iter().any(|(of, _)| *of == format) {
            let wrong = self.mislead(format)?;
            self.wrong.push((format, wrong));
        }
        self.store.stop()?;
        let profiles = self.profiles();
        fs::remove_dir_all(&profiles)?;
        fs::create_dir(&profiles)?;
        let mut wrong = self.wrong.iter();
        let (_, wrong) = wrong
            .find(|(of, _)| *of == format)
            .context("it was just made")?;
        fs::write(profiles.join(&wrong.name), &wrong.text)?;
        self.lazy(Mode::Misled, format)
    }

    /// Makes the profile; that of an unlearned start must be there.
    fn mislead(&mut self, format: Format) -> Result<WrongProfile> {
        let (name, right) = self.profile()?;
        self.lab.shape(false);
        let podman = self.cold(true)?;
        let before = self.traces()?;
        let reference = self.reference(format);
        podman.run(&["pull", &reference])?;
        podman.run(&[
            "run",
            "--rm",
            "--entrypoint",
            "sh",
            &reference,
            "-c",
            READ_ALL,
        ])?;
        self.learned(before)?;
        self.lab.shape(true);
        let (_, mut wrong) = self.profile()?;
        wrong["identity"] = right["identity"].clone();
        let runs = wrong["runs"].as_array_mut().context("no runs")?;
        let files = (runs.iter_mut()).filter_map(|run| run["files"].as_array_mut());
        let ranges = files
            .flatten()
            .filter_map(|file| file["ranges"].as_array_mut());
        for range in ranges.flatten() {
            let at = range["at_us"].as_i64().context("a range without a time")?;
            range["at_us"] = (at / SOONER).into();
        }
        let text = serde_json::to_vec(&wrong)?;
        Ok(WrongProfile { name, text })
    }

    /// The only profile that the store has.
    fn profile(&self) -> Result<(OsString, Value)> {
        for entry in fs::read_dir(self.profiles())? {
            let entry = entry?;
            let name = entry.file_name();
            let text = name.to_string_lossy();
            if text.ends_with(".json") && !text.starts_with('.') {
                let profile = serde_json::from_slice(&fs::read(entry.path())?)?;
                return Ok((name, profile));
            }
        }
        anyhow::bail!("there is no profile in {}", self.profiles().display());
    }
}
