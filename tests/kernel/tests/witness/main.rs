//! The witness on a real kernel: on every rung the kernel has, programs with known touches are traced and the trace is
//! compared with them page by page.
//!
//! Runs on the host, and as the only program of a virtual machine (`cargo xtask test vm`): there the kernel's command
//! line says which rungs must work (`levels=kprobes,add`), so that one which silently stopped working is a failure.

#![allow(
    clippy::single_range_in_vec_init,
    reason = "lists of page ranges, some with one range"
)]

mod bench;
mod losses;
mod opens;
mod overlay;
mod touches;

use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result, ensure};
use forelayer_kernel_tests::machine;
use forelayer_kernel_tests::workload::run_if_child;
use forelayer_profiler::protocol::Level;
use forelayer_profiler::witness::Witness;
use libtest_mimic::{Arguments, ColorSetting, Completion, Failed, Trial};
use tokio::runtime::Runtime;

use bench::{Bench, Outcome, available, on};

const LEVELS: [(&str, Level); 3] = [
    ("tracepoints", Level::Tracepoints),
    ("kprobes", Level::Kprobes),
    ("add", Level::Add),
];

fn main() -> ExitCode {
    run_if_child();
    if !machine::is_init() {
        return test();
    }
    if let Err(error) = machine::set_up() {
        println!("error: {error:#}");
    } else {
        test();
    }
    machine::switch_off();
    ExitCode::FAILURE
}

fn test() -> ExitCode {
    let mut arguments = if machine::is_init() {
        Arguments::from_iter(["witness".to_owned()])
    } else {
        Arguments::from_args()
    };
    if machine::is_init() {
        arguments.color = Some(ColorSetting::Never);
    }
    // One witness a rung serves all its tests, one after the other.
    arguments.test_threads = Some(1);
    let bench: Arc<Mutex<Option<Bench>>> = Arc::default();
    let mut trials = vec![
        Trial::ignorable_test("zero_message_open", || {
            privileged(|| overlay::zero_message_open().map(|()| Outcome::Passed))
        }),
        Trial::ignorable_test("levels", || privileged(levels)),
    ];
    for (name, level) in LEVELS {
        let mut add = |what: &str, run: fn(&mut Bench) -> Result<Outcome>| {
            let bench = Arc::clone(&bench);
            trials.push(Trial::ignorable_test(
                format!("{name}::{what}"),
                move || on(&bench, level, run),
            ));
        };
        add("reads", touches::reads);
        add("maps", touches::maps);
        add("execs", touches::execs);
        add("through_an_overlay", touches::through_an_overlay);
        add("two_containers_two_whole_traces", touches::two_containers);
        add("a_page_is_reported_once_a_window", touches::once_a_window);
        add("windows_close_and_open_again", touches::windows);
        add("other_devices_are_not_seen", touches::other_devices);
        add("opens_of_those_watched", opens::opens);
        add(
            "a_container_s_opens_without_asking",
            opens::opens_without_asking,
        );
        add("a_full_bitmap_is_counted_and_said", losses::full_bitmap);
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// What is here is what should be, and the best of it is what a witness without a choice takes.
fn levels() -> Result<Outcome> {
    let found: Vec<_> = LEVELS
        .iter()
        .filter(|(_, level)| available(*level).is_ok())
        .map(|(name, _)| *name)
        .collect();
    println!("levels here: {}", found.join(", "));
    if found.is_empty() && !machine::is_init() {
        return Ok(Outcome::Pointless("no level works here"));
    }
    if let Some(wanted) = machine::argument("levels").filter(|_| machine::is_init()) {
        let wanted: Vec<_> = wanted.split(',').collect();
        ensure!(
            found == wanted,
            "the kernel should have {wanted:?}, found {found:?}"
        );
    }
    // The best of them is what a witness without a choice takes; and one that was told to see nothing sees nothing.
    let runtime = Runtime::new()?;
    let _inside = runtime.enter();
    let best = LEVELS
        .iter()
        .find(|(_, level)| available(*level).is_ok())
        .context("no level works here")?;
    ensure!(Witness::load(None)?.level() == best.1);
    let mut off = Witness::load(Some(Level::Off))?;
    off.watch_devices(&[1])?;
    off.attach()?;
    off.reset()?;
    off.detach();
    ensure!(off.level() == Level::Off && off.lost() == 0);
    Ok(Outcome::Passed)
}

#[expect(clippy::needless_pass_by_value, reason = "a function for `map_err`")]
fn failed(error: anyhow::Error) -> Failed {
    format!("{error:#}").into()
}

/// Runs a test where this process may mount.
fn privileged(run: impl FnOnce() -> Result<Outcome>) -> Result<Completion, Failed> {
    if let Some(reason) = unprivileged() {
        return Ok(Completion::ignored_with(reason));
    }
    run().map_err(failed).map(Completion::from)
}

/// Why this process cannot mount what the tests need, if so. A virtual machine has no excuse.
fn unprivileged() -> Option<&'static str> {
    if machine::is_init() {
        None
    } else if !rustix::process::geteuid().is_root() {
        Some("not root")
    } else if !std::path::Path::new("/dev/fuse").exists() {
        Some("no /dev/fuse")
    } else {
        None
    }
}
