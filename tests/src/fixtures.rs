//! Images made by code: layers in all formats, configurations, manifests and indexes, from lists of tar entries or from
//! files of the host.
//!
//! ```
//! use forelayer_tests::fixtures::{Entry, Image, ImageConfig, Layer, Lazy};
//!
//! let entries = [Entry::dir("etc"), Entry::file("etc/motd", "hello\n").mode(0o600)];
//! let layer = Layer::build(&entries, &Lazy::estargz())?;
//! let image = Image::new(&[layer], &ImageConfig::default())?;
//! assert!(image.blobs.len() == 2 && image.manifests.len() == 1);
//! # anyhow::Ok(())
//! ```
//!
//! Invariant: the writers follow the formats' own documents and share no code with the store's readers, so that a test
//! with both tests both.

mod compress;
mod entry;
mod estargz;
mod host;
mod image;
mod layer;
mod tarball;
mod zstd_chunked;

pub use entry::{Entry, Kind};
pub use host::HostTree;
pub use image::{Image, ImageConfig, Manifest};
pub use layer::{Landmark, Layer, Lazy, ZstdNames};

use sha2::{Digest as _, Sha256};

/// `sha256:<hex>` of some bytes.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}
