//! What the binary answers to a configuration that it cannot use.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{fs, process::Command};

#[test]
fn a_configuration_that_cannot_be_used_has_a_status_of_its_own() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("config.toml");
    let status = |command: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_forelayer"))
            .arg("--config")
            .arg(&file)
            .args(command)
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap(), said)
    };
    let services: [&[&str]; 3] = [&["mount"], &["serve", "--no-holder"], &["watch"]];
    // Missing, though named; no TOML; an unknown key.
    for text in [None, Some("state_dir ="), Some("no_such_key = 1")] {
        if let Some(text) = text {
            fs::write(&file, text).unwrap();
        }
        for command in services {
            let (code, said) = status(command);
            assert_eq!(code, 78, "{command:?} {said}");
            assert!(said.contains("config.toml"), "{said}");
        }
    }
    // Any other error is as before.
    fs::write(&file, format!("state_dir = {:?}\n", place.path())).unwrap();
    assert_eq!(status(&["profile", "show", "none"]).0, 1);
}
