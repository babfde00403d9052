//! What the rows share: a registry in this process, a store, and plain requests to compare with.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use forelayer_tests::{
    engine::{
        cache, environment::Environment, namespace::Namespace, store::Store, store::layer_path,
        work::WorkDir,
    },
    fixtures::{Image, ImageConfig, Layer, Lazy},
    registry::{Content, Server},
};

/// Milliseconds of each request wherever a row says nothing else.
pub(super) const LATENCY: Duration = Duration::from_millis(50);

/// Fetches what is asked for and what the store thinks of by itself, but not the whole image.
pub(super) const NO_BACKGROUND: &str = "[fetch]\nbackground = false\n";

/// A repository and a name for it, of each format that is read.
pub(super) const FORMATS: [(&str, &str, Lazy); 2] = [
    ("estargz", "eStargz", Lazy::estargz()),
    ("zstd", "zstd:chunked", Lazy::zstd_chunked()),
];

/// The fields are dropped in this order.
pub(super) struct Lab {
    pub(super) server: Server,
    program: PathBuf,
    work: WorkDir,
}

/// An image in the lab's registry.
pub(super) struct Published {
    /// As engines write it.
    pub(super) reference: String,
    /// Keys of its layers, bottom first.
    pub(super) keys: Vec<String>,
}

impl Lab {
    /// An empty registry without latency.
    pub(super) fn new(program: &Path) -> Result<Self> {
        Ok(Self {
            work: WorkDir::new(&cache::directory())?,
            server: Server::start(Content::default())?,
            program: program.to_path_buf(),
        })
    }

    /// A store that does not run yet, with these lines in its configuration.
    pub(super) fn store(&self, name: &str, options: &str) -> Result<Store<'_>> {
        Store::with_program(&self.work, name, options, &self.program)
    }

    /// Podman 5.4.2's namespace.
    pub(super) fn engine(&self, environment: &Environment) -> Result<Namespace> {
        Namespace::new(&self.work, "podman5", Some(&environment.debian13))
    }

    /// A directory that goes with the lab.
    pub(super) fn directory(&self, name: &str) -> Result<PathBuf> {
        self.work.directory(name)
    }

    /// Puts an image of these layers into the registry.
    pub(super) fn publish(&self, repository: &str, layers: &[Layer]) -> Result<Published> {
        let image = Image::new(layers, &ImageConfig::default())?;
        self.server.content().add_image(repository, "1", &image);
        Ok(Published {
            reference: format!("{}/{repository}:1", self.server.host()),
            keys: layers
                .iter()
                .map(|layer| layer.toc_digest.clone())
                .collect(),
        })
    }

    /// Asks for a blob as any program would; answers its bytes.
    pub(super) fn get(&self, path: &str, range: Option<(u64, u64)>) -> Result<u64> {
        let host = self.server.host();
        let mut stream = TcpStream::connect(&host)?;
        let range = range.map_or_else(String::new, |(first, last)| {
            format!("Range: bytes={first}-{last}\r\n")
        });
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: {host}\r\n{range}Connection: close\r\n\r\n"
        )?;
        let mut buffer = vec![0; 1 << 20];
        let mut filled = 0;
        let (body, status) = loop {
            let read = stream.read(&mut buffer[filled..])?;
            ensure!(read > 0, "no answer to {path}");
            filled += read;
            let end = buffer[..filled]
                .windows(4)
                .position(|four| four == b"\r\n\r\n");
            if let Some(end) = end {
                break (filled - end - 4, buffer[9..12].to_vec());
            }
        };
        ensure!(
            status.first() == Some(&b'2'),
            "{path} was answered with {}",
            status.escape_ascii()
        );
        let mut bytes = body as u64;
        loop {
            match stream.read(&mut buffer)? {
                0 => return Ok(bytes),
                read => bytes += read as u64,
            }
        }
    }
}

impl Published {
    /// The layers' directories as an engine asks for them, bottom first.
    pub(super) fn layers(&self, store: &Store<'_>) -> Vec<PathBuf> {
        let mount = store.mount();
        (self.keys.iter())
            .map(|key| layer_path(&mount, &self.reference, key).join("diff"))
            .collect()
    }

    /// Has the store look the image up; answers the trees of its layers, past the control mount's links.
    pub(super) fn trees(&self, store: &Store<'_>) -> Result<Vec<PathBuf>> {
        (self.layers(store).iter())
            .map(|layer| {
                fs::canonicalize(layer).with_context(|| {
                    format!(
                        "the store does not serve it; its log ends:\n{}",
                        store.log_end("serve")
                    )
                })
            })
            .collect()
    }
}

/// Starts the store as one that knows nothing.
pub(super) fn afresh(store: &mut Store<'_>) -> Result<()> {
    store.stop()?;
    if store.state_dir().exists() {
        store.forget()?;
        let profiles = store.state_dir().join("profiles");
        if profiles.exists() {
            fs::remove_dir_all(&profiles)?;
        }
    }
    store.start()
}
