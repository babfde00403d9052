//! An image without a lazy format is pulled as if there were no store.

use anyhow::{Result, ensure};
use forelayer_tests::engine::{
    images::Format,
    podman::{Generation, Podman},
};

use crate::{Test, lab::Lab};

pub(crate) fn add(tests: &mut Vec<Test>) {
    for generation in Generation::ALL {
        tests.push((
            format!("ordinary::same_image::{}", generation.name()),
            Box::new(move |lab| same(lab, generation)),
        ));
    }
}

fn pull(lab: &Lab, podman: &Podman<'_>, reference: &str) -> Result<(String, Vec<String>)> {
    let mark = lab.images.mark()?;
    podman.run(&["pull", reference])?;
    let facts = podman.run(&[
        "image",
        "inspect",
        "--format",
        "{{.Id}} {{.Digest}} {{.RootFS.Layers}} {{.Size}}",
        reference,
    ])?;
    let mut blobs: Vec<String> = lab
        .images
        .requests_since(mark)?
        .iter()
        .filter_map(|request| {
            request
                .blob()
                .map(|blob| format!("{} {blob}", request.status))
        })
        .collect();
    blobs.sort_unstable();
    Ok((facts, blobs))
}

fn same(lab: &Lab, generation: Generation) -> Result<()> {
    let reference = lab.reference(Format::Gzip, "python");
    let expected = pull(lab, &lab.podman(generation, None)?, &reference)?;
    // Everything on: neither the background lane nor prefetching has anything to do here.
    let store = lab.running("")?;
    let podman = lab.podman(generation, Some(&store.mount()))?;
    let found = pull(lab, &podman, &reference)?;
    ensure!(
        found == expected,
        "with the store the pull is {found:?}, without it {expected:?}"
    );
    let mut lookups = Vec::new();
    for result in ["served", "no", "refused", "failed"] {
        lookups.push(store.metric(&format!("forelayer_lookups_total{{result=\"{result}\"}}"))?);
    }
    // Podman 5 does not even ask for layers without an annotation.
    let asked = match generation {
        Generation::ByBlob => 2.0,
        Generation::ByToc => 0.0,
    };
    ensure!(
        lookups == [0.0, asked, 0.0, 0.0],
        "lookups served, no, refused, failed: {lookups:?}"
    );
    ensure!(
        store.metric("forelayer_layers")? == 0.0,
        "a layer is served"
    );
    let answer = podman.run(&["run", "--rm", &reference, "python3", "-c", "print(6 * 7)"])?;
    ensure!(answer == "42", "the container says {answer:?}");
    Ok(())
}
