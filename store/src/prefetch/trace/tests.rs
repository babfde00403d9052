#![expect(clippy::unwrap_used, reason = "tests")]

use forelayer_profiler::{
    model::PAGE,
    protocol::{Access, Container, Exec, Level, Open},
};

use super::*;
use crate::prefetch::testing::{Item, Place, chunk, node, small};

fn touch(layer: &Layer, path: &str, page: u64, pages: u32, at_us: i64) -> Touch {
    let ino = Inode::Node(layer.slot, node(layer, path)).number().unwrap();
    Touch {
        ino,
        page,
        pages,
        at_us,
        access: Access::Map,
    }
}

fn open(path: &str, found: bool) -> Open {
    Open {
        path: path.to_owned(),
        found,
        at_us: 0,
    }
}

fn trace(slots: Vec<u32>, touches: Vec<Touch>) -> Trace {
    Trace {
        run: "00ff".to_owned(),
        started_ms: 5,
        level: Level::Tracepoints,
        container: Container {
            image: "h/image:1".to_owned(),
            command: vec!["/bin/app".to_owned()],
            slots,
            ..Container::default()
        },
        touches,
        opens: Vec::new(),
        execs: vec![Exec {
            path: "/bin/app".to_owned(),
            pid: 3,
            at_us: 0,
        }],
        lost: 2,
        cut: false,
    }
}

fn take(
    trace: &Trace,
    layers: &[&Arc<Layer>],
    names: &[(u32, Names)],
) -> Result<TakenIn, TraceError> {
    let layer_of = |slot| {
        layers
            .iter()
            .find(|layer| layer.slot == slot)
            .map(|layer| Arc::clone(layer))
    };
    take_in(
        trace,
        &layer_of,
        &|_| Some("known:1".to_owned()),
        &names.iter().cloned().collect(),
    )
}

#[test]
fn touches_become_files_with_paths_contents_and_clamped_ranges() {
    let place = Place::new();
    let top = place.layer(1, &[Item::File("bin/app", "app", vec![64 << 10; 4])]);
    let base = place.layer(
        2,
        &[
            Item::File("lib/libc", "libc", vec![10_000]),
            Item::Link("lib64", "lib"),
        ],
    );
    let directory = touch(&base, "lib", 0, 1, 0);
    let link = touch(&base, "lib64", 0, 1, 0);
    let nobody = Touch {
        ino: 3 << 32 | 9,
        ..directory
    };
    let behind = touch(&base, "lib/libc", 3, 9, 0);
    let touches = vec![
        touch(&top, "bin/app", 40, 1, -50),
        touch(&base, "lib/libc", 1, 90, 7),
        touch(&base, "lib/libc", 1, 1, 3),
        directory,
        link,
        nobody,
        behind,
        Touch {
            ino: 0,
            ..directory
        },
        Touch {
            ino: u64::MAX,
            ..directory
        },
    ];
    let taken = take(&trace(vec![1, 2, 77], touches), &[&top, &base], &[]).unwrap();
    assert_eq!(taken.identity.image, "h/image:1");
    assert_eq!(taken.run.layers, [*top.blob(), *base.blob()]);
    assert_eq!((taken.run.lost, taken.run.execs.len()), (2, 1));
    let files: Vec<_> = (taken.run.files.iter())
        .map(|file| {
            (
                file.path.as_str(),
                file.layer,
                file.content,
                file.size,
                file.ranges
                    .iter()
                    .map(|r| (r.page, r.pages, r.at_us))
                    .collect::<Vec<_>>(),
            )
        })
        .collect();
    assert_eq!(
        files,
        [
            (
                "bin/app",
                Some(*top.blob()),
                Some(Digest::of(b"app")),
                256 << 10,
                vec![(40, 1, -50)]
            ),
            (
                "lib/libc",
                Some(*base.blob()),
                Some(Digest::of(b"libc")),
                10_000,
                vec![(1, 1, 3), (2, 1, 7)]
            ),
        ]
    );
    // Page 40 lies in chunk 2; its window is pages 24 to 73.
    let first = chunk(&top, "bin/app", 0);
    let mut touched: Vec<_> = taken.touched.into_iter().collect();
    touched.sort_unstable();
    assert_eq!(
        touched,
        [
            ((1, first + 1), 64 << 10),
            ((1, first + 2), 64 << 10),
            ((1, first + 3), 64 << 10),
            ((2, chunk(&base, "lib/libc", 0)), 10_000)
        ]
    );
    assert_eq!(taken.run.pages() * PAGE, 3 * PAGE);
}

#[test]
fn paths_asked_for_are_told_apart_as_found_and_missing() {
    let place = Place::new();
    let top = place.layer(1, &[small("bin/app")]);
    let base = place.layer(
        2,
        &[
            small("lib/libc"),
            Item::Link("usr", "."),
            small("etc/empty"),
        ],
    );
    let mut trace = trace(vec![1, 2], vec![touch(&top, "bin/app", 0, 1, 0)]);
    trace.opens = vec![
        open("/bin/app", true),
        open("/usr/lib/libc", true),
        open("/etc/empty", true),
        open("/etc/none", false),
        open("/proc/self/maps", true),
        open("/device", false),
        open("relative", false),
        open("/nul\0", false),
    ];
    let names = [
        (
            1,
            vec![
                (node(&top, "bin"), b"helper".as_slice().into()),
                (0, b"lib".as_slice().into()),
                (9999, b"x".as_slice().into()),
            ],
        ),
        (3, vec![(0, b"other image".as_slice().into())]),
    ];
    let taken = take(&trace, &[&top, &base], &names).unwrap();
    assert_eq!(taken.run.found, ["/etc/empty", "/lib", "/usr/lib/libc"]);
    assert_eq!(taken.run.missing, ["/bin/helper", "/device", "/etc/none"]);
}

#[test]
fn a_container_without_a_name_or_slots_is_known_by_its_layers() {
    let place = Place::new();
    let layer = place.layer(4, &[small("a")]);
    let mut nameless = trace(vec![], vec![touch(&layer, "a", 0, 1, 0)]);
    nameless.container.image = String::new();
    let taken = take(&nameless, &[&layer], &[]).unwrap();
    assert_eq!(
        (taken.identity.image.as_str(), taken.layers.len()),
        ("known:1", 1)
    );
}

#[test]
fn traces_that_teach_nothing_are_refused_with_a_reason() {
    let place = Place::new();
    let layer = place.layer(1, &[small("a")]);
    let error = take(
        &trace(vec![5], vec![touch(&layer, "a", 0, 1, 0)]),
        &[&layer],
        &[],
    )
    .unwrap_err()
    .to_string();
    assert!(
        error.contains("00ff") && error.contains("h/image:1") && error.contains("no layer"),
        "{error}"
    );
    let mut bad = trace(vec![1], vec![]);
    bad.run = "../../x".to_owned();
    let error = take(&bad, &[&layer], &[]).unwrap_err().to_string();
    assert!(error.contains("../../x"), "{error}");
}

#[test]
fn chunks_of_zeros_are_not_counted() {
    let place = Place::new();
    let layer = place.layer(1, &[Item::Zeros("hole", 8192)]);
    let taken = take(
        &trace(vec![1], vec![touch(&layer, "hole", 0, 2, 0)]),
        &[&layer],
        &[],
    )
    .unwrap();
    assert_eq!((taken.run.files.len(), taken.touched.len()), (1, 0));
}

mod hostile {
    use forelayer_profiler::model::Profile;
    use proptest::prelude::*;

    use super::*;

    fn any_touch() -> impl Strategy<Value = Touch> {
        let ino = prop_oneof![
            any::<u64>(),
            (0..4_u64, 0..12_u64).prop_map(|(slot, low)| slot << 32 | low),
        ];
        let page = prop_oneof![0..10_u64, any::<u64>()];
        let pages = prop_oneof![0..10_u32, any::<u32>()];
        let access = prop_oneof![Just(Access::Read), Just(Access::Map), Just(Access::Add)];
        (ino, page, pages, any::<i64>(), access).prop_map(|(ino, page, pages, at_us, access)| {
            Touch {
                ino,
                page,
                pages,
                at_us,
                access,
            }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn whatever_a_trace_says_its_run_can_be_kept_and_read_again(
            touches in proptest::collection::vec(any_touch(), 0..40),
            paths in proptest::collection::vec("[/a-c.\\x00]{0,12}", 0..8),
            slots in proptest::collection::vec(0..4_u32, 0..4),
            names in proptest::collection::vec((any::<u32>(), proptest::collection::vec(any::<u8>(), 0..4)), 0..8),
        ) {
            let place = Place::new();
            let top = place.layer(1, &[Item::File("a/b", "b", vec![9000, 4096, 1]), Item::Link("c", "a"), Item::Zeros("z", 9)]);
            let base = place.layer(2, &[small("a/c"), Item::Link("loop", "loop/x")]);
            let mut trace = trace(slots, touches);
            trace.opens = paths.iter().map(|path| open(path, true)).collect();
            trace.execs = paths.iter().map(|path| Exec { path: path.clone(), pid: 0, at_us: i64::MIN }).collect();
            let names: Names = names.into_iter().map(|(node, name)| (node % 5, name.into())).collect();
            if let Ok(taken) = take(&trace, &[&top, &base], &[(1, names)]) {
                let mut profile = Profile::new(taken.identity);
                profile.add(taken.run, 8);
                prop_assert_eq!(Profile::from_json(profile.to_json().as_bytes()).unwrap(), profile.clone());
                let prediction = model::predict(&[profile]);
                let locator = crate::prefetch::locate::Locator::new(&taken.layers);
                let kin = forelayer_profiler::profiles::Kin::Own;
                let planned = crate::prefetch::plan::plan("image", &prediction, kin, &locator).unwrap();
                let wanted: HashMap<ChunkKey, u64> = planned.bytes;
                prop_assert_eq!(wanted, taken.touched, "what was touched is what is predicted, chunk by chunk");
            }
        }
    }
}
