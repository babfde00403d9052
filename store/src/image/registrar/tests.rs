#![expect(clippy::unwrap_used, reason = "tests")]

use std::{fs, path::Path};

use super::*;
use crate::{
    format::{LayerFormat, LayerIndex, footer::TocPlace, limits::Limits, toc},
    image::staged::Place,
};

const SIZE: u64 = 1 << 20;

/// A registrar on a directory, without its thread.
struct Bench {
    dir: tempfile::TempDir,
    desk: Desk,
}

fn desk(state: &Path) -> Desk {
    let mut desk = Desk {
        records: Records::open(state).unwrap(),
        cache: Arc::new(Cache::open(state).unwrap()),
        tables: Arc::default(),
        metrics: Arc::new(Metrics::new()),
        highest_slot: 0,
    };
    desk.load().unwrap();
    desk
}

fn blob() -> Digest {
    Digest::of(b"a blob")
}

fn repository(name: &str) -> Repository {
    Repository {
        host: "registry.example".to_owned(),
        name: name.to_owned(),
    }
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let desk = desk(dir.path());
        Self { dir, desk }
    }

    /// The same directory in the next life of the store.
    fn restart(&mut self) {
        self.desk = desk(self.dir.path());
    }

    fn blob_dir(&self) -> std::path::PathBuf {
        self.desk.cache.blob_dir(&blob()).unwrap()
    }

    /// An index as a lookup builds it, of a layer that holds one directory.
    fn stage(&self, name: &str, size: u64) -> Staged {
        let json = format!(r#"{{"version":1,"entries":[{{"name":"{name}/","type":"dir"}}]}}"#);
        let section = zstd::encode_all(json.as_bytes(), 0).unwrap();
        let place = TocPlace {
            offset: 0,
            len: section.len() as u64,
            raw_len: Some(json.len() as u64),
            format: LayerFormat::ZstdChunked,
        };
        let at = Place::new(&self.blob_dir());
        let limits = Limits::default();
        let facts =
            toc::build_index(&section, &place, blob(), size, None, &limits, at.path()).unwrap();
        at.holds(facts)
    }

    /// Registers an image of the repository with this layer.
    fn register(&mut self, repository_name: &str, staged: Staged) -> Result<Refused, LookupError> {
        let accepted = RecordedLayer {
            blob: blob(),
            toc: staged.facts.toc,
            diff_id: Digest::of(b"a tar"),
            size: 0,
            toc_bytes: None,
        };
        self.ask(repository_name, accepted, vec![staged])
    }

    fn ask(
        &mut self,
        repository_name: &str,
        accepted: RecordedLayer,
        staged: Vec<Staged>,
    ) -> Result<Refused, LookupError> {
        self.desk.register(&Request {
            reference: format!("registry.example/{repository_name}:latest"),
            repository: repository(repository_name),
            accepted: vec![accepted],
            config: None,
            staged,
            reply: oneshot::channel().0,
        })
    }

    fn layer(&self) -> Arc<Layer> {
        Arc::clone(&self.desk.tables.by_blob.get(&blob()).unwrap())
    }

    /// What the index on disk holds.
    fn on_disk(&self) -> Digest {
        let index = LayerIndex::open(&self.blob_dir().join("index"), true).unwrap();
        index.facts().toc
    }

    fn unfinished(&self) -> usize {
        fs::read_dir(self.blob_dir())
            .unwrap()
            .filter(|entry| {
                let name = entry.as_ref().unwrap().file_name();
                name.to_string_lossy().starts_with("index.")
            })
            .count()
    }
}

#[test]
fn an_image_does_not_replace_the_tree_of_another() {
    let mut bench = Bench::new();
    // Both were built before either was registered.
    let (good, evil) = (bench.stage("good", SIZE), bench.stage("evil", SIZE));
    let toc = good.facts.toc;
    assert!(bench.register("victim", good).unwrap().is_empty());
    let refused = bench.register("evil", evil).unwrap();
    let why = refused[0].1.to_string();
    assert!(
        why.contains("registry.example/evil") && why.contains(&toc.to_string()),
        "{why}"
    );
    assert_eq!(bench.layer().index.facts().toc, toc);
    assert_eq!(bench.on_disk(), toc);
    assert_eq!(bench.layer().sources(), [repository("victim")]);
    assert!(
        bench.desk.tables.by_reference.len() == 1,
        "nothing is recorded of it"
    );
    assert_eq!(bench.unfinished(), 0);
    let other_size = bench.stage("good", SIZE + 1);
    assert_eq!(bench.register("evil", other_size).unwrap().len(), 1);
}

#[test]
fn a_layer_that_was_left_out_keeps_its_toc() {
    let mut bench = Bench::new();
    let good = bench.stage("good", SIZE);
    let toc = good.facts.toc;
    bench.register("victim", good).unwrap();
    let slot = bench.layer().slot;
    fs::write(bench.blob_dir().join("index"), "damaged").unwrap();
    bench.restart();
    assert!(bench.desk.tables.by_blob.is_empty());
    let evil = bench.stage("evil", SIZE);
    let refused = bench.register("evil", evil).unwrap();
    let why = refused[0].1.to_string();
    assert!(why.contains("before") && why.contains("remove"), "{why}");
    let good = bench.stage("good", SIZE);
    assert!(bench.register("victim", good).unwrap().is_empty());
    assert_eq!((bench.layer().slot, bench.on_disk()), (slot, toc));
}

#[test]
fn an_index_other_than_the_recorded_one_is_left_out() {
    let mut bench = Bench::new();
    let (good, evil) = (bench.stage("good", SIZE), bench.stage("evil", SIZE));
    bench.register("victim", good).unwrap();
    evil.put(&bench.blob_dir().join("index")).unwrap();
    bench.restart();
    assert!(bench.desk.tables.by_blob.is_empty());
    // A meta of an earlier version names no TOC: then the image's record is what tells.
    let meta = bench.blob_dir().join("meta.json");
    let mut document: serde_json::Value =
        serde_json::from_slice(&fs::read(&meta).unwrap()).unwrap();
    document.as_object_mut().unwrap().remove("toc").unwrap();
    fs::write(&meta, document.to_string()).unwrap();
    bench.restart();
    let image = bench.desk.tables.by_reference.iter().next().unwrap();
    assert!(image.keys.is_empty() && image.layers.is_empty());
}

#[test]
fn an_index_of_an_unfinished_lookup_goes_at_the_next_start() {
    let mut bench = Bench::new();
    let staged = bench.stage("good", SIZE);
    std::mem::forget(staged);
    assert_eq!(bench.unfinished(), 1);
    bench.restart();
    assert_eq!(bench.unfinished(), 0);
}

#[test]
fn further_repositories_come_behind_the_first_and_never_in_its_place() {
    let mut bench = Bench::new();
    for number in 0..12 {
        let staged = bench.stage("good", SIZE);
        let name = format!("image-{number}");
        assert!(bench.register(&name, staged).unwrap().is_empty());
    }
    let expected: Vec<_> = (0..8).map(|n| repository(&format!("image-{n}"))).collect();
    assert_eq!(bench.layer().sources(), expected);
    bench.restart();
    assert_eq!(bench.layer().sources(), expected);
}

#[test]
fn damaged_records_of_slots_do_not_keep_layers_from_being_served() {
    let mut bench = Bench::new();
    let staged = bench.stage("good", SIZE);
    bench.register("a", staged).unwrap();
    assert_eq!(bench.layer().slot, 1);
    fs::write(bench.blob_dir().join("meta.json"), "{").unwrap();
    fs::write(bench.dir.path().join("slots.json"), "{").unwrap();
    bench.restart();
    assert!(bench.desk.tables.by_blob.is_empty());
    let staged = bench.stage("good", SIZE);
    assert!(bench.register("a", staged).unwrap().is_empty());
    assert_eq!(bench.layer().slot, 2, "1 may be what the kernel knows");
    assert!(bench.blob_dir().join("meta.json.bad").exists());
    bench.restart();
    assert_eq!(bench.layer().slot, 2);
}
