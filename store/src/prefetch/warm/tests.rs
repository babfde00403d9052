#![expect(clippy::unwrap_used, reason = "tests")]

use std::{fs, os::unix::fs::PermissionsExt};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::*;
use crate::prefetch::testing::{Item, Place, bring, bytes_of, chunk, node, small};

/// Remembers what it was given, as (slot, node, offset, bytes).
#[derive(Default)]
struct Kernel(Mutex<Vec<Stored>>);

type Stored = (u32, NodeId, u64, Vec<u8>);

impl PageStore for Kernel {
    fn store(
        &self,
        layer: &Layer,
        node: NodeId,
        offset: u64,
        bytes: &[u8],
    ) -> Result<u64, als::WarmError> {
        self.0
            .lock()
            .push((layer.slot, node, offset, bytes.to_vec()));
        Ok(bytes.len() as u64)
    }
}

fn warmer(program: PathBuf, store: Option<Arc<dyn PageStore>>) -> Warmer {
    Warmer {
        program,
        layers_dir: "/layers".into(),
        store,
        names: Arc::default(),
        max_paths: 100,
        max_bytes: 1 << 20,
        metrics: Arc::new(Metrics::new()),
    }
}

fn pages(layer: &Arc<Layer>, path: &str, bytes: std::ops::Range<u64>) -> PlannedPages {
    PlannedPages {
        layer: Arc::clone(layer),
        node: node(layer, path),
        bytes,
        at_us: 0,
    }
}

/// A program that writes its arguments and input to a file, or does what `script` says instead.
fn program(place: &Place, script: &str) -> PathBuf {
    let path = place.dir.path().join("program");
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[tokio::test]
async fn pages_are_stored_from_their_chunks_as_these_arrive_and_end_with_the_file() {
    let place = Place::new();
    let items = [
        small("before"),
        Item::File("lib", "lib", vec![8192, 8192, 100]),
    ];
    let layer = place.layer(1, &items);
    let first = chunk(&layer, "lib", 0);
    bring(&layer, first + 1, &items);
    let kernel = Arc::new(Kernel::default());
    let warmer = warmer(
        "/none".into(),
        Some(Arc::clone(&kernel) as Arc<dyn PageStore>),
    );
    // The last chunk never comes; the first does while it is waited for.
    let wanted = vec![
        pages(&layer, "lib", 12_288..16_384),
        pages(&layer, "lib", 4096..12_288),
        pages(&layer, "lib", 16_384..16_484),
    ];
    let (arrived, arriving) = oneshot::channel::<()>();
    let bring_first = async {
        tokio::task::yield_now().await;
        bring(&layer, first, &items);
        drop(arrived);
    };
    let (stored, ()) = tokio::join!(
        warmer.pages(wanted, async { drop(arriving.await) }),
        bring_first
    );
    assert_eq!(stored, 4096 + 8192);
    assert_eq!(warmer.metrics.warmed_bytes.get(), stored);
    let lib = node(&layer, "lib");
    let content = [bytes_of("lib", 0, 8192), bytes_of("lib", 1, 8192)].concat();
    let mut got = kernel.0.lock().clone();
    got.sort();
    assert_eq!(
        got,
        [
            (1, lib, 4096, content[4096..12_288].to_vec()),
            (1, lib, 12_288, content[12_288..].to_vec())
        ]
    );

    bring(&layer, first + 2, &items);
    kernel.0.lock().clear();
    assert_eq!(
        warmer
            .pages(vec![pages(&layer, "lib", 16_384..16_484)], async {})
            .await,
        100
    );
    assert_eq!(
        *kernel.0.lock(),
        [(1, lib, 16_384, bytes_of("lib", 2, 100))]
    );
}

#[tokio::test]
async fn pages_stay_within_the_budget_first_needed_first() {
    let place = Place::new();
    let items = [small("a"), small("b"), small("c")];
    let layer = place.layer(1, &items);
    (0..3).for_each(|chunk| bring(&layer, chunk, &items));
    let kernel = Arc::new(Kernel::default());
    let mut warmer = warmer(
        "/none".into(),
        Some(Arc::clone(&kernel) as Arc<dyn PageStore>),
    );
    warmer.max_bytes = 8192;
    let wanted = ["c", "a", "b"]
        .map(|path| pages(&layer, path, 0..4096))
        .to_vec();
    assert_eq!(warmer.pages(wanted, async {}).await, 8192);
    let got: Vec<NodeId> = kernel
        .0
        .lock()
        .iter()
        .map(|(_, node, _, _)| *node)
        .collect();
    assert_eq!(got, [node(&layer, "c"), node(&layer, "a")]);
    warmer.max_bytes = 0;
    assert_eq!(
        warmer
            .pages(vec![pages(&layer, "a", 0..4096)], async {})
            .await,
        0
    );
}

#[tokio::test]
async fn the_child_is_told_every_lookup_of_the_paths() {
    let place = Place::new();
    let top = place.layer(7, &[small("usr/app")]);
    let base = place.layer(3, &[small("usr/lib"), Item::Opaque("opt")]);
    let out = place.dir.path().join("out");
    let program = program(
        &place,
        &format!("printf '%s\\0' \"$@\" > {0}; cat >> {0}", out.display()),
    );
    let warmer = warmer(program, None);
    let paths = vec!["/usr/lib".to_owned(), "/none".to_owned()];
    assert_eq!(warmer.dentries(vec![top, base], paths).await.unwrap(), 6);
    let told = String::from_utf8(fs::read(out).unwrap()).unwrap();
    let told: Vec<&str> = told.split_terminator('\0').collect();
    assert_eq!(
        told,
        [
            "warm",
            "--layers",
            "/layers",
            "plain/7/diff/usr",
            "xattr/3/diff/usr",
            "plain/7/diff/usr/lib",
            "xattr/3/diff/usr/lib",
            "plain/7/diff/none",
            "xattr/3/diff/none",
        ]
    );
}

#[tokio::test]
async fn a_directory_of_which_much_is_wanted_is_listed_once() {
    let place = Place::new();
    let much = [
        small("much/a"),
        small("much/b"),
        small("much/c"),
        small("much/d/e"),
    ];
    let top = place.layer(7, &much);
    let little = ["a", "b", "c", "d", "e", "f"];
    let little = little.map(|name| small(String::leak(format!("little/{name}"))));
    let base = place.layer(3, &little);
    let out = place.dir.path().join("out");
    let warmer = warmer(program(&place, &format!("cat > {}", out.display())), None);
    let wanted = [
        "much/b",
        "much/c",
        "much/none",
        "much/d/e",
        "little/a",
        "little/b",
        "little/c",
    ];
    let paths = wanted.map(|path| format!("/{path}")).to_vec();
    assert_eq!(warmer.dentries(vec![top, base], paths).await.unwrap(), 12);
    let told = String::from_utf8(fs::read(out).unwrap()).unwrap();
    let told: Vec<&str> = told.split_terminator('\0').collect();
    assert_eq!(
        told,
        [
            "plain/7/diff/much",
            "plain/3/diff/much",
            "plain/7/diff/much/",
            "plain/7/diff/much/b",
            "plain/7/diff/much/c",
            "plain/7/diff/much/none",
            "plain/7/diff/much/d",
            "plain/7/diff/much/d/e",
            "plain/7/diff/little",
            "plain/3/diff/little",
            "plain/3/diff/little/a",
            "plain/3/diff/little/b",
            "plain/3/diff/little/c",
        ]
    );
}

#[tokio::test]
async fn a_child_that_fails_or_is_not_there_is_named() {
    let place = Place::new();
    let layer = place.layer(1, &[small("a")]);
    let failing = warmer(program(&place, "echo it broke >&2; exit 3"), None);
    let error = failing
        .dentries(vec![Arc::clone(&layer)], vec!["/a".to_owned()])
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("exit status: 3") && error.contains("it broke"),
        "{error}"
    );
    let gone = warmer("/no/such/program".into(), None);
    let error = gone
        .dentries(vec![Arc::clone(&layer)], vec!["/a".to_owned()])
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("/no/such/program"), "{error}");
    assert_eq!(
        gone.dentries(vec![layer], vec![]).await.unwrap(),
        0,
        "without paths no child is needed"
    );
}

#[test]
fn the_child_looks_up_what_it_is_told_and_nothing_outside() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("plain/1/diff")).unwrap();
    let listings = b"plain/1/\0plain/1/none/\0".as_slice();
    look_up(dir.path(), b"plain/1/diff\0plain/1/diff/none\0".as_slice()).unwrap();
    look_up(dir.path(), listings).unwrap();
    look_up(dir.path(), b"".as_slice()).unwrap();
    for (input, words) in [
        (b"plain/../../etc\0".as_slice(), "refuses"),
        (b"/etc\0".as_slice(), "refuses"),
        (b"plain/1".as_slice(), "does not run"),
    ] {
        let error = look_up(dir.path(), input).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}
