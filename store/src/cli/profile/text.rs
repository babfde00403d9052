//! Profiles as people read them.

use std::{
    fmt::Write as _,
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use forelayer_profiler::{
    model::{self, PAGE, Profile, Run},
    profiles::Listed,
};

use crate::cli::{human, table::table};

/// One line a file.
pub(super) fn list(listed: &[Listed], dir: &Path) -> String {
    if listed.is_empty() {
        return format!(
            "no profiles yet in {}: start a container while `forelayer watch` runs, or see `forelayer profile record --help`\n",
            dir.display()
        );
    }
    let mut rows = vec![
        [
            "IMAGE", "WORKLOAD", "RUNS", "LAST", "FILES", "TOUCHED", "FILE",
        ]
        .map(str::to_owned),
    ];
    let mut errors = String::new();
    for listed in listed {
        match &listed.summary {
            Ok(summary) => rows.push([
                summary.identity.image.clone(),
                summary.identity.workload.clone(),
                match summary.pinned {
                    0 => summary.runs.to_string(),
                    pinned => format!("{}, {pinned} pinned", summary.runs),
                },
                time(summary.newest_ms),
                summary.files.to_string(),
                human(summary.pages.saturating_mul(PAGE)),
                summary.file.clone(),
            ]),
            Err(error) => {
                let _ = writeln!(errors, "{} cannot be read: {error}", listed.file);
            }
        }
    }
    let mut text = String::new();
    if rows.len() > 1 {
        table(&mut text, &rows);
    }
    text + &errors
}

/// Runs and prediction of one profile; at most `files` of its files, 0: all.
pub(super) fn profile(path: &Path, profile: &Profile, files: usize) -> String {
    let mut text = format!(
        "image     {}\nworkload  {}\nfile      {}\n\n",
        profile.identity.image,
        profile.identity.workload,
        path.display()
    );
    let mut rows = vec![
        [
            "RUN", "STARTED", "LEVEL", "FILES", "TOUCHED", "MISSING", "UNUSED", "LOST",
        ]
        .map(str::to_owned),
    ];
    rows.extend(profile.runs.iter().map(|run| {
        [
            run.id.chars().take(12).collect(),
            time(run.started_ms),
            level(run),
            run.files.len().to_string(),
            human(run.pages().saturating_mul(PAGE)),
            run.missing.len().to_string(),
            human(unused(run).saturating_mul(PAGE)),
            run.lost.to_string(),
        ]
    }));
    table(&mut text, &rows);

    let prediction = model::predict(std::slice::from_ref(profile));
    let pages: u64 = (prediction.files.iter())
        .flat_map(|file| &file.ranges)
        .map(|range| u64::from(range.pages))
        .sum();
    let _ = writeln!(
        text,
        "\npredicted: {} in {} files; {} other paths found, {} missing",
        human(pages.saturating_mul(PAGE)),
        prediction.files.len(),
        prediction.found.len(),
        prediction.missing.len()
    );
    let shown = if files == 0 {
        prediction.files.len()
    } else {
        files.min(prediction.files.len())
    };
    if shown > 0 {
        let mut rows = vec![["FIRST", "PAGES", "OF", "PROBABILITY", "PATH"].map(str::to_owned)];
        rows.extend(prediction.files.iter().take(shown).map(|file| {
            let first = file
                .ranges
                .iter()
                .map(|range| range.at_us)
                .min()
                .unwrap_or_default();
            let pages: u64 = file.ranges.iter().map(|range| u64::from(range.pages)).sum();
            let surest = file
                .ranges
                .iter()
                .map(|range| range.probability)
                .fold(0.0, f64::max);
            [
                format!("{:+.2} ms", first as f64 / 1000.0),
                pages.to_string(),
                file.size.div_ceil(PAGE).to_string(),
                format!("{:.0} %", surest * 100.0),
                format!("/{}", file.path),
            ]
        }));
        table(&mut text, &rows);
    }
    if shown < prediction.files.len() {
        let _ = writeln!(
            text,
            "and {} more (--files 0 shows all)",
            prediction.files.len() - shown
        );
    }
    text.push('\n');
    text
}

/// What saw a run, and what is special about it.
pub(super) fn level(run: &Run) -> String {
    let mut text = format!("{:?}", run.level).to_lowercase();
    for (is, word) in [(run.cut, ", cut"), (run.pinned, ", pinned")] {
        text += if is { word } else { "" };
    }
    text
}

/// Pages that were fetched for a run and not touched by it.
pub(super) fn unused(run: &Run) -> u64 {
    (run.predicted_unused.iter())
        .flat_map(|file| &file.ranges)
        .map(|range| u64::from(range.pages))
        .sum()
}

/// Unix milliseconds as a date; what is after the year 9999 comes from a broken clock.
pub(super) fn time(ms: u64) -> String {
    const END: u64 = 253_402_300_800_000;
    if ms >= END {
        return "?".to_owned();
    }
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(ms)).to_string()
}

#[cfg(test)]
mod tests {
    use forelayer_profiler::{
        Digest,
        model::{FileTouches, Identity, TouchedRange, UnusedFile, UnusedRange},
        profiles::ProfileDir,
        protocol::{Access, Level},
    };

    use super::*;

    fn learned() -> Profile {
        let mut profile = Profile::new(Identity::new("h/app:1", &["/bin/app".to_owned()], &[]));
        profile.add(
            Run {
                id: "ab".repeat(16),
                started_ms: 1_700_000_000_000,
                level: Level::Kprobes,
                lost: 3,
                cut: false,
                pinned: false,
                layers: vec![Digest::of(b"layer")],
                execs: Vec::new(),
                files: vec![FileTouches {
                    path: "usr/bin/app".to_owned(),
                    content: None,
                    layer: None,
                    size: 40_000,
                    ranges: vec![TouchedRange {
                        page: 0,
                        pages: 3,
                        at_us: -1500,
                        access: Access::Map,
                    }],
                }],
                found: Vec::new(),
                missing: vec!["/etc/none".to_owned()],
                predicted_unused: vec![UnusedFile {
                    path: "lib".to_owned(),
                    content: None,
                    ranges: vec![UnusedRange { page: 0, pages: 16 }],
                }],
            },
            8,
        );
        profile
    }

    #[test]
    fn a_profile_is_shown_with_its_runs_and_what_it_predicts() {
        let text = profile(Path::new("/p/x.json"), &learned(), 20);
        for words in [
            "image     h/app:1",
            "file      /p/x.json",
            "abababababab  2023-11-14T22:13:20Z  kprobes  1      12.00 KiB  1        64.00 KiB  3",
            "predicted: 12.00 KiB in 1 files; 0 other paths found, 1 missing",
            "-1.50 ms  3      10  100 %        /usr/bin/app",
        ] {
            assert!(text.contains(words), "{words:?} is not in\n{text}");
        }
    }

    #[test]
    fn the_list_shows_good_and_bad_files_and_the_empty_case() -> anyhow::Result<()> {
        let place = tempfile::tempdir()?;
        let mut dir = ProfileDir::open(place.path())?;
        let text = list(&dir.list(), dir.dir());
        assert!(
            text.contains("no profiles yet") && text.contains("forelayer watch"),
            "{text}"
        );
        let profile = learned();
        dir.add(&profile.identity, profile.runs[0].clone(), 8)?;
        std::fs::write(place.path().join("bad.json"), "{}")?;
        dir.refresh()?;
        let text = list(&dir.list(), dir.dir());
        assert!(
            text.contains("h/app:1") && text.contains("12.00 KiB"),
            "{text}"
        );
        assert!(
            text.contains("bad.json cannot be read: not the JSON of a profile"),
            "{text}"
        );
        Ok(())
    }

    #[test]
    fn a_broken_clock_is_no_reason_to_panic() {
        assert_eq!(time(u64::MAX), "?");
        assert_eq!(time(0), "1970-01-01T00:00:00Z");
    }
}
