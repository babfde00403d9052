//! The other way: the whole image is downloaded and unpacked before it is started, as engines do without a layer store.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use forelayer_tests::fixtures::Layer;

/// Downloads manifest, configuration and all layers at the same time; unpacks each layer, as its bytes arrive, into a
/// directory of its own below `into`. Returns the directories, bottom first.
pub(crate) fn pull(
    host: &str,
    name: &str,
    tag: &str,
    layers: &[Layer],
    into: &Path,
) -> Result<Vec<PathBuf>> {
    let manifest = get(host, &format!("/v2/{name}/manifests/{tag}"))?;
    let manifest: serde_json::Value = serde_json::from_reader(manifest)?;
    let config = manifest["config"]["digest"]
        .as_str()
        .context("a manifest without configuration")?;
    std::io::copy(
        &mut get(host, &format!("/v2/{name}/blobs/{config}"))?,
        &mut std::io::sink(),
    )?;
    std::thread::scope(|scope| {
        let pulls: Vec<_> = layers
            .iter()
            .enumerate()
            .map(|(number, layer)| {
                let dir = into.join(number.to_string());
                scope.spawn(move || -> Result<PathBuf> {
                    fs::create_dir_all(&dir)?;
                    let blob = get(host, &format!("/v2/{name}/blobs/{}", layer.digest))?;
                    unpack(blob, &layer.media_type, &dir)
                        .with_context(|| format!("unpacking layer {}", layer.digest))?;
                    Ok(dir)
                })
            })
            .collect();
        pulls
            .into_iter()
            .map(|pull| pull.join().unwrap_or_else(|_| bail!("a download panicked")))
            .collect()
    })
}

fn unpack(blob: impl Read, media_type: &str, dir: &Path) -> Result<()> {
    let tar: Box<dyn Read> = if media_type.ends_with("zstd") {
        Box::new(zstd::Decoder::new(blob)?)
    } else {
        Box::new(flate2::read::MultiGzDecoder::new(blob))
    };
    let mut archive = tar::Archive::new(tar);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(true);
    archive.set_unpack_xattrs(false);
    archive.unpack(dir)?;
    Ok(())
}

/// A GET request on a connection of its own; the body.
fn get(host: &str, path: &str) -> Result<impl Read + use<>> {
    let stream = TcpStream::connect(host).with_context(|| format!("cannot reach {host}"))?;
    (&stream).write_all(
        format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes(),
    )?;
    let mut reader = BufReader::with_capacity(256 << 10, stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    if line.split(' ').nth(1) != Some("200") {
        bail!("{host} answers {:?} to {path}", line.trim());
    }
    let mut length = None;
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let header = line.trim();
        if header.is_empty() {
            break;
        }
        if let Some((name, value)) = header.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = Some(value.trim().parse::<u64>()?);
        }
    }
    let length = length.with_context(|| format!("{host} does not say how long {path} is"))?;
    Ok(reader.take(length))
}

/// The page at a URL path, as text.
pub(crate) fn page(host: &str, path: &str) -> Result<String> {
    let mut text = String::new();
    get(host, path)?.read_to_string(&mut text)?;
    Ok(text)
}
