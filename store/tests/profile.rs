//! `forelayer profile` as a user calls it: the binary, a configuration file, a directory of profiles.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    fs,
    io::{Seek as _, Write as _},
    path::Path,
    process::Command,
};

use forelayer_profiler::{
    Digest,
    model::{FileTouches, Identity, Run, TouchedRange},
    profiles::ProfileDir,
    protocol::{Access, Level},
};

struct Home {
    dir: tempfile::TempDir,
}

/// Exit status, standard output, standard error.
type Said = (i32, String, String);

impl Home {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = format!("state_dir = {:?}\n", dir.path());
        fs::write(dir.path().join("config.toml"), config).unwrap();
        Self { dir }
    }
    fn profiles(&self) -> std::path::PathBuf {
        self.dir.path().join("profiles")
    }
    fn learn(&self, image: &str, command: &str) -> String {
        self.learn_pages(image, command, 4)
    }
    /// A start that touched so many pages of its program.
    fn learn_pages(&self, image: &str, command: &str, pages: u32) -> String {
        let identity = Identity::new(image, &[command.to_owned()], &[]);
        let run = Run {
            id: "0a".repeat(16),
            started_ms: 1_700_000_000_000,
            level: Level::Tracepoints,
            lost: 0,
            cut: false,
            pinned: false,
            layers: vec![Digest::of(b"layer")],
            execs: Vec::new(),
            files: vec![FileTouches {
                path: "usr/bin/app".to_owned(),
                content: Some(Digest::of(b"app")),
                layer: Some(Digest::of(b"layer")),
                size: 65_536,
                ranges: vec![TouchedRange {
                    page: 2,
                    pages,
                    at_us: 1500,
                    access: Access::Map,
                }],
            }],
            found: Vec::new(),
            missing: Vec::new(),
            predicted_unused: Vec::new(),
        };
        ProfileDir::open(&self.profiles())
            .unwrap()
            .add(&identity, run, 8)
            .unwrap();
        identity.file_name()
    }
    fn profile(&self, arguments: &[&str]) -> Said {
        self.profile_with(arguments, b"")
    }
    fn profile_with(&self, arguments: &[&str], input: &[u8]) -> Said {
        let mut stdin = tempfile::tempfile().unwrap();
        stdin.write_all(input).unwrap();
        stdin.rewind().unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_forelayer"))
            .arg("--config")
            .arg(self.dir.path().join("config.toml"))
            .arg("profile")
            .args(arguments)
            .env_remove("FORELAYER_LOG")
            .stdin(stdin)
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (
            output.status.code().unwrap(),
            text(output.stdout),
            text(output.stderr),
        )
    }
}

fn exists(home: &Home, file: &str) -> bool {
    Path::new(&home.profiles()).join(file).exists()
}

#[test]
fn without_profiles_the_list_says_how_to_get_one() {
    let home = Home::new();
    let (code, out, _) = home.profile(&["list"]);
    assert_eq!(code, 0);
    assert!(
        out.contains("no profiles yet") && out.contains("forelayer watch"),
        "{out}"
    );
    assert_eq!(home.profile(&["list", "--json"]).1.trim(), "[]");
    assert!(!home.profiles().exists(), "looking makes nothing");
}

#[test]
fn profiles_are_listed_shown_and_deleted() {
    let home = Home::new();
    let (app, shell) = (
        home.learn("h/app:1", "/usr/bin/app"),
        home.learn("h/app:1", "sh"),
    );
    let other = home.learn("h/other:1", "other");

    let (_, out, _) = home.profile(&["list"]);
    assert_eq!(out.lines().count(), 4, "{out}");
    assert!(out.contains(&app) && out.contains("16.00 KiB"), "{out}");
    let listed: serde_json::Value =
        serde_json::from_str(&home.profile(&["list", "--json"]).1).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 3);
    assert_eq!(listed[2]["identity"]["image"], "h/other:1");

    let (code, out, _) = home.profile(&["show", &other]);
    assert_eq!(code, 0);
    assert!(
        out.contains("+1.50 ms") && out.contains("/usr/bin/app"),
        "{out}"
    );
    let shown: serde_json::Value =
        serde_json::from_str(&home.profile(&["show", "--json", "h/other:1"]).1).unwrap();
    assert_eq!(shown["runs"][0]["files"][0]["ranges"][0]["page"], 2);
    let both: serde_json::Value =
        serde_json::from_str(&home.profile(&["show", "--json", "h/app:1"]).1).unwrap();
    assert_eq!(both.as_array().unwrap().len(), 2);

    let (code, _, error) = home.profile(&["delete", &other, "h/none:1"]);
    assert_eq!(code, 1);
    assert!(
        error.contains("h/none:1") && error.contains("forelayer profile list"),
        "{error}"
    );
    assert!(
        exists(&home, &other),
        "nothing is deleted when a name is wrong"
    );
    let early = home.profiles().join("early");
    let of = |image: &str| early.join(format!("{}.json", Digest::of(image.as_bytes()).hex()));
    fs::create_dir(&early).unwrap();
    fs::write(of("h/app:1"), "{}").unwrap();
    assert_eq!(home.profile(&["delete", &shell]).0, 0);
    assert!(of("h/app:1").exists(), "another of its profiles is left");
    let (code, out, _) = home.profile(&["delete", "h/app:1"]);
    assert_eq!((code, out.lines().count()), (0, 1));
    assert!(!exists(&home, &app) && !exists(&home, &shell) && exists(&home, &other));
    assert!(
        !of("h/app:1").exists(),
        "it goes with the image's last profile"
    );
    assert_eq!(
        home.profile(&["delete", "--all", "--json"]).1.trim(),
        format!("{{\"deleted\":[{other:?}]}}")
    );
    assert!(home.profile(&["delete", "--all"]).1.contains("no profiles"));
}

#[test]
fn a_start_is_drawn_as_a_page() {
    let home = Home::new();
    let app = home.learn("h/app:1", "app");
    let (code, page, error) = home.profile(&["show", &app, "--html"]);
    assert_eq!((code, error.as_str()), (0, ""));
    assert!(page.starts_with("<!doctype html>"), "{page}");
    for words in ["h/app:1 (app-", "/usr/bin/app: 16.00 KiB", "2023-11-14T22"] {
        assert!(page.contains(words), "{words:?} is not in\n{page}");
    }
    let file = home.dir.path().join("start.html");
    let path = file.to_str().unwrap();
    let (code, out, _) = home.profile(&["show", &app, "--html", "--run", "0a", "-o", path]);
    assert_eq!((code, out.as_str()), (0, ""));
    assert_eq!(fs::read_to_string(&file).unwrap(), page);

    // All workloads of an image are on one page.
    home.learn("h/app:1", "sh");
    let (_, both, _) = home.profile(&["show", "h/app:1", "--html"]);
    assert_eq!(both.matches("<svg").count(), 2);
    let (code, _, error) = home.profile(&["show", &app, "--html", "--run", "ff"]);
    assert_eq!(code, 1);
    assert!(error.contains("no run begins with \"ff\""), "{error}");
    assert_eq!(home.profile(&["show", &app, "-o", path]).0, 2);
}

#[test]
fn a_pin_is_shown_and_taken_back() {
    let home = Home::new();
    let (app, shell) = (home.learn("h/app:1", "app"), home.learn("h/app:1", "sh"));
    let (code, _, error) = home.profile(&["pin", "h/app:1", "h/none:1"]);
    assert_eq!(code, 1);
    assert!(error.contains("h/none:1"), "{error}");
    assert!(!home.profile(&["list"]).1.contains("pinned"));

    let (code, out, _) = home.profile(&["pin", "h/app:1"]);
    assert_eq!(code, 0);
    for file in [&app, &shell] {
        assert!(out.contains(&format!("pinned {file} (1 runs)")), "{out}");
    }
    assert!(home.profile(&["list"]).1.contains("1, 1 pinned"));
    assert!(
        home.profile(&["show", &app])
            .1
            .contains("tracepoints, pinned")
    );
    let listed: serde_json::Value =
        serde_json::from_str(&home.profile(&["list", "--json"]).1).unwrap();
    assert_eq!(listed[0]["pinned"], 1);

    let (_, out, _) = home.profile(&["unpin", &app, "--json"]);
    assert_eq!(
        out.trim(),
        format!("{{\"unpinned\":[{{\"file\":{app:?},\"runs\":1}}]}}")
    );
    assert!(!home.profile(&["show", &app]).1.contains("pinned"));
}

#[test]
fn profiles_go_from_one_machine_to_another() {
    let (here, there) = (Home::new(), Home::new());
    let (app, shell) = (here.learn("h/app:1", "app"), here.learn("h/app:1", "sh"));
    let file = here.dir.path().join("bundle.json");
    let path = file.to_str().unwrap();
    let (code, out, _) = here.profile(&["export", "h/app:1", "-o", path]);
    assert_eq!((code, out.as_str()), (0, ""));
    let (_, piped, _) = here.profile(&["export", &app, &shell, &app]);
    assert_eq!(piped, fs::read_to_string(&file).unwrap());
    assert_eq!(here.profile(&["export", "h/none:1"]).0, 1);

    let (code, out, error) = there.profile(&["import", path]);
    assert_eq!(code, 0, "{error}");
    assert_eq!(out.lines().count(), 2, "{out}");
    assert!(out.contains("1 runs taken, 0 known, 0 older"), "{out}");
    assert!(exists(&there, &app) && exists(&there, &shell));
    let (_, again, _) = there.profile_with(&["import", "-", "--json"], piped.as_bytes());
    let again: serde_json::Value = serde_json::from_str(&again).unwrap();
    let first = &again["profiles"][0];
    assert_eq!(first["image"], "h/app:1");
    assert_eq!((&first["taken"], &first["known"]), (&0.into(), &1.into()));
    assert_eq!(
        there.profile(&["show", "--json", &app]).1,
        here.profile(&["show", "--json", &app]).1
    );
}

#[test]
fn a_bundle_that_is_not_valid_throughout_changes_nothing() {
    let (here, there) = (Home::new(), Home::new());
    here.learn("h/app:1", "app");
    here.learn("h/app:1", "sh");
    let good = here.profile(&["export", "h/app:1"]).1;
    let at = good.rfind("\"pages\": 4").unwrap();
    let bad = format!("{}\"pages\": 0{}", &good[..at], &good[at + 10..]);
    for (text, words) in [
        (bad.as_str(), "profile 2 of the bundle: run"),
        (&good[..99], "neither a bundle of profiles nor a profile"),
        ("", "standard input"),
    ] {
        let (code, out, error) = there.profile_with(&["import", "-"], text.as_bytes());
        assert_eq!((code, out.as_str()), (1, ""));
        assert!(error.contains(words), "{error:?} should contain {words:?}");
    }
    assert!(!there.profiles().exists());
    let (code, _, error) = there.profile(&["import", "/no/such/file"]);
    assert_eq!(code, 1);
    assert!(error.contains("/no/such/file"), "{error}");
}

#[test]
fn two_profiles_are_compared() {
    let (here, there) = (Home::new(), Home::new());
    let app = here.learn_pages("h/app:1", "app", 4);
    here.learn_pages("h/app:2", "app", 6);
    let (code, out, _) = here.profile(&["diff", "h/app:1", "h/app:2"]);
    assert_eq!(code, 0);
    for words in [
        "A  h/app:1 (app-",
        "B  h/app:2 (app-",
        "only A    0 files, 0 B",
        "only B    0 files, 8.00 KiB",
        "common    1 files, 16.00 KiB; 0 moved, 0 with another content, 0 in another order",
        "both  +1.50 ms  0 B     8.00 KiB  /usr/bin/app",
    ] {
        assert!(out.contains(words), "{words:?} is not in\n{out}");
    }
    let (_, out, _) = here.profile(&["diff", "h/app:2", &app, "--json"]);
    let diff: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        diff["pages"],
        serde_json::json!({"only_a": 2, "only_b": 0, "common": 4})
    );
    assert_eq!(diff["files"]["common"][0]["path"], "usr/bin/app");

    // With a file from elsewhere, where this machine has none.
    let file = here.dir.path().join("bundle.json");
    fs::write(&file, here.profile(&["export", "h/app:1"]).1).unwrap();
    let profile = here.profiles().join(&app);
    let paths = [&file, &profile].map(|path| path.to_str().unwrap());
    let (code, out, _) = there.profile(&["diff", paths[0], paths[1]]);
    assert_eq!(code, 0);
    assert!(
        out.contains("only A    0 files, 0 B") && out.contains("only B    0 files, 0 B"),
        "{out}"
    );
    assert_eq!(there.profile(&["diff", paths[0], "h/app:1"]).0, 1);
}

#[test]
fn a_malformed_profile_is_named_with_its_reason_and_harms_no_other() {
    let home = Home::new();
    let good = home.learn("h/app:1", "app");
    for (name, text) in [
        ("cut.json", "{\"schema\": 1, "),
        ("new.json", "{\"schema\": 2}"),
        ("empty.json", ""),
    ] {
        fs::write(home.profiles().join(name), text).unwrap();
    }
    let (code, out, _) = home.profile(&["list"]);
    assert_eq!(code, 0);
    assert!(
        out.contains(&good) && out.contains("new.json cannot be read: schema 2"),
        "{out}"
    );
    let (code, _, error) = home.profile(&["show", "cut"]);
    assert_eq!(code, 1);
    assert!(
        error.contains("cut.json") && error.contains("line 1"),
        "{error}"
    );
    assert_eq!(home.profile(&["delete", "cut"]).0, 0);
    assert!(!exists(&home, "cut.json") && exists(&home, &good));
}
