//! The images are what docs/formats.md and the other tests take them for: written by the tools, in today's and
//! yesterday's variants.

use anyhow::{Context as _, Result, ensure};
use forelayer_tests::engine::images::{Format, IMAGES, architecture};

use crate::{Test, lab::Lab};

pub(crate) fn add(tests: &mut Vec<Test>) {
    for format in Format::LAZY {
        tests.push((
            format!("images::announce_their_tocs::{}", format.name()),
            Box::new(move |lab| announced(lab, format)),
        ));
    }
    tests.push((
        "images::are_large_and_share_layers".into(),
        Box::new(shared),
    ));
}

/// Every layer has the annotation of its format, and a TOC with that digest where it says.
fn announced(lab: &Lab, format: Format) -> Result<()> {
    let name = match format {
        Format::Zstd4 => "io.containers.zstd-chunked.manifest-checksum",
        Format::Zstd5 => "io.github.containers.zstd-chunked.manifest-checksum",
        Format::Estargz => "containerd.io/snapshot/stargz/toc.digest",
        Format::Gzip => unreachable!("not a lazy format"),
    };
    for image in IMAGES.iter().filter(|image| format.has(image)) {
        for layer in lab.image(format, image)?.layers {
            ensure!(
                layer.annotations.contains_key(name),
                "{image}: the layer {} has no annotation {name}",
                layer.blob
            );
            let toc = lab
                .stored
                .toc(&layer)
                .with_context(|| format!("{image}: the TOC of {}", layer.blob))?;
            ensure!(toc["version"] == 1, "{image}: a TOC of another version");
        }
    }
    Ok(())
}

fn shared(lab: &Lab) -> Result<()> {
    for format in [Format::Zstd5, Format::Estargz] {
        let python = lab.image(format, "python")?;
        let postgres = lab.image(format, "postgres")?;
        ensure!(python.layers.len() == 2 && postgres.layers.len() == 2);
        ensure!(
            python.layers[0].blob == postgres.layers[0].blob,
            "the images do not share their base"
        );
        for (name, image) in [("python", &python), ("postgres", &postgres)] {
            let mut bytes = 0;
            for layer in &image.layers {
                let toc = lab.stored.toc(layer)?;
                let entries = toc["entries"].as_array().context("a TOC without entries")?;
                bytes += entries
                    .iter()
                    .filter(|entry| entry["type"] == "reg")
                    .filter_map(|entry| entry["size"].as_u64())
                    .sum::<u64>();
            }
            ensure!(bytes >= 150 << 20, "{name} has only {bytes} bytes of files");
        }
        let multi = lab.stored.image(format, "multi", architecture())?;
        ensure!(
            multi.digest == python.digest,
            "the index names another image"
        );
    }
    Ok(())
}
