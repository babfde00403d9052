#![expect(clippy::unwrap_used, reason = "tests")]

use std::{fs, os::unix::fs::PermissionsExt as _};

use super::*;
use crate::{
    model::{FileTouches, Identity, Run, TouchedRange},
    protocol::{Access, Level},
};

fn digest(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

/// A run over `layers`, with one touched page in each.
fn run(number: u64, layers: &[&str]) -> Run {
    Run {
        id: format!("{number:032x}"),
        started_ms: number,
        level: Level::Tracepoints,
        lost: 0,
        cut: false,
        pinned: false,
        layers: layers.iter().map(|layer| digest(layer)).collect(),
        execs: Vec::new(),
        files: layers
            .iter()
            .map(|layer| FileTouches {
                path: format!("in-{layer}"),
                content: None,
                layer: Some(digest(layer)),
                size: 4096,
                ranges: vec![TouchedRange {
                    page: 0,
                    pages: 1,
                    at_us: 0,
                    access: Access::Read,
                }],
            })
            .collect(),
        found: Vec::new(),
        missing: Vec::new(),
        predicted_unused: Vec::new(),
    }
}

fn identity(image: &str, command: &str) -> Identity {
    Identity::new(image, &[command.to_owned()], &[])
}

fn images(chosen: Chosen) -> (Kin, Vec<String>) {
    let images = chosen.profiles.into_iter().map(|(_, who)| who.image);
    (chosen.kin, images.collect())
}

/// The profiles chosen for an image that has no content in common with any other.
fn found(dir: &mut ProfileDir, reference: &str) -> Vec<Profile> {
    let chosen = dir.choose(Some(reference), &[], &|_| false).unwrap();
    dir.load_all(chosen.profiles.iter().map(|(file, _)| file.as_str()))
}

#[test]
fn runs_are_merged_into_their_profile_and_found_again() {
    let place = tempfile::tempdir().unwrap();
    let mut dir = ProfileDir::open(&place.path().join("profiles")).unwrap();
    let python = identity("h/python:3", "python3");
    let path = dir.add(&python, run(1, &["a"]), 2).unwrap();
    dir.add(&python, run(2, &["a"]), 2).unwrap();
    dir.add(&python, run(2, &["a"]), 2).unwrap();
    dir.add(&python, run(3, &["a"]), 2).unwrap();
    let profile = dir
        .load(path.file_name().unwrap().to_str().unwrap())
        .unwrap();
    assert_eq!(
        profile
            .runs
            .iter()
            .map(|run| run.started_ms)
            .collect::<Vec<_>>(),
        [3, 2]
    );

    // By another process, later.
    let mut again = ProfileDir::open(dir.dir()).unwrap();
    let generation = again.generation();
    again.refresh().unwrap();
    assert_eq!(again.generation(), generation);
    dir.add(&python, run(4, &["a"]), 2).unwrap();
    again.refresh().unwrap();
    assert_ne!(again.generation(), generation);
    let profile = again.load(&python.file_name()).unwrap();
    assert_eq!(found(&mut again, "h/python:3"), [profile]);
    assert_eq!(again.list().len(), 1);
    assert_eq!(again.list()[0].summary.as_ref().unwrap().pages, 1);
}

#[test]
fn the_best_fitting_profiles_are_found() {
    let place = tempfile::tempdir().unwrap();
    let mut dir = ProfileDir::open(place.path()).unwrap();
    dir.add(
        &identity("h/python:3", "python3"),
        run(1, &["python", "debian"]),
        8,
    )
    .unwrap();
    dir.add(
        &identity("h/python:3", "sh"),
        run(2, &["python", "debian"]),
        8,
    )
    .unwrap();
    dir.add(
        &identity("h/other:1", "other"),
        run(3, &["other", "debian"]),
        8,
    )
    .unwrap();
    dir.add(&identity("h/none:1", "none"), run(4, &["none"]), 8)
        .unwrap();
    let mut find = |reference: Option<&str>, layers: &[&str]| {
        let layers: Vec<Digest> = layers.iter().map(|layer| digest(layer)).collect();
        let asked = |_: &Digest| panic!("the file of a layer in common has no content digest");
        images(dir.choose(reference, &layers, &asked).unwrap())
    };
    let own = |images: &[&str]| {
        let images = images.iter().map(|image| (*image).to_owned());
        (Kin::Own, images.collect::<Vec<_>>())
    };
    // The same layers under another name, in another order; every workload.
    assert_eq!(
        find(Some("mirror/x:9"), &["debian", "python"]),
        own(&["h/python:3", "h/python:3"])
    );
    // The same name, rebuilt.
    assert_eq!(find(Some("h/other:1"), &["new"]), own(&["h/other:1"]));
    // Never seen, but sharing a layer: of two that share as much, the newest.
    assert_eq!(
        find(Some("h/sister:1"), &["debian", "sister"]),
        (Kin::Sister, vec!["h/other:1".to_owned()])
    );
    // Of two that share as much, the other tag of the same repository.
    assert_eq!(
        find(Some("h/python:4"), &["debian", "sister"]).1,
        ["h/python:3", "h/python:3"]
    );
    // The same repository alone says nothing.
    assert!(find(Some("h/none:2"), &["new"]).1.is_empty());
    assert!(find(Some("h/stranger:1"), &["stranger"]).1.is_empty());
    assert!(find(None, &[]).1.is_empty());
}

#[test]
fn an_image_that_shares_no_layer_is_known_by_its_contents() {
    let place = tempfile::tempdir().unwrap();
    let mut dir = ProfileDir::open(place.path()).unwrap();
    for (number, name, contents) in [
        (1, "h/app:1", &["libc", "app-1"][..]),
        (2, "h/other:1", &["libc", "python", "other"]),
        (3, "h/strange:1", &["strange"]),
    ] {
        let mut run = run(number, contents);
        for (file, content) in run.files.iter_mut().zip(contents) {
            file.content = Some(digest(content));
            file.layer = Some(digest(&format!("{name} {content}")));
        }
        dir.add(&identity(name, "a"), run, 8).unwrap();
    }
    let mut sister = |reference: &str, contents: &[&str]| {
        let contents: Vec<Digest> = contents.iter().map(|content| digest(content)).collect();
        let holds = |content: &Digest| contents.contains(content);
        images(
            dir.choose(Some(reference), &[digest("new")], &holds)
                .unwrap(),
        )
    };
    let is = |image: &str| (Kin::Sister, vec![image.to_owned()]);
    assert_eq!(sister("h/new:1", &["libc", "python"]), is("h/other:1"));
    // What the rebuilt image shares with its older tag counts twice.
    assert_eq!(sister("h/app:2", &["libc", "app-2"]), is("h/app:1"));
    assert!(sister("h/new:1", &["app-2"]).1.is_empty());
}

#[test]
fn a_malformed_file_is_named_kept_aside_and_harms_nothing_else() {
    let place = tempfile::tempdir().unwrap();
    let mut dir = ProfileDir::open(place.path()).unwrap();
    let (good, bad) = (identity("good", "a"), identity("bad", "a"));
    dir.add(&good, run(1, &["a"]), 8).unwrap();
    fs::write(place.path().join(bad.file_name()), "{\"schema\": 7}").unwrap();
    // Somebody copied a profile over another's name.
    let wrong = identity("wrong", "a");
    fs::copy(
        place.path().join(good.file_name()),
        place.path().join(wrong.file_name()),
    )
    .unwrap();

    dir.refresh().unwrap();
    let listed = dir.list();
    assert_eq!(listed.len(), 3);
    let error = listed
        .iter()
        .find(|l| l.file == bad.file_name())
        .unwrap()
        .summary
        .clone()
        .unwrap_err();
    assert_eq!(error, "schema 7; this program reads schema 1");
    assert!(
        dir.load(&bad.file_name())
            .unwrap_err()
            .to_string()
            .contains(&bad.file_name())
    );
    assert!(found(&mut dir, "bad").is_empty());
    assert!(!found(&mut dir, "good").is_empty());

    for (who, keeps) in [(&bad, "{\"schema\": 7}"), (&wrong, "\"good\"")] {
        dir.add(who, run(2, &["a"]), 8).unwrap();
        assert_eq!(dir.load(&who.file_name()).unwrap().identity, *who);
        let aside =
            fs::read_to_string(place.path().join(format!("{}.bad", who.file_name()))).unwrap();
        assert!(aside.contains(keeps), "{aside}");
    }
    // And a second time: the newest is kept.
    fs::write(place.path().join(bad.file_name()), "again").unwrap();
    dir.add(&bad, run(3, &["a"]), 8).unwrap();
    assert_eq!(
        fs::read_to_string(place.path().join(format!("{}.bad", bad.file_name()))).unwrap(),
        "again"
    );
    assert_eq!(dir.list().len(), 3);
    let aside = fs::read_dir(place.path())
        .unwrap()
        .filter(|entry| {
            let name = entry.as_ref().unwrap().file_name();
            name.to_string_lossy()
                .starts_with(&format!("{}.bad", bad.file_name()))
        })
        .count();
    assert_eq!(aside, 1);
}

#[test]
fn a_profile_never_grows_beyond_what_is_read() {
    let place = tempfile::tempdir().unwrap();
    let mut dir = ProfileDir::open(place.path()).unwrap();
    let app = identity("app", "a");
    let layers: Vec<String> = (0..100).map(|number| format!("l{number}")).collect();
    let layers: Vec<&str> = layers.iter().map(String::as_str).collect();
    let path = dir.add(&app, run(1, &layers[..20]), 8).unwrap();
    dir.max_bytes = 3 * fs::metadata(&path).unwrap().len();
    for number in 2..=9 {
        dir.add(&app, run(number, &layers[..20]), 8).unwrap();
        assert!(fs::metadata(&path).unwrap().len() <= dir.max_bytes);
    }
    let newest = |dir: &ProfileDir| -> Vec<u64> {
        let profile = dir.load(&app.file_name()).unwrap();
        profile.runs.iter().map(|run| run.started_ms).collect()
    };
    assert!(newest(&dir).len() >= 2);
    assert_eq!(newest(&dir)[..2], [9, 8]);
    // One start that is too large alone changes nothing.
    let before = newest(&dir);
    let error = dir.add(&app, run(10, &layers), 8).unwrap_err();
    assert!(matches!(error, ProfileError::TooLarge { .. }), "{error}");
    assert_eq!(newest(&dir), before);
    fs::write(&path, "no profile").unwrap();
    assert!(dir.add(&app, run(10, &layers), 8).is_err());
    assert_eq!(fs::read_to_string(&path).unwrap(), "no profile");
}

#[test]
fn two_writers_lose_no_run() {
    let place = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for writer in 0..4_u64 {
            let place = place.path();
            scope.spawn(move || {
                let mut dir = ProfileDir::open(place).unwrap();
                for number in 0..5 {
                    dir.add(
                        &identity("shared", "a"),
                        run(writer * 100 + number, &["a"]),
                        64,
                    )
                    .unwrap();
                }
            });
        }
    });
    let mut dir = ProfileDir::open(place.path()).unwrap();
    assert_eq!(found(&mut dir, "shared")[0].runs.len(), 20);
    let left: Vec<_> = fs::read_dir(place.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(
        left.len(),
        2,
        "the profile and the lock, nothing else: {left:?}"
    );
}

#[test]
fn workloads_of_an_image_are_bounded_and_the_newest_stay() {
    let place = tempfile::tempdir().unwrap();
    let mut dir = ProfileDir::open(place.path()).unwrap();
    dir.add(&identity("other", "a"), run(0, &["a"]), 8).unwrap();
    for number in 1..=MAX_WORKLOADS as u64 + 3 {
        dir.add(
            &identity("image", &format!("command {number}")),
            run(number, &["a"]),
            8,
        )
        .unwrap();
    }
    let kept = dir.named("image").unwrap();
    assert_eq!(kept.len(), MAX_WORKLOADS);
    assert!(!kept.contains(&identity("image", "command 3").file_name()));
    assert!(kept.contains(&identity("image", "command 4").file_name()));
    assert_eq!(dir.named("other").unwrap().len(), 1);
}

#[test]
fn a_pin_is_kept_in_the_file_and_holds_against_newer_starts() {
    let place = tempfile::tempdir().unwrap();
    let mut dir = ProfileDir::open(place.path()).unwrap();
    let app = identity("image", "a");
    let file = app.file_name();
    dir.add(&app, run(1, &["a"]), 1).unwrap();
    assert_eq!(dir.pin(&file, true).unwrap(), 1);
    let number = |dir: &ProfileDir| {
        let listed = dir.list().remove(0).summary.unwrap();
        (listed.runs, listed.pinned)
    };
    for start in 2..5 {
        dir.add(&app, run(start, &["a"]), 1).unwrap();
        assert_eq!(number(&dir), (2, 1));
    }
    for other in 0..MAX_WORKLOADS as u64 {
        let other_workload = identity("image", &format!("command {other}"));
        dir.add(&other_workload, run(100 + other, &["a"]), 1)
            .unwrap();
    }
    assert!(
        dir.named(&file).is_ok(),
        "nor do other workloads displace it"
    );
    assert_eq!(dir.pin(&file, false).unwrap(), 2);
    dir.add(&app, run(900, &["a"]), 1).unwrap();
    assert_eq!(dir.load(&file).unwrap().runs.len(), 1);
    assert!(matches!(
        dir.pin("none.json", true),
        Err(ProfileError::NotFound { .. })
    ));
}

#[test]
fn profiles_are_passed_on_by_their_runs() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut from = ProfileDir::open(here.path()).unwrap();
    let mut to = ProfileDir::open(&there.path().join("profiles")).unwrap();
    let app = identity("image", "a");
    let file = app.file_name();
    for number in [1, 2, 4] {
        from.add(&app, run(number, &["a"]), 8).unwrap();
    }
    from.pin(&file, true).unwrap();
    for number in [2, 3] {
        to.add(&app, run(number, &["a"]), 8).unwrap();
    }
    let text = bundle::write(&[from.load(&file).unwrap()]);
    assert!(text.lines().any(|line| line.contains("in-a")), "{text}");
    let [profile] = &bundle::read(text.as_bytes(), 10).unwrap()[..] else {
        panic!("not one profile")
    };
    assert_eq!(profile.pinned(), 0, "a pin is each machine's own");
    let counts = |taken: Taken| (taken.taken, taken.known, taken.left_out);
    assert_eq!(counts(to.import(profile.clone(), 3).unwrap()), (1, 1, 1));
    let kept = to.load(&file).unwrap();
    let starts: Vec<u64> = kept.runs.iter().map(|run| run.started_ms).collect();
    assert_eq!(starts, [4, 3, 2]);
    let before = fs::metadata(to.dir().join(&file))
        .unwrap()
        .modified()
        .unwrap();
    assert_eq!(counts(to.import(kept, 3).unwrap()), (0, 3, 0));
    let after = fs::metadata(to.dir().join(&file))
        .unwrap()
        .modified()
        .unwrap();
    assert_eq!(before, after, "what says nothing new changes nothing");
    // A profile as it lies in the directory will do.
    let alone = fs::read(from.dir().join(&file)).unwrap();
    assert_eq!(
        bundle::read(&alone, 10).unwrap(),
        std::slice::from_ref(profile)
    );
}

#[test]
fn bundles_that_cannot_be_used_are_refused_with_the_reason() {
    let mut profile = Profile::new(identity("image", "a"));
    profile.add(run(7, &["a"]), 8);
    let good = bundle::write(&[profile.clone(), profile.clone()]);
    assert_eq!(bundle::read(good.as_bytes(), 7).unwrap().len(), 2);
    assert!(
        bundle::read(bundle::write(&[]).as_bytes(), 7)
            .unwrap()
            .is_empty()
    );
    let second = |from: &str, to: &str| {
        let at = good.rfind(from).unwrap();
        let mut text = good.clone();
        text.replace_range(at..at + from.len(), to);
        text
    };
    let day = 24 * 3600 * 1000;
    profile.runs[0].started_ms = day + 8;
    let future = bundle::write(&[profile.clone()]);
    assert!(bundle::read(future.as_bytes(), 8).is_ok(), "clocks differ");
    let many = format!(
        "{{\"bundle\": 1, \"profiles\": [{}]}}",
        vec!["{\"schema\": 1}"; 1025].join(",")
    );
    for (text, words) in [
        (
            String::new(),
            "neither a bundle of profiles nor a profile: EOF",
        ),
        ("[]".to_owned(), "neither a bundle"),
        ("{}".to_owned(), "neither `bundle` nor `schema`"),
        ("{\"bundle\": 1}".to_owned(), "missing field `profiles`"),
        (
            good.replace("\"bundle\": 1", "\"bundle\": 2"),
            "bundle version 2; this program reads version 1",
        ),
        (good[..good.len() / 2].to_owned(), "neither a bundle"),
        (
            second("\"schema\": 1", "\"schema\": 2"),
            "profile 2 of the bundle: schema 2",
        ),
        (
            second("\"pages\": 1", "\"pages\": 0"),
            "profile 2 of the bundle: run",
        ),
        (many, "1025 profiles"),
        (future, "started in the future"),
    ] {
        let error = bundle::read(text.as_bytes(), 7).unwrap_err().to_string();
        assert!(error.contains(words), "{error:?} should contain {words:?}");
    }
}

#[test]
fn profiles_go_by_file_name_its_beginning_or_the_image() {
    let place = tempfile::tempdir().unwrap();
    let mut dir = ProfileDir::open(place.path()).unwrap();
    let (a, b) = (identity("h/a:1", "x"), identity("h/b:1", "x"));
    dir.add(&a, run(1, &["a"]), 8).unwrap();
    dir.add(&b, run(2, &["b"]), 8).unwrap();
    for name in [
        a.file_name(),
        a.file_name().replace(".json", ""),
        "h/a:1".to_owned(),
        "h_a".to_owned(),
    ] {
        assert_eq!(dir.named(&name).unwrap(), [a.file_name()], "{name}");
    }
    for name in ["", "h_", "h/c:1"] {
        assert!(dir.named(name).is_err(), "{name:?} means no single profile");
    }
    let both = dir.named("h_").unwrap_err().to_string();
    for file in [a.file_name(), b.file_name()] {
        assert!(both.contains(&file), "{both}");
    }
    dir.delete(&a.file_name()).unwrap();
    assert!(dir.delete(&a.file_name()).is_err());
    assert!(dir.delete("../outside").is_err());
    assert_eq!(ProfileDir::open(place.path()).unwrap().list().len(), 1);
}

#[test]
fn a_directory_that_is_not_there_is_empty_and_stays_away() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("none");
    assert!(ProfileDir::open_read_only(&dir).unwrap().list().is_empty());
    assert!(!dir.exists());
}

#[test]
fn profiles_that_a_user_may_not_see_are_not_none() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("state/profiles");
    fs::create_dir_all(&dir).unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let closed = |path: &Path| {
        fs::set_permissions(path, fs::Permissions::from_mode(0o0)).unwrap();
        let looked = std::thread::scope(|scope| {
            // A thread of its own: root sees everything, and identity is the thread's.
            let look = || {
                let nobody = rustix::thread::Uid::from_raw(65_534);
                // Not root already: neither needed nor allowed.
                let _ = rustix::thread::set_thread_res_uid(nobody, nobody, nobody);
                ProfileDir::open_read_only(&dir)
            };
            scope.spawn(look).join().unwrap()
        });
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
        looked.unwrap_err().to_string()
    };
    for path in [dir.clone(), place.path().join("state")] {
        let error = closed(&path);
        assert!(error.contains("run this as root"), "{error}");
    }
}
