//! `forelayer profile show --html`: recorded starts as one page that needs nothing but itself.
//!
//! A profile may come from anybody (`forelayer profile import`): every text of it passes `escape`, whatever is drawn of
//! it is bounded, and the page forbids itself scripts and the network.

mod bars;
mod chart;
mod escape;
mod page;
mod rows;
mod scale;

use std::{io::Write as _, path::Path};

use anyhow::{Context as _, bail};
use forelayer_profiler::model::{Profile, Run};

/// A profile and the start of it that is drawn; none where none was recorded.
struct Drawn<'a> {
    profile: &'a Profile,
    run: Option<&'a Run>,
}

/// Writes the page to `output`, or to standard output. `run`: the beginning of a run's id instead of the newest start
/// of each profile.
pub(super) fn write(
    profiles: &[Profile],
    run: Option<&str>,
    output: Option<&Path>,
) -> anyhow::Result<()> {
    let page = page::html(&choose(profiles, run)?);
    match output {
        Some(path) => std::fs::write(path, page)
            .with_context(|| format!("cannot write {}", path.display()))?,
        None => std::io::stdout()
            .write_all(page.as_bytes())
            .context("cannot write to standard output")?,
    }
    Ok(())
}

fn choose<'a>(profiles: &'a [Profile], run: Option<&str>) -> anyhow::Result<Vec<Drawn<'a>>> {
    let Some(start) = run else {
        let newest = |profile: &'a Profile| Drawn {
            profile,
            run: profile.runs.first(),
        };
        return Ok(profiles.iter().map(newest).collect());
    };
    let found: Vec<Drawn<'_>> = profiles
        .iter()
        .flat_map(|profile| profile.runs.iter().map(move |run| (profile, run)))
        .filter(|(_, run)| run.id.starts_with(start))
        .map(|(profile, run)| Drawn {
            profile,
            run: Some(run),
        })
        .collect();
    match found.len() {
        0 => bail!("no run begins with {start:?}: `forelayer profile show` lists the runs"),
        1 => Ok(found),
        several => bail!("{several} runs begin with {start:?}: give more digits of one"),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::{rows::tests::run, *};
    use forelayer_profiler::model::Identity;

    #[test]
    fn the_newest_start_or_the_one_that_is_named_is_drawn() {
        let mut profile = Profile::new(Identity::new("h/app:1", &[], &[]));
        profile.runs = vec![run("ab01", Vec::new()), run("ab02", Vec::new())];
        let profiles = [profile];
        let of = |start| choose(&profiles, start).map(|drawn| drawn[0].run.unwrap().id.clone());
        assert_eq!(of(None).unwrap(), "ab01");
        assert_eq!(of(Some("ab02")).unwrap(), "ab02");
        let error = |start| of(Some(start)).unwrap_err().to_string();
        assert!(error("ab").starts_with("2 runs begin"), "{}", error("ab"));
        assert!(error("c").starts_with("no run begins"), "{}", error("c"));
    }
}
