//! The state machine, without kernel, files or clock.

#![expect(clippy::unwrap_used, reason = "tests")]

mod bench;
mod driver;
mod orders;

use std::collections::{BTreeMap, BTreeSet};

use bench::{Bench, HOST_CGROUP, HOST_NS, Made, host, pages};

use super::{Action, Bounds, Input};
use crate::{
    attribution::View,
    protocol::Started,
    witness::{Event, Origin, Watched},
};

#[test]
fn a_start_from_mount_to_exit() {
    let mut bench = Bench::new();
    let made = Made::new(3, &[8, 7]);
    bench.mount(&[8, 7]);
    assert_eq!(
        bench.actions,
        [
            Action::Attach,
            Action::Reply { window: 8 },
            Action::Reply { window: 7 }
        ]
    );
    // The engine reads the password file, the runtime walks the tree, the kernel reads the program's first page.
    bench.touch(host(2, 1050), 7, 0, 1);
    bench.touch(made.origin(300, 1080), 7, 20, 4);
    assert!(
        bench
            .actions
            .contains(&Action::Watch(Watched::MountNamespace(503)))
    );
    bench.open(made.origin(300, 1085), "/etc/host-file", -100, 3);
    bench.touch(made.origin(300, 1100), 8, 1, 1);
    bench.start(&made, 1100);
    let now = made.origin(300, 1150);
    bench.open(now, "/etc/app.conf", -100, -2);
    bench.open(now, "/etc/app.conf", -100, -2);
    bench.open(now, "lib/x.py", -100, 5);
    bench.open(now, "./y", 7, -13);
    bench.open(now, "/proc/self/maps", -100, 5);
    bench.open(now, "/interrupted", -100, -4);
    bench.open(now, "", 7, 5);
    bench.touch(made.origin(301, 1200), 7, 18, 6);
    bench.exec(made.origin(301, 1300), "/bin/child");
    bench.exit(made.origin(301, 1400));
    assert!(bench.traces.is_empty());
    bench.exit(made.origin(300, 1500));
    let [trace] = &bench.traces[..] else {
        panic!("{} traces", bench.traces.len())
    };
    assert_eq!(trace.run.len(), 32);
    assert_eq!(trace.started_ms, 1_001_100);
    assert_eq!(trace.container.image, "image3");
    assert_eq!(trace.container.command, ["/bin/app"]);
    let touches: Vec<_> = trace
        .touches
        .iter()
        .map(|t| (t.at_us, t.ino >> 32, t.page, t.pages))
        .collect();
    assert_eq!(
        touches,
        [
            (-50_000, 7, 0, 1),
            (-20_000, 7, 20, 4),
            (0, 8, 1, 1),
            (100_000, 7, 18, 2),
        ]
    );
    let opens: Vec<_> = trace
        .opens
        .iter()
        .map(|open| (open.path.as_str(), open.found))
        .collect();
    assert_eq!(
        opens,
        [
            ("/etc/app.conf", false),
            ("/srv/lib/x.py", true),
            ("/seven/y", true)
        ]
    );
    let execs: Vec<_> = trace
        .execs
        .iter()
        .map(|e| (e.at_us, e.path.as_str()))
        .collect();
    assert_eq!(execs, [(0, "/bin/app"), (200_000, "/bin/child")]);
    assert_eq!(trace.lost, 0);
    assert!(!bench.attached());
    assert!(!bench.recorder.is_open());
    assert!(
        bench
            .actions
            .contains(&Action::Unwatch(Watched::MountNamespace(503)))
    );
}

#[test]
fn who_starts_and_what_is_known_long_before_the_start_is_over() {
    let mut bench = Bench::new();
    let (told, silent) = (Made::new(1, &[8, 7]), Made::new(2, &[8, 7]));
    bench.mount(&[8, 7]);
    bench.mount(&[8, 7]);
    bench.show(told.pid(), told.view());
    bench.exec(told.origin(told.pid(), 1100), "/bin/app");
    bench.exec(told.origin(told.pid(), 1110), "/bin/child");
    assert!(known(&bench).is_empty(), "nobody was asked yet");
    let mut identity = told.identity();
    identity.container.command = vec!["app".to_owned(), "--password=x".to_owned()];
    let candidate = bench.candidates.pop().unwrap().id;
    bench.apply(Input::Identified {
        candidate,
        identity: Some(identity),
    });
    let app = ["app".to_owned(), "--password=x".to_owned()];
    let expected = Started {
        slots: vec![8, 7],
        image: "image1".to_owned(),
        workload: crate::model::workload(&app),
    };
    assert_eq!(known(&bench), [expected]);
    assert!(bench.traces.is_empty());

    // The engine's files do not tell: the same label as its trace will have.
    bench.start(&silent, 1200);
    bench.tick(60_000);
    let trace = (bench
        .traces
        .iter()
        .find(|trace| trace.container.image == "image2"))
    .unwrap();
    let started = &known(&bench)[1];
    assert_eq!(*started, Started::of(&trace.container));
    assert_eq!(
        started.workload,
        crate::model::workload(&["/bin/app".to_owned()])
    );
    assert_eq!(known(&bench).len(), 2, "each is said once");
    let said = serde_json::to_string(&known(&bench)).unwrap();
    assert!(!said.contains("password"), "{said}");
}

/// What the store is told of those who started.
fn known(bench: &Bench) -> Vec<Started> {
    let known = |action: &Action| match action {
        Action::Known(container) => Some(Started::of(container)),
        _ => None,
    };
    bench.actions.iter().filter_map(known).collect()
}

#[test]
fn a_mount_that_is_told_late_is_as_old_as_it_is() {
    let mut bench = Bench::new();
    let made = Made::new(1, &[5]);
    // Attached already, and the recorder had much to do.
    bench.mount(&[9]);
    bench.now_ms = 1300;
    bench.mount_at(&[5], Some(1010));
    bench.touch(host(2, 1050), 5, 7, 1);
    bench.start(&made, 1200);
    bench.tick(30_000);
    assert_eq!(bench.traces.len(), 1);
    assert_eq!(pages(&bench.traces[0]), BTreeSet::from([(5, 7)]));
    // A clock that is ahead makes no mount of the future.
    bench.mount_at(&[6], Some(90_000));
    bench.start(&Made::new(2, &[6]), 30_100);
    bench.tick(60_000);
    assert_eq!(bench.traces.len(), 2);
}

#[test]
fn two_containers_of_one_image_give_two_complete_traces() {
    let mut bench = Bench::new();
    let (a, b) = (Made::new(1, &[5]), Made::new(2, &[5]));
    bench.mount(&[5]);
    bench.mount(&[5]);
    bench.touch(host(2, 1010), 5, 99, 1);
    bench.start(&a, 1020);
    bench.touch(a.origin(100, 1030), 5, 0, 10);
    bench.start(&b, 1040);
    bench.touch(b.origin(200, 1050), 5, 0, 10);
    bench.touch(b.origin(200, 1060), 5, 30, 1);
    bench.touch(a.origin(100, 1070), 5, 40, 1);
    bench.exit(a.origin(100, 1080));
    assert!(bench.attached(), "the other is still recorded");
    bench.exit(b.origin(200, 1090));
    let found: BTreeMap<_, _> = bench
        .traces
        .iter()
        .map(|trace| (trace.container.image.as_str(), pages(trace)))
        .collect();
    let both: Vec<u64> = (0..10).chain([99]).collect();
    let with = |extra: u64| {
        both.iter()
            .copied()
            .chain([extra])
            .map(|p| (5, p))
            .collect()
    };
    assert_eq!(
        found,
        BTreeMap::from([("image1", with(40)), ("image2", with(30))])
    );
    assert_ne!(bench.traces[0].run, bench.traces[1].run);
    assert!(!bench.attached());
}

#[test]
fn a_mount_without_a_container_ends_in_silence() {
    let mut bench = Bench::new();
    bench.mount(&[5, 6]);
    bench.touch(host(20, 1500), 5, 0, 100);
    bench.show(
        20,
        View {
            root: None,
            ..Made::new(1, &[]).view()
        },
    );
    bench.exec(host(20, 1600), "/usr/bin/find");
    bench.tick(16_400);
    assert!(bench.attached());
    bench.tick(16_500);
    assert!(!bench.attached());
    assert!(bench.traces.is_empty());
    // The next window is like the first.
    bench.mount(&[5]);
    assert!(bench.attached());
}

#[test]
fn a_window_closes_when_nothing_new_is_touched() {
    let mut bench = Bench::new();
    let made = Made::new(1, &[5]);
    bench.mount(&[5]);
    bench.start(&made, 1100);
    bench.touch(made.origin(100, 9000), 5, 0, 10);
    bench.touch(made.origin(100, 20_000), 5, 3, 2);
    bench.tick(23_999);
    assert!(bench.traces.is_empty());
    bench.tick(24_000);
    assert_eq!(bench.traces.len(), 1);
    assert!(!bench.attached());
}

#[test]
fn a_window_closes_after_the_longest_time() {
    let mut bench = Bench::new();
    let made = Made::new(1, &[5]);
    bench.mount(&[5]);
    bench.start(&made, 1100);
    for second in 2..=601u64 {
        bench.touch(made.origin(100, second * 1000), 5, second, 1);
        bench.tick(second * 1000);
    }
    assert!(bench.traces.is_empty());
    bench.tick(601_100);
    assert_eq!(bench.traces.len(), 1);
}

#[test]
fn a_container_without_namespace_and_cgroup_is_its_processes() {
    let mut bench = Bench::new();
    let made = Made::bare(1, &[5]);
    bench.mount(&[5]);
    bench.touch(made.origin(100, 1050), 5, 1, 1);
    bench.start(&made, 1100);
    assert!(
        bench
            .actions
            .contains(&Action::Watch(Watched::Cgroup(HOST_CGROUP)))
    );
    // A child by its parent, another by its root, a stranger by neither.
    bench.apply(Input::Seen(Event::Fork {
        origin: made.origin(100, 1110),
        child: 101,
    }));
    bench.touch(made.origin(101, 1120), 5, 2, 1);
    bench.show(102, made.view());
    bench.touch(made.origin(102, 1130), 5, 3, 1);
    bench.show(
        103,
        View {
            root: None,
            ..made.view()
        },
    );
    bench.touch(made.origin(103, 1140), 5, 4, 1);
    bench.open(made.origin(103, 1140), "/host", -100, 1);
    bench.exit(made.origin(101, 1150));
    assert!(bench.traces.is_empty());
    bench.exit(made.origin(100, 1160));
    assert_eq!(
        pages(&bench.traces[0]),
        BTreeSet::from([(5, 1), (5, 2), (5, 3)])
    );
    assert!(bench.traces[0].opens.is_empty());
}

#[test]
fn a_program_that_a_recorded_container_starts_later_is_no_start() {
    let mut bench = Bench::new();
    let old = Made::new(1, &[5]);
    bench.mount(&[5]);
    bench.start(&old, 1100);
    bench.tick(30_000);
    assert_eq!(bench.traces.len(), 1);
    // Another container of the image starts; a health check runs in the first.
    bench.mount(&[5]);
    bench.show(
        150,
        View {
            first: false,
            ..old.view()
        },
    );
    bench.exec(old.origin(150, 30_100), "/bin/check");
    assert!(bench.candidates.is_empty());
    let new = Made::new(2, &[5]);
    bench.start(&new, 30_200);
    bench.tick(50_000);
    assert_eq!(bench.traces.len(), 2);
    assert_eq!(bench.traces[1].container.image, "image2");
    // Its numbers are used again after its end.
    bench.world.0.lock().unwrap().empty.insert("/c1".into());
    bench.mount(&[5]);
    bench.start(&old, 50_100);
    bench.world.0.lock().unwrap().empty.clear();
    bench.tick(70_000);
    assert_eq!(bench.traces.len(), 3);
}

#[test]
fn a_container_that_was_started_again_is_a_start() {
    let mut bench = Bench::new();
    let made = Made::new(1, &[5]);
    bench.mount(&[5]);
    bench.start(&made, 1100);
    bench.tick(30_000);
    // Everything but the number of its cgroup is as before; its first process may even have the same id.
    bench
        .world
        .0
        .lock()
        .unwrap()
        .made_again
        .insert("/c1".into(), 77);
    bench.mount(&[5]);
    bench.start(&made, 30_100);
    bench.tick(60_000);
    assert_eq!(bench.traces.len(), 2);
    // An engine that keeps the cgroup leaves the first process to tell.
    bench.world.0.lock().unwrap().made_again.clear();
    bench.mount(&[5]);
    bench.exit(made.origin(100, 60_050));
    bench.show(101, made.view());
    bench.exec(made.origin(101, 60_100), "/bin/app");
    bench.identify(&made);
    bench.tick(90_000);
    assert_eq!(bench.traces.len(), 3);
}

#[test]
fn a_program_of_a_container_that_started_before_us_is_no_start() {
    let mut bench = Bench::new();
    let old = Made::new(1, &[5]);
    bench.mount(&[5]);
    bench.show(100, old.view());
    let child = View {
        first: false,
        parent: 100,
        ..old.view()
    };
    bench.show(150, child);
    bench.exec(old.origin(150, 1100), "/bin/check");
    assert!(bench.candidates.is_empty());
}

#[test]
fn an_exec_from_the_host_into_a_container_that_started_before_us_is_no_start() {
    let mut bench = Bench::new();
    let (old, new) = (Made::new(1, &[5]), Made::new(2, &[5]));
    {
        let mut world = bench.world.0.lock().unwrap();
        world.inside = vec![old.inside(120, false), old.inside(100, true)];
    }
    bench.apply(Input::Connected);
    bench.mount(&[5]);
    // The engine's monitor starts a health check.
    let check = View {
        first: false,
        ..old.view()
    };
    bench.show(150, check);
    bench.exec(old.origin(150, 1100), "/bin/check");
    assert!(bench.candidates.is_empty());
    bench.start(&new, 1200);
    bench.tick(30_000);
    assert_eq!(bench.traces.len(), 1);
    assert_eq!(bench.traces[0].container.image, "image2");
    // Its start is one when it has ended.
    bench.mount(&[5]);
    bench.exit(old.origin(100, 30_050));
    bench.show(101, old.view());
    bench.exec(old.origin(101, 30_100), "/bin/app");
    bench.identify(&old);
    bench.tick(60_000);
    assert_eq!(bench.traces.len(), 2);
}

#[test]
fn a_container_that_a_mount_waits_for_did_not_start_unseen() {
    let mut bench = Bench::new();
    let made = Made::new(1, &[5]);
    bench.mount(&[5]);
    bench.world.0.lock().unwrap().inside = vec![made.inside(100, true)];
    // The store was away for a moment.
    bench.apply(Input::Connected);
    bench.start(&made, 1100);
    bench.tick(30_000);
    assert_eq!(bench.traces.len(), 1);
}

#[test]
fn cgroups_below_the_container_s_own_are_its() {
    let mut bench = Bench::new();
    let made = Made::new(1, &[5]);
    bench.mount(&[5]);
    bench.start(&made, 1100);
    // A service in a cgroup and a mount namespace of its own.
    let service = Origin {
        cgroup: 77,
        mnt_ns: 78,
        ..made.origin(120, 1200)
    };
    {
        let mut world = bench.world.0.lock().unwrap();
        world
            .cgroups
            .insert(120, "/c1/system.slice/x.service".into());
        world.cgroups.insert(130, "/c12".into());
    }
    bench.touch(service, 5, 7, 1);
    let other = Origin {
        cgroup: 79,
        mnt_ns: 80,
        ..made.origin(130, 1200)
    };
    bench.touch(other, 5, 8, 1);
    bench.tick(30_000);
    assert_eq!(pages(&bench.traces[0]), BTreeSet::from([(5, 7)]));
}

#[test]
fn a_container_that_ended_before_it_could_be_asked() {
    let mut bench = Bench::new();
    let made = Made::new(1, &[5]);
    bench.mount(&[5]);
    // The runtime's process in the new namespace was met; the program is gone when its exec arrives.
    let early = View {
        root: None,
        first: false,
        ..made.view()
    };
    bench.show(99, early);
    bench.apply(Input::Seen(Event::Fork {
        origin: made.origin(99, 1050),
        child: 100,
    }));
    bench.touch(made.origin(100, 1099), 5, 0, 2);
    bench.exec(made.origin(100, 1100), "/bin/true");
    assert_eq!(bench.candidates[0].view, None);
    assert!(bench.candidates[0].cgroups.container.is_some());
    bench.world.0.lock().unwrap().empty.insert("/c1".into());
    bench.exit(made.origin(100, 1101));
    assert!(bench.traces.is_empty());
    bench.identify(&made);
    assert_eq!(bench.traces.len(), 1);
    assert_eq!(pages(&bench.traces[0]).len(), 2);
    assert!(!bench.attached());
}

#[test]
fn a_program_on_a_foreign_overlay_is_asked_about_once() {
    let mut bench = Bench::new();
    let foreign = Made::new(9, &[]);
    bench.mount(&[5]);
    bench.touch(foreign.origin(900, 1010), 5, 1, 1);
    bench.show(900, foreign.view());
    bench.exec(foreign.origin(900, 1020), "/bin/x");
    let candidate = bench.candidates.pop().unwrap();
    bench.apply(Input::Identified {
        candidate: candidate.id,
        identity: None,
    });
    bench.exec(foreign.origin(900, 1030), "/bin/x");
    assert!(bench.candidates.is_empty());
    // What it touched may have been for the container that is about to start.
    let made = Made::new(1, &[5]);
    bench.start(&made, 1100);
    bench.exit(made.origin(100, 1200));
    assert_eq!(pages(&bench.traces[0]), BTreeSet::from([(5, 1)]));
}

#[test]
fn what_is_left_out_is_counted() {
    let mut bench = Bench::with(Bounds {
        touches: 3,
        opens: 1,
        execs: 1,
        ..Bounds::default()
    });
    let made = Made::new(1, &[5]);
    bench.apply(Input::Tick { lost: 40 });
    bench.mount(&[5]);
    bench.start(&made, 1100);
    for page in 0..5 {
        bench.touch(made.origin(100, 1200), 5, page * 10, 1);
    }
    bench.open(made.origin(100, 1200), "/a", -100, 1);
    bench.open(made.origin(100, 1200), "/b", -100, 1);
    bench.exec(made.origin(100, 1200), "/c");
    bench.now_ms = 30_000;
    bench.apply(Input::Tick { lost: 47 });
    let trace = &bench.traces[0];
    assert_eq!(
        (trace.touches.len(), trace.opens.len(), trace.execs.len()),
        (3, 1, 1)
    );
    assert_eq!(trace.lost, 2 + 1 + 1 + 7);
}

#[test]
fn finishing_waits_for_who_it_is() {
    let mut bench = Bench::new();
    let made = Made::new(1, &[5]);
    bench.mount(&[5]);
    bench.show(100, made.view());
    bench.exec(made.origin(100, 1100), "/bin/app");
    bench.apply(Input::Finish);
    assert!(bench.traces.is_empty());
    assert_eq!(bench.recorder.recording(), 1);
    bench.identify(&made);
    assert_eq!(bench.traces.len(), 1);
    assert!(bench.traces[0].cut);
    assert!(!bench.attached());
    bench.apply(Input::Finish);
    bench.mount(&[5]);
    assert!(bench.attached(), "finishing is over");
}

#[test]
fn only_a_stop_before_its_time_cuts_a_recording_short() {
    let made = Made::new(1, &[5]);
    let finish = |at_ms: u64| {
        let mut bench = Bench::new();
        bench.mount(&[5]);
        bench.start(&made, 1100);
        bench.now_ms = at_ms;
        bench.apply(Input::Finish);
        bench.traces.pop().unwrap().cut
    };
    assert!(finish(2000));
    assert!(!finish(16_100), "it was over");
    let mut bench = Bench::new();
    bench.mount(&[5]);
    bench.start(&made, 1100);
    bench.exit(made.origin(100, 1200));
    assert!(!bench.traces[0].cut);
}

#[test]
fn what_the_runtime_touched_is_reported_again_for_the_next_container() {
    let mut bench = Bench::new();
    bench.mount(&[5]);
    bench.touch(host(2, 1010), 5, 1, 1);
    let runtime = Made::new(8, &[]);
    bench.touch(runtime.origin(800, 1020), 5, 1, 1);
    let a = Made::new(1, &[5]);
    bench.start(&a, 1100);
    bench.now_ms = 5000;
    bench.mount(&[5]);
    let forgotten = |bench: &Bench| -> Vec<BTreeSet<(u64, u32)>> {
        let groups = bench.actions.iter().filter_map(|action| match action {
            Action::Forget(groups) => Some(groups.iter().copied().collect()),
            _ => None,
        });
        groups.collect()
    };
    // All in one: each pass looks at every touch that the kernel remembers.
    let both = BTreeSet::from([(HOST_CGROUP, HOST_NS), (1008, 508)]);
    assert_eq!(forgotten(&bench), [both]);
    // A container that is done and goes on touching is no runtime.
    let b = Made::new(2, &[5]);
    bench.start(&b, 5100);
    bench.exit(b.origin(200, 5200));
    bench.tick(40_000);
    bench.actions.clear();
    bench.mount(&[5]);
    bench.touch(a.origin(100, 40_010), 5, 60, 1);
    bench.touch(b.origin(200, 40_020), 5, 61, 1);
    bench.now_ms = 41_000;
    bench.mount(&[5]);
    // The other has ended: its number is somebody else's.
    assert_eq!(forgotten(&bench), [BTreeSet::from([(1002, 502)])]);
}

#[test]
fn a_container_that_is_done_adds_nothing_to_another_s_start() {
    let mut bench = Bench::new();
    let (a, b) = (Made::new(1, &[5]), Made::new(2, &[5]));
    bench.mount(&[5]);
    bench.start(&a, 1100);
    bench.tick(30_000);
    bench.mount(&[5]);
    bench.touch(host(2, 30_050), 5, 1, 1);
    bench.touch(a.origin(100, 30_060), 5, 2, 1);
    bench.start(&b, 30_100);
    bench.tick(60_000);
    assert_eq!(pages(&bench.traces[1]), BTreeSet::from([(5, 1)]));
}

#[test]
fn a_namespace_s_number_that_is_used_again_is_met_anew() {
    let mut bench = Bench::new();
    let old = Made::new(1, &[5]);
    bench.mount(&[5]);
    bench.start(&old, 1100);
    bench.tick(30_000);
    // It ends while nothing is recorded.
    bench.world.0.lock().unwrap().ended.insert(100);
    bench.mount(&[5]);
    bench.actions.clear();
    let runtime = Origin {
        mnt_ns: 501,
        ..Made::new(2, &[5]).origin(200, 30_050)
    };
    bench.touch(runtime, 5, 3, 1);
    let watch = Action::Watch(Watched::MountNamespace(501));
    assert!(bench.actions.contains(&watch));
}

#[test]
fn the_runtime_s_first_lookups_do_not_name_the_host_s_files() {
    let mut bench = Bench::new();
    let made = Made::new(1, &[5]);
    bench.mount(&[5]);
    bench.start(&made, 1100);
    // An open that the kernel saw before the exec, reported after it.
    bench.open(made.origin(100, 1099), "/usr/sbin/runc", -100, 3);
    bench.exit(made.origin(100, 1200));
    assert!(bench.traces[0].opens.is_empty());
}
