#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn touched(page: u64, pages: u32, at_us: i64) -> TouchedRange {
    TouchedRange {
        page,
        pages,
        at_us,
        access: Access::Map,
    }
}

fn file(path: &str, ranges: Vec<TouchedRange>) -> FileTouches {
    FileTouches {
        path: path.to_owned(),
        content: Some(Digest::of(path.as_bytes())),
        layer: Some(Digest::of(b"layer")),
        size: 1 << 30,
        ranges,
    }
}

fn run(number: u64, files: Vec<FileTouches>) -> Run {
    Run {
        id: format!("{number:032x}"),
        started_ms: 1_700_000_000_000 + number,
        level: Level::Tracepoints,
        lost: 0,
        cut: false,
        pinned: false,
        layers: vec![Digest::of(b"layer")],
        execs: vec![RunExec {
            at_us: 0,
            path: "/usr/bin/python3".to_owned(),
        }],
        files,
        found: Vec::new(),
        missing: Vec::new(),
        predicted_unused: Vec::new(),
    }
}

fn identity() -> Identity {
    Identity::new(
        "registry:5000/python:3",
        &["python3".to_owned(), "-m".to_owned()],
        &[],
    )
}

fn profile(runs: Vec<Run>) -> Profile {
    let mut profile = Profile::new(identity());
    for run in runs {
        profile.add(run, MAX_RUNS);
    }
    profile
}

fn predicted_paths(profile: &Profile) -> Vec<String> {
    predict(std::slice::from_ref(profile))
        .files
        .into_iter()
        .map(|file| file.path)
        .collect()
}

#[test]
fn one_run_teaches_every_range_with_its_time() {
    let ranges = vec![touched(3, 2, 500), touched(100, 1, -20)];
    let prediction = predict(&[profile(vec![run(1, vec![file("usr/bin/python3", ranges)])])]);
    assert_eq!(prediction.files.len(), 1);
    let got: Vec<_> = (prediction.files[0].ranges.iter())
        .map(|r| (r.page, r.pages, r.at_us, r.probability))
        .collect();
    assert_eq!(got, [(3, 2, 500, 1.0), (100, 1, -20, 1.0)]);
}

#[test]
fn files_come_in_order_of_their_first_touch() {
    let files = vec![
        file("late", vec![touched(0, 1, 900)]),
        file("first", vec![touched(0, 1, 800), touched(9, 1, -5)]),
        file("second", vec![touched(0, 1, 0)]),
    ];
    assert_eq!(
        predicted_paths(&profile(vec![run(1, files)])),
        ["first", "second", "late"]
    );
}

#[test]
fn a_new_path_is_learned_in_one_run_and_an_unused_one_leaves_after_two_or_three() {
    let old = || {
        vec![
            file("always", vec![touched(0, 1, 0)]),
            file("old", vec![touched(0, 1, 1)]),
        ]
    };
    let new = || {
        vec![
            file("always", vec![touched(0, 1, 0)]),
            file("new", vec![touched(0, 1, 2)]),
        ]
    };
    let mut profile = profile((0..5).map(|number| run(number, old())).collect());
    profile.add(run(5, new()), 8);
    assert_eq!(predicted_paths(&profile), ["always", "old", "new"]);
    profile.add(run(6, new()), 8);
    profile.add(run(7, new()), 8);
    assert_eq!(predicted_paths(&profile), ["always", "new"]);
}

#[test]
fn what_one_run_touched_leaves_after_two_without_it() {
    let mut profile = profile(vec![run(0, vec![file("once", vec![touched(0, 1, 0)])])]);
    profile.add(run(1, vec![]), 8);
    assert_eq!(predicted_paths(&profile), ["once"]);
    profile.add(run(2, vec![]), 8);
    assert!(predicted_paths(&profile).is_empty());
}

#[test]
fn whatever_a_profile_claims_is_gone_after_three_starts_that_do_not_need_it() {
    for level in [Level::Tracepoints, Level::Add] {
        let claim = |number| {
            let mut claim = run(number, vec![file("claimed", vec![touched(0, 1 << 20, 0)])]);
            claim.level = level;
            claim
        };
        let mut profile = profile((0..MAX_RUNS as u64).map(claim).collect());
        for number in 100..103 {
            assert!(predicted_paths(&profile).contains(&"claimed".to_owned()));
            profile.add(run(number, vec![]), MAX_RUNS);
        }
        assert!(predicted_paths(&profile).is_empty(), "{level:?}");
    }
}

#[test]
fn runs_that_could_not_see_everything_age_nothing() {
    let mut profile = profile(vec![run(0, vec![file("kept", vec![touched(0, 1, 0)])])]);
    for number in 1..7 {
        let mut blind = run(number, vec![]);
        match number % 3 {
            0 => blind.level = Level::Add,
            1 => blind.lost = 1,
            _ => blind.cut = true,
        }
        profile.add(blind, 8);
    }
    assert_eq!(predicted_paths(&profile), ["kept"]);
}

#[test]
fn pinned_runs_stay_and_count_fully_and_new_ones_are_learned_beside_them() {
    let once = |path, number| run(number, vec![file(path, vec![touched(0, 1, 0)])]);
    let mut profile = profile(vec![once("kept", 0), once("kept", 1)]);
    profile.set_pinned(true);
    for number in 2..20 {
        profile.add(once("new", number), 3);
    }
    let ids: Vec<u64> = profile
        .runs
        .iter()
        .map(|run| run.started_ms % 100)
        .collect();
    assert_eq!(ids, [19, 18, 17, 1, 0]);
    assert_eq!((profile.pinned(), profile.runs.len()), (2, 5));
    let certain = |profile: &Profile| -> Vec<_> {
        let files = predict(std::slice::from_ref(profile)).files;
        files
            .into_iter()
            .map(|file| (file.path, file.ranges[0].probability))
            .collect()
    };
    let both = [("kept".to_owned(), 1.0), ("new".to_owned(), 1.0)];
    assert_eq!(certain(&profile), both);
    profile.set_pinned(false);
    assert_eq!(predicted_paths(&profile), ["new"]);
}

#[test]
fn a_new_start_is_learned_however_much_is_pinned() {
    let mut profile = profile(
        (0..MAX_RUNS as u64)
            .map(|number| run(number, vec![]))
            .collect(),
    );
    profile.set_pinned(true);
    profile.add(run(100, vec![]), 8);
    assert_eq!(
        (profile.pinned(), profile.runs.len()),
        (MAX_RUNS - 1, MAX_RUNS)
    );
    assert!(!profile.runs[0].pinned);
    Profile::from_json(profile.to_json().as_bytes()).unwrap();
}

#[test]
fn a_pinned_workload_is_predicted_however_rarely_it_starts() {
    let mut rare = Profile::new(Identity::new(
        "registry:5000/python:3",
        &["sh".to_owned()],
        &[],
    ));
    rare.add(run(0, vec![file("bin/sh", vec![touched(0, 1, 0)])]), 8);
    let often = profile((1..40).map(|number| run(number, vec![])).collect());
    assert!(predict(&[rare.clone(), often.clone()]).is_empty());
    rare.set_pinned(true);
    assert_eq!(predict(&[rare, often]).files.len(), 1);
}

#[test]
fn ranges_of_several_runs_are_weighed_page_by_page() {
    let mut profile = profile(vec![run(0, vec![file("lib", vec![touched(0, 10, 100)])])]);
    profile.add(run(1, vec![file("lib", vec![touched(5, 10, 300)])]), 8);
    let prediction = predict(&[profile]);
    let got: Vec<_> = (prediction.files[0].ranges.iter())
        .map(|r| (r.page, r.pages, r.at_us, (r.probability * 1000.0).round()))
        .collect();
    // Weights 1 and 0.6; the shared pages' median is the heavier run's time.
    assert_eq!(
        got,
        [(0, 5, 100, 375.0), (5, 5, 300, 1000.0), (10, 5, 300, 625.0)]
    );
}

#[test]
fn workloads_that_take_turns_are_predicted_together_and_a_stray_one_falls_out() {
    let shell = Identity::new("registry:5000/python:3", &["sh".to_owned()], &[]);
    assert_ne!(shell, identity());
    let mut stray = Profile::new(shell);
    stray.add(run(0, vec![file("bin/sh", vec![touched(0, 1, 0)])]), 8);
    let mut main = profile(vec![run(1, vec![file("python", vec![touched(0, 1, 0)])])]);
    let paths = |profiles: &[Profile]| {
        let mut paths: Vec<_> = predict(profiles)
            .files
            .into_iter()
            .map(|file| file.path)
            .collect();
        paths.sort();
        paths
    };
    assert_eq!(paths(&[stray.clone(), main.clone()]), ["bin/sh", "python"]);
    for number in 2..9 {
        main.add(run(number, vec![file("python", vec![touched(0, 1, 0)])]), 8);
    }
    assert_eq!(paths(&[stray, main]), ["python"]);
}

#[test]
fn paths_are_ordered_by_how_often_they_were_asked_for() {
    let mut first = run(1, vec![]);
    first.missing = vec!["/once".to_owned(), "/twice".to_owned()];
    first.found = vec!["/usr/lib".to_owned()];
    let mut second = run(2, vec![]);
    second.missing = vec!["/twice".to_owned()];
    let prediction = predict(&[profile(vec![first, second])]);
    assert_eq!(prediction.missing, ["/twice", "/once"]);
    assert_eq!(prediction.found, ["/usr/lib"]);
}

#[test]
fn merging_keeps_the_newest_runs() {
    let mut profile = profile((0..5).map(|number| run(number, vec![])).collect());
    profile.add(run(9, vec![]), 3);
    let kept: Vec<u64> = profile
        .runs
        .iter()
        .map(|run| run.started_ms - 1_700_000_000_000)
        .collect();
    assert_eq!(kept, [9, 4, 3]);
}

#[test]
fn profiles_of_different_workloads_are_not_merged() {
    let other = Profile::new(Identity::new(
        "registry:5000/python:3",
        &["sh".to_owned()],
        &[],
    ));
    let error = profile(vec![]).merge(other, 8).unwrap_err().to_string();
    assert!(error.contains("(sh-"), "{error}");
    assert!(error.contains("(python3-"), "{error}");
}

#[test]
fn identities_make_readable_unique_file_names() {
    let name = identity().file_name();
    assert!(name.starts_with("registry_5000_python_3-"), "{name}");
    assert!(name.strip_suffix(".json").is_some(), "{name}");
    assert_ne!(
        name,
        Identity::new(
            "registry:5000/python_3",
            &["python3".to_owned(), "-m".to_owned()],
            &[]
        )
        .file_name()
    );
    let hidden = Identity::new("../../etc/passwd", &[], &[]).file_name();
    assert!(
        !hidden.contains('/') && !hidden.starts_with('.'),
        "{hidden}"
    );
    let nameless = Identity::new("", &["a".to_owned()], &[Digest::of(b"x")]);
    assert!(nameless.image.starts_with("layers:"), "{nameless}");
    assert_eq!(
        Identity::new("h:5000/a/b:tag", &[], &[]).repository(),
        "h:5000/a/b"
    );
    assert_eq!(
        Identity::new("h:5000/a/b", &[], &[]).repository(),
        "h:5000/a/b"
    );
    assert_eq!(Identity::new("h/a@sha256:00", &[], &[]).repository(), "h/a");
}

#[test]
fn the_command_line_is_not_kept() {
    let secret = Identity::new(
        "a",
        &["/bin/tool".to_owned(), "--password=hunter2".to_owned()],
        &[],
    );
    let text = Profile::new(secret).to_json();
    assert!(text.contains("tool-"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
}

#[test]
fn the_text_has_a_line_a_file() {
    let files = vec![
        file("usr/bin/a", vec![touched(0, 4, -3), touched(9, 1, 7)]),
        file("usr/bin/b", vec![touched(0, 1, 0)]),
    ];
    let text = profile(vec![run(1, files)]).to_json();
    let line = text
        .lines()
        .find(|line| line.contains("usr/bin/a"))
        .unwrap();
    assert!(
        line.contains(
            r#""ranges": [{"page": 0, "pages": 4, "at_us": -3, "access": "map"}, {"page": 9"#
        ),
        "{line}"
    );
    assert!(!line.contains("usr/bin/b"));
    assert!(
        text.lines().any(|line| line.trim() == r#""schema": 1,"#),
        "{text}"
    );
}

#[test]
fn malformed_profiles_get_a_message_that_names_the_place() {
    let good = profile(vec![run(1, vec![file("lib", vec![touched(7, 1, 0)])])]).to_json();
    let changed = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        Profile::from_json(good.replace(from, to).as_bytes())
            .unwrap_err()
            .to_string()
    };
    for (error, words) in [
        (
            Profile::from_json(b"").unwrap_err().to_string(),
            "not the JSON of a profile",
        ),
        (
            Profile::from_json(b"[]").unwrap_err().to_string(),
            "not the JSON of a profile",
        ),
        (changed("\"schema\": 1", "\"schema\": 2"), "schema 2"),
        (changed("\"page\": 7", "\"page\": -7"), "-7"),
        (
            changed("\"page\": 7", "\"page\": 18446744073709551615"),
            "file \"lib\"",
        ),
        (
            changed("\"pages\": 1", "\"pages\": 0"),
            "no range of pages: 0 from 7",
        ),
        (changed(&format!("{:032x}", 1), "../x"), "hexadecimal"),
        (changed("\"path\": \"lib\"", "\"path\": \"\""), "no path"),
        (changed("sha256:", "md5:"), "md5"),
        (changed("registry:5000/python:3", ""), "identity"),
        (
            Profile::from_json(&vec![b' '; usize::try_from(MAX_BYTES).unwrap() + 1])
                .unwrap_err()
                .to_string(),
            "at most",
        ),
    ] {
        assert!(error.contains(words), "{error:?} should contain {words:?}");
    }
    let mut many = profile(vec![]);
    many.runs = (0..=MAX_RUNS as u64)
        .map(|number| run(number, vec![]))
        .collect();
    let error = Profile::from_json(many.to_json().as_bytes())
        .unwrap_err()
        .to_string();
    assert!(error.contains("65 runs; at most 64"), "{error}");
    many.runs = vec![run(1, vec![]), run(1, vec![])];
    let error = Profile::from_json(many.to_json().as_bytes())
        .unwrap_err()
        .to_string();
    assert!(error.contains("twice"), "{error}");
}

/// Pages with their earliest touch, the slow way.
fn pages_of(ranges: &[TouchedRange]) -> BTreeMap<u64, (i64, Access)> {
    let mut pages = BTreeMap::new();
    for range in ranges {
        for page in range.page..range.end() {
            let touch = (range.at_us, range.access);
            pages
                .entry(page)
                .and_modify(|old: &mut (i64, Access)| *old = touch.min(*old))
                .or_insert(touch);
        }
    }
    pages
}

fn any_access() -> impl Strategy<Value = Access> {
    prop_oneof![Just(Access::Read), Just(Access::Map), Just(Access::Add)]
}

prop_compose! {
    fn any_range()(page in 0..60_u64, pages in 0..20_u32, at_us in -3..4_i64, access in any_access()) -> TouchedRange {
        TouchedRange { page, pages, at_us, access }
    }
}

prop_compose! {
    fn any_file()(path in "[a-c]", content in proptest::option::of(0..2_u8), size in 0..9_u64,
                  ranges in proptest::collection::vec(any_range(), 0..6)) -> FileTouches {
        let content = content.map(|byte| Digest::of(&[byte]));
        FileTouches { path, content, layer: content, size, ranges }
    }
}

prop_compose! {
    fn any_run()(number in 0..6_u64, started_ms in 0..4_u64, lost in 0..2_u64,
                 level in prop_oneof![Just(Level::Tracepoints), Just(Level::Kprobes), Just(Level::Add)],
                 files in proptest::collection::vec(any_file(), 0..5),
                 found in proptest::collection::vec("/[a-c]", 0..3),
                 missing in proptest::collection::vec("/[a-c]", 0..3)) -> Run {
        // Pins are one machine's: copies of a run agree on them.
        let pinned = number % 3 == 0;
        Run { started_ms, level, lost, pinned, found, missing, ..run(number, files) }
    }
}

prop_compose! {
    fn any_profile()(runs in proptest::collection::vec(any_run(), 0..6)) -> Profile {
        profile(runs)
    }
}

/// A profile's text with something done to it: what a fuzzer would try.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let number = prop_oneof![
        Just("-1".to_owned()),
        Just("0".to_owned()),
        Just("1e400".to_owned()),
        Just("18446744073709551616".to_owned()),
        Just("4294967296".to_owned()),
        Just("9223372036854775807".to_owned()),
        Just("null".to_owned()),
        Just("\"\"".to_owned()),
        Just("[[[[[[[[".to_owned()),
        Just("{}".to_owned()),
    ];
    (
        any_profile(),
        any::<prop::sample::Index>(),
        number,
        any::<prop::sample::Index>(),
        any::<u8>(),
        0..3_u8,
    )
        .prop_map(|(profile, at, value, flip, with, how)| {
            let mut text = profile.to_json().into_bytes();
            let digits: Vec<usize> = (1..text.len())
                .filter(|at| text[*at].is_ascii_digit() && text[*at - 1] == b' ')
                .collect();
            match how {
                0 if !digits.is_empty() => {
                    let from = digits[at.index(digits.len())];
                    let to = from
                        + text[from..]
                            .iter()
                            .take_while(|b| b.is_ascii_digit())
                            .count();
                    text.splice(from..to, value.bytes());
                }
                1 => text.truncate(at.index(text.len())),
                _ => {
                    let at = flip.index(text.len());
                    text[at] ^= with;
                }
            }
            text
        })
}

proptest! {
    #[test]
    fn normalising_keeps_every_page_with_its_earliest_touch(ranges in proptest::collection::vec(any_range(), 0..12)) {
        let normal = normalise(ranges.clone());
        prop_assert_eq!(pages_of(&normal), pages_of(&ranges));
        prop_assert!(normal.windows(2).all(|pair| pair[0].end() <= pair[1].page));
        prop_assert_eq!(normalise(normal.clone()), normal);
    }

    #[test]
    fn merging_is_commutative_associative_and_idempotent(
        a in any_profile(), b in any_profile(), c in any_profile(), keep in 1..5_usize,
    ) {
        let merged = |x: &Profile, y: &Profile| {
            let mut merged = x.clone();
            merged.merge(y.clone(), keep).unwrap();
            merged
        };
        let ab = merged(&a, &b);
        prop_assert_eq!(&ab, &merged(&b, &a));
        prop_assert_eq!(merged(&ab, &c), merged(&a, &merged(&b, &c)));
        prop_assert_eq!(&merged(&ab, &ab), &ab);
        prop_assert_eq!(&merged(&ab, &b), &ab);
        prop_assert!(ab.runs.len() - ab.pinned() <= keep);
    }

    #[test]
    fn a_profile_survives_its_text(profile in any_profile()) {
        prop_assert_eq!(Profile::from_json(profile.to_json().as_bytes()).unwrap(), profile);
    }

    #[test]
    fn damaged_profiles_never_panic_and_what_is_read_can_be_used(text in mutated()) {
        let bundle = [b"{\"bundle\": 1, \"profiles\": [".as_slice(), &text, b"]}"].concat();
        let passed_on = crate::profiles::bundle::read(&bundle, u64::MAX);
        if let Ok(mut profile) = Profile::from_json(&text) {
            let mut unpinned = profile.clone();
            unpinned.set_pinned(false);
            prop_assert_eq!(passed_on.unwrap(), [unpinned]);
            let prediction = predict(std::slice::from_ref(&profile));
            for file in prediction.files {
                prop_assert!(file.ranges.iter().all(|range| range.pages > 0 && range.end() <= MAX_PAGE));
                prop_assert!(file.ranges.iter().all(|range| (0.25..=1.0).contains(&range.probability)));
            }
            let again = Profile::from_json(profile.to_json().as_bytes()).unwrap();
            prop_assert_eq!(&again, &profile);
            let copy = profile.clone();
            profile.merge(copy, MAX_RUNS).unwrap();
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(text in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Profile::from_json(&text);
    }

    #[test]
    fn what_the_newest_complete_run_touched_is_predicted_exactly_when_it_is_alone(run in any_run()) {
        let mut run = run;
        run.normalise();
        let prediction = predict(&[profile(vec![run.clone()])]);
        let mut expected: Vec<_> = run.files.iter().map(|f| (f.path.clone(), f.content, pages_of(&f.ranges))).collect();
        let mut got: Vec<_> = prediction.files.iter().map(|f| {
            let ranges: Vec<_> = f.ranges.iter()
                .map(|r| TouchedRange { page: r.page, pages: r.pages, at_us: r.at_us, access: r.access }).collect();
            (f.path.clone(), f.content, pages_of(&ranges))
        }).collect();
        expected.sort();
        got.sort();
        prop_assert_eq!(got, expected);
    }
}
