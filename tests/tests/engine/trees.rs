//! The tree that a container sees is the tree of a normal pull.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use forelayer_tests::engine::{
    images::Format,
    podman::Generation,
    tree::{self, Tree},
};

use crate::{
    Test, for_each_lazy,
    lab::{DEMAND_ONLY, Lab},
};

pub(crate) fn add(tests: &mut Vec<Test>) {
    for_each_lazy(tests, "trees::hard", |lab, generation, format| {
        equal(lab, generation, format, "hard")
    });
    for_each_lazy(tests, "trees::python", |lab, generation, format| {
        equal(lab, generation, format, "python")
    });
    for format in [Format::Zstd5, Format::Estargz] {
        tests.push((
            format!("trees::two_references_at_once::{}", format.name()),
            Box::new(move |lab| at_once(lab, format)),
        ));
    }
}

fn equal(lab: &Lab, generation: Generation, format: Format, image: &str) -> Result<()> {
    let reference = lab.reference(format, image);
    let mut expected = Tree::clone(&*lab.tree(image)?);
    ensure!(
        expected.len() > 5000,
        "the normal pull has {} names",
        expected.len()
    );
    if format == Format::Zstd4 {
        // Podman 4.3.1 leaves empty values out of the TOC it writes: no reader of it can know them.
        for entry in expected.values_mut() {
            entry.attributes.retain(|_, value| !value.is_empty());
        }
    }
    let store = lab.running(DEMAND_ONLY)?;
    let podman = lab.podman(generation, Some(&store.mount()))?;
    podman.run(&["pull", &reference])?;
    ensure!(
        store.metric("forelayer_layers")? >= 2.0,
        "the layers are not served"
    );
    let found = podman.with_image(&reference, tree::read)?;
    compare(format, expected, &found)
}

/// `expected` as the engines leave it after a normal pull.
fn compare(format: Format, mut expected: Tree, found: &Tree) -> Result<()> {
    // A normal pull skips a layer's entry of its own root: the mode there is 0555 and the time that of the pull. A lazy
    // one shows the entry, or the same mode and the epoch where the layer has none.
    let root = Path::new("");
    if let (Some(expected), Some(found)) = (expected.get_mut(root), found.get(root)) {
        ensure!(
            [0o40555, 0o40755].contains(&found.mode),
            "the root's mode is {:o}",
            found.mode
        );
        (expected.mode, expected.mtime) = (found.mode, found.mtime);
    }
    if format == Format::Estargz {
        // The converter rounds times to whole seconds in the layer it writes, where the original has fractions that a
        // normal pull of the original cuts off.
        for (path, entry) in &mut expected {
            if found
                .get(path)
                .is_some_and(|found| found.mtime == entry.mtime + 1)
            {
                entry.mtime += 1;
            }
        }
    }
    let lines = tree::differences(&expected, found);
    if !lines.is_empty() {
        bail!("the trees differ:\n{}", lines.join("\n"));
    }
    Ok(())
}

/// One layer under two references, in two storages, mounted and walked at the same time.
fn at_once(lab: &Lab, format: Format) -> Result<()> {
    let (base, python) = (
        lab.reference(format, "base"),
        lab.reference(format, "python"),
    );
    let store = lab.running(DEMAND_ONLY)?;
    let one = lab.podman(Generation::ByToc, Some(&store.mount()))?;
    let two = lab.podman(Generation::ByToc, Some(&store.mount()))?;
    one.run(&["pull", &base])?;
    two.run(&["pull", &python])?;
    let (first, second) = one.with_image(&base, |base| {
        two.with_image(&python, |python| {
            let read = |path: &Path| tree::read(path);
            std::thread::scope(|scope| {
                let other = scope.spawn(|| read(python));
                let first = read(base)?;
                Ok((first, other.join().expect("the thread does not panic")?))
            })
        })
    })?;
    compare(format, Tree::clone(&*lab.tree("base")?), &first)?;
    compare(format, Tree::clone(&*lab.tree("python")?), &second)
}
