//! The store under real engines: Podman 4.3.1 and 5.4.2, Debian's registry, real images (docs/design.md, "Tests").
//!
//! `cargo xtask test engine` runs them; anywhere else each is reported as ignored, with the reason.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod behaviour;
mod contract;
mod days;
mod images;
mod lab;
mod lazy;
mod learn;
mod once;
mod ordinary;
mod trees;
mod witness;
mod wrong;

use std::{
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};

use forelayer_tests::engine::{environment, images::Format, podman::Generation};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::lab::Lab;

/// The formats that each generation asks an additional layer store for.
const LAZY: [(Generation, Format); 5] = [
    (Generation::ByBlob, Format::Zstd4),
    (Generation::ByBlob, Format::Zstd5),
    (Generation::ByBlob, Format::Estargz),
    (Generation::ByToc, Format::Zstd5),
    (Generation::ByToc, Format::Estargz),
];

/// One test: its name and what it does.
type Test = (String, Box<dyn FnOnce(&Lab) -> anyhow::Result<()> + Send>);

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Every test has the machine's page cache, and two cores are few, for itself.
    arguments.test_threads = Some(1);
    let reason = if std::env::var_os("FORELAYER_ENGINE_TESTS").is_none() {
        Some("run by `cargo xtask test engine`")
    } else {
        environment::missing()
    };
    let mut tests: Vec<Test> = Vec::new();
    images::add(&mut tests);
    contract::add(&mut tests);
    lazy::add(&mut tests);
    days::add(&mut tests);
    once::add(&mut tests);
    trees::add(&mut tests);
    behaviour::add(&mut tests);
    ordinary::add(&mut tests);
    wrong::add(&mut tests);
    learn::add(&mut tests);
    witness::add(&mut tests);
    let lab = Arc::new(Mutex::new(None));
    let trials = tests
        .into_iter()
        .map(|(name, test)| {
            let lab = Arc::clone(&lab);
            Trial::ignorable_test(name, move || match reason {
                Some(reason) => Ok(Completion::ignored_with(reason)),
                None => run(&lab, test),
            })
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    // Ends what runs and unmounts what is mounted, before the process does.
    lab.lock().unwrap_or_else(PoisonError::into_inner).take();
    conclusion.exit_code()
}

fn run(
    lab: &Mutex<Option<Lab>>,
    test: impl FnOnce(&Lab) -> anyhow::Result<()>,
) -> Result<Completion, Failed> {
    let mut lab = lab.lock().unwrap_or_else(PoisonError::into_inner);
    let lab = match &mut *lab {
        Some(lab) => lab,
        empty => empty.insert(Lab::new().map_err(|error| format!("{error:#}"))?),
    };
    match test(lab) {
        Ok(()) => Ok(Completion::Completed),
        Err(error) if error.is::<Unavailable>() => Ok(Completion::ignored_with(error)),
        Err(error) => Err(format!("{error:#}").into()),
    }
}

/// This machine's kernel lacks what a test is about.
#[derive(Debug)]
struct Unavailable(String);

impl std::fmt::Display for Unavailable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unavailable {}

/// `<test>::<generation>::<format>` for each pair of [`LAZY`].
fn for_each_lazy(
    tests: &mut Vec<Test>,
    name: &str,
    test: fn(&Lab, Generation, Format) -> anyhow::Result<()>,
) {
    for (generation, format) in LAZY {
        tests.push((
            format!("{name}::{}::{}", generation.name(), format.name()),
            Box::new(move |lab| test(lab, generation, format)),
        ));
    }
}
