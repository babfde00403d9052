//! `forelayer bench` as a user calls it, as far as that needs no engine: what it refuses before it makes anything.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{fs, process::Command};

/// Exit status and standard error of a bench in an empty directory, which must be empty afterwards too.
fn bench(arguments: &[&str]) -> (i32, String) {
    let dir = tempfile::tempdir().unwrap();
    let config = tempfile::NamedTempFile::new().unwrap();
    fs::write(&config, "[witness]\nlevel = \"off\"\n").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_forelayer"))
        .arg("--config")
        .arg(config.path())
        .arg("bench")
        .arg("--dir")
        .arg(dir.path())
        .args(arguments)
        .env_remove("FORELAYER_LOG")
        .output()
        .unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    let error = String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap(), error)
}

#[test]
fn what_cannot_be_measured_is_refused_before_anything_is_made() {
    let (code, error) = bench(&["Not An Image"]);
    assert_eq!(code, 1);
    assert!(error.contains("\"Not An Image\""), "{error}");

    // As whoever runs the tests: without root that is missing first.
    let (code, error) = bench(&["h/app:1", "--", "app", "--serve"]);
    assert_eq!(code, 1);
    assert!(
        error.contains("needs root") || error.contains("witness.level is \"off\""),
        "{error}"
    );
}

#[test]
fn rounds_are_bounded() {
    for rounds in ["0", "101", "x"] {
        let (code, error) = bench(&["--rounds", rounds, "h/app:1"]);
        assert_eq!(code, 2);
        assert!(error.contains("--rounds"), "{error}");
    }
}

#[test]
fn the_help_says_what_happens_and_how_it_ends() {
    for (command, words) in [
        ("bench", "deletes it at the end"),
        ("bench", "130 after SIGINT"),
        ("watch", "77 when the kernel refuses"),
    ] {
        let help = Command::new(env!("CARGO_BIN_EXE_forelayer"))
            .args([command, "--help"])
            .output()
            .unwrap();
        let help = String::from_utf8(help.stdout).unwrap();
        // Lines are broken to the terminal's width.
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(help.contains(words), "{words:?} is not in\n{help}");
    }
}
