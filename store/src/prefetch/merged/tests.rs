#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::prefetch::testing::{Item, Place, node, small};

fn lookups(tree: Merged<'_>) -> Vec<(usize, String)> {
    (tree.into_lookups().into_iter())
        .map(|lookup| (lookup.layer, String::from_utf8(lookup.path).unwrap()))
        .collect()
}

fn expect(layer: usize, path: &str) -> (usize, String) {
    (layer, path.to_owned())
}

#[test]
fn every_layer_is_asked_until_the_name_is_found() {
    let place = Place::new();
    let top = place.layer(1, &[small("usr/bin/new")]);
    let base = place.layer(2, &[small("usr/bin/old"), small("etc/hosts")]);
    let layers = [Arc::clone(&top), Arc::clone(&base)];
    let mut tree = Merged::new(&layers);
    assert_eq!(
        tree.resolve(b"/usr/bin/old").unwrap(),
        Some((1, node(&base, "usr/bin/old")))
    );
    assert_eq!(
        tree.resolve(b"/usr//bin/./new").unwrap(),
        Some((0, node(&top, "usr/bin/new")))
    );
    assert_eq!(tree.resolve(b"/usr/bin/none").unwrap(), None);
    assert_eq!(tree.resolve(b"/usr/bin/old/below").unwrap(), None);
    assert_eq!(
        lookups(tree),
        [
            expect(0, "usr"),
            expect(1, "usr"),
            expect(0, "usr/bin"),
            expect(1, "usr/bin"),
            expect(0, "usr/bin/old"),
            expect(1, "usr/bin/old"),
            expect(0, "usr/bin/new"),
            expect(0, "usr/bin/none"),
            expect(1, "usr/bin/none"),
        ]
    );
}

#[test]
fn links_are_followed_in_the_image_and_loops_end() {
    let place = Place::new();
    let layer = place.layer(
        1,
        &[
            small("usr/lib/libc.so"),
            Item::Link("lib", "usr/lib"),
            Item::Link("usr/lib/abs", "/lib/libc.so"),
            Item::Link("usr/lib/up", "../../../../usr/lib/libc.so"),
            Item::Link("loop", "loop"),
        ],
    );
    let layers = [Arc::clone(&layer)];
    let mut tree = Merged::new(&layers);
    let libc = Some((0, node(&layer, "usr/lib/libc.so")));
    for path in [
        "/lib/libc.so",
        "/lib/abs",
        "/usr/lib/up",
        "/../lib/../lib/libc.so",
    ] {
        assert_eq!(tree.resolve(path.as_bytes()).unwrap(), libc, "{path}");
    }
    assert_eq!(tree.resolve(b"/loop").unwrap(), None);
    assert_eq!(
        tree.resolve(b"/lib").unwrap(),
        Some((0, node(&layer, "usr/lib")))
    );
    let lookups = lookups(tree);
    assert!(lookups.contains(&expect(0, "lib")) && lookups.contains(&expect(0, "usr/lib/libc.so")));
    assert!(
        lookups
            .iter()
            .all(|(_, path)| !path.starts_with("lib/") && !path.contains("..")),
        "{lookups:?}"
    );
}

#[test]
fn whiteouts_and_opaque_directories_hide_what_is_below() {
    let place = Place::new();
    let top = place.layer(1, &[Item::Whiteout("etc/gone"), Item::Opaque("var")]);
    let base = place.layer(2, &[small("etc/gone"), small("etc/kept"), small("var/log")]);
    let layers = [top, Arc::clone(&base)];
    let mut tree = Merged::new(&layers);
    assert_eq!(tree.resolve(b"/etc/gone").unwrap(), None);
    assert_eq!(tree.resolve(b"/var/log").unwrap(), None);
    assert_eq!(
        tree.resolve(b"/etc/kept").unwrap(),
        Some((1, node(&base, "etc/kept")))
    );
    let lookups = lookups(tree);
    assert!(
        !lookups.contains(&expect(1, "etc/gone")) && !lookups.contains(&expect(1, "var")),
        "{lookups:?}"
    );
}
