#![expect(clippy::unwrap_used, reason = "tests")]

use std::{io, path::Path, sync::Arc};

use proptest::prelude::*;

use super::{
    BlobCache, Cache, CacheError, ChunkState, Geometry,
    disk::RealDisk,
    stamp::Machine,
    testing::{Layer, MemoryDisk},
};
use crate::digest::Digest;

const STATE: &str = "/state";

fn machine(boot: u32) -> Machine {
    Machine {
        boot_id: format!("boot-{boot}"),
        new_epoch: u128::from(boot) + 1,
    }
}

fn open(disk: &MemoryDisk, boot: u32) -> Cache {
    Cache::open_on(Arc::new(disk.clone()), Path::new(STATE), &machine(boot)).unwrap()
}

fn blob(cache: &Cache, layer: &Layer) -> Arc<BlobCache> {
    cache.blob_of(Arc::new(layer.clone())).unwrap()
}

fn put(blob: &BlobCache, layer: &Layer, chunk: u32) -> Result<(), CacheError> {
    if layer.extent(chunk).unwrap().zeros {
        blob.commit_zeros(chunk)
    } else {
        blob.commit(chunk..chunk + 1, &layer.bytes(chunk))
    }
}

fn get(blob: &BlobCache, layer: &Layer, chunk: u32) -> Vec<u8> {
    let extent = layer.extent(chunk).unwrap();
    let mut bytes = vec![0xaa; usize::try_from(extent.len).unwrap()];
    blob.read_at(extent.offset, &mut bytes).unwrap();
    bytes
}

/// Invariant 1: whatever is present, or proves to be, is right.
fn check(blob: &BlobCache, layer: &Layer, prove: bool) {
    for chunk in 0..layer.chunk_count() {
        if prove && blob.state(chunk) == ChunkState::Unproven {
            blob.prove(chunk).unwrap();
        }
        if blob.state(chunk) == ChunkState::Present {
            assert_eq!(get(blob, layer, chunk), layer.bytes(chunk), "chunk {chunk}");
        }
    }
}

fn path(layer: &Layer, name: &str) -> std::path::PathBuf {
    Path::new(STATE)
        .join("blobs/sha256")
        .join(layer.blob().hex())
        .join(name)
}

#[test]
fn what_was_committed_is_there_after_a_clean_stop() {
    let (disk, layer) = (MemoryDisk::default(), Layer::new(500));
    let cache = open(&disk, 1);
    assert!(!cache.trusted());
    for chunk in (0..500).step_by(3) {
        put(&blob(&cache, &layer), &layer, chunk).unwrap();
    }
    cache.close().unwrap();
    disk.lose_power(|| false);

    let cache = open(&disk, 2);
    assert!(cache.trusted());
    let blob = blob(&cache, &layer);
    for chunk in 0..500 {
        let expected = if chunk % 3 == 0 {
            ChunkState::Present
        } else {
            ChunkState::Missing
        };
        assert_eq!(blob.state(chunk), expected, "chunk {chunk}");
    }
    assert_eq!(blob.progress().0, 167);
    check(&blob, &layer, false);
}

#[test]
fn a_killed_store_loses_nothing_within_one_boot() {
    let (disk, layer) = (MemoryDisk::default(), Layer::new(40));
    put(&blob(&open(&disk, 1), &layer), &layer, 7).unwrap();
    let again = open(&disk, 1);
    assert_eq!(blob(&again, &layer).state(7), ChunkState::Present);
}

#[test]
fn distrust_outlives_a_second_start_in_the_same_boot() {
    let (disk, layer) = (MemoryDisk::default(), Layer::new(40));
    put(&blob(&open(&disk, 1), &layer), &layer, 7).unwrap();
    disk.lose_power(|| true);
    let state = |boot| blob(&open(&disk, boot), &layer).state(7);
    assert_eq!(state(2), ChunkState::Unproven);
    assert_eq!(state(2), ChunkState::Unproven);
}

#[test]
fn a_chunk_lost_with_the_power_is_missing_once_it_is_hashed() {
    let (disk, layer) = (MemoryDisk::default(), Layer::new(40));
    let first = open(&disk, 1);
    for chunk in [1, 2] {
        put(&blob(&first, &layer), &layer, chunk).unwrap();
    }
    disk.lose_power(|| true);
    let offset = usize::try_from(layer.extent(2).unwrap().offset).unwrap();
    disk.meddle(&path(&layer, "data"), |bytes| bytes[offset] ^= 1);
    let second = open(&disk, 2);
    let blob = blob(&second, &layer);
    assert!(blob.prove(1).unwrap());
    assert!(!blob.prove(2).unwrap());
    assert!(!blob.prove(3).unwrap());
    assert_eq!(blob.state(1), ChunkState::Present);
    assert_eq!(blob.state(2), ChunkState::Missing);
    put(&blob, &layer, 2).unwrap();
    check(&blob, &layer, false);
}

#[test]
fn zeros_over_leftovers_read_as_zeros() {
    let (disk, layer) = (MemoryDisk::default(), Layer::new(40));
    put(&blob(&open(&disk, 1), &layer), &layer, 4).unwrap();
    let offset = usize::try_from(layer.extent(4).unwrap().offset).unwrap();
    disk.meddle(&path(&layer, "data"), |bytes| bytes[offset] = 9);
    let second = open(&disk, 2);
    let blob = blob(&second, &layer);
    assert!(!blob.prove(4).unwrap());
    put(&blob, &layer, 4).unwrap();
    assert_eq!(get(&blob, &layer, 4), layer.bytes(4));
}

#[test]
fn a_damaged_map_is_not_believed() {
    type Damage = fn(&mut Vec<u8>);
    let whole: &[Damage] = &[
        |bytes| bytes[0] = 0,
        |bytes| bytes[8] = 9,
        |bytes| bytes[20] ^= 1,
        Vec::clear,
        |bytes| bytes.truncate(127),
        |bytes| bytes.push(0),
    ];
    let (disk, layer) = (MemoryDisk::default(), Layer::new(500));
    for damage in whole {
        let first = open(&disk, 1);
        put(&blob(&first, &layer), &layer, 1).unwrap();
        drop(first);
        disk.meddle(&path(&layer, "present"), damage);
        let again = open(&disk, 1);
        assert_eq!(blob(&again, &layer).progress(), (0, 0));
        put(&blob(&again, &layer), &layer, 2).unwrap();
        check(&blob(&again, &layer), &layer, true);
    }

    // One block: its chunks are gone, the others are hashed again.
    let first = open(&disk, 1);
    for chunk in [1, 300] {
        put(&blob(&first, &layer), &layer, chunk).unwrap();
    }
    disk.meddle(&path(&layer, "present"), |bytes| bytes[128] ^= 0xff);
    let again = open(&disk, 1);
    let blob = blob(&again, &layer);
    assert_eq!(blob.state(1), ChunkState::Missing);
    assert_eq!(blob.state(300), ChunkState::Unproven);
    check(&blob, &layer, true);
}

#[test]
fn another_toc_or_a_short_data_file_starts_anew() {
    let (disk, layer) = (MemoryDisk::default(), Layer::new(40));
    let cache = open(&disk, 1);
    put(&blob(&cache, &layer), &layer, 1).unwrap();
    let mut other = layer.clone();
    other.toc = Digest::of(b"other");
    let error = cache.blob_of(Arc::new(other.clone())).unwrap_err();
    assert!(matches!(error, CacheError::OtherToc { .. }), "{error}");

    let cache = open(&disk, 1);
    assert_eq!(blob(&cache, &other).state(1), ChunkState::Missing);
    put(&blob(&cache, &other), &other, 1).unwrap();
    disk.meddle(&path(&layer, "data"), |bytes| {
        bytes.pop();
    });
    let cache = open(&disk, 1);
    assert_eq!(blob(&cache, &other).state(1), ChunkState::Missing);
}

#[test]
fn a_full_disk_is_an_error_and_nothing_is_marked() {
    let (disk, layer) = (MemoryDisk::default(), Layer::new(40));
    let cache = open(&disk, 1);
    let blob = blob(&cache, &layer);
    put(&blob, &layer, 1).unwrap();
    disk.fail_from(Some(0), io::ErrorKind::StorageFull);
    let error = put(&blob, &layer, 2).unwrap_err();
    assert!(error.to_string().contains("data"), "{error}");
    assert_eq!(blob.state(2), ChunkState::Missing);
    disk.fail_from(None, io::ErrorKind::Other);
    put(&blob, &layer, 2).unwrap();
    check(&blob, &layer, false);
}

#[test]
fn a_full_disk_after_an_unclean_stop_takes_no_layer_away() {
    let (disk, layer) = (MemoryDisk::default(), Layer::new(40));
    put(&blob(&open(&disk, 1), &layer), &layer, 7).unwrap();
    disk.lose_power(|| true);
    let cache = open(&disk, 2);
    disk.fail_from(Some(0), io::ErrorKind::StorageFull);
    let blob = blob(&cache, &layer);
    assert_eq!(blob.state(7), ChunkState::Unproven);
    assert!(blob.prove(7).unwrap());
    check(&blob, &layer, false);
    // What could not be written anew is not believed at the next start either.
    disk.fail_from(None, io::ErrorKind::Other);
    disk.lose_power(|| true);
    assert_eq!(
        super::tests::blob(&open(&disk, 3), &layer).state(7),
        ChunkState::Unproven
    );
}

#[test]
fn wrong_lengths_and_numbers_are_refused() {
    let (disk, layer) = (MemoryDisk::default(), Layer::new(40));
    let cache = open(&disk, 1);
    let blob = blob(&cache, &layer);
    assert!(blob.commit(1..2, b"too short").is_err());
    assert!(blob.commit(40..41, b"").is_err());
    assert!(blob.commit_zeros(1).is_err());
    assert_eq!(blob.state(1), ChunkState::Missing);
    assert_eq!(blob.state(u32::MAX), ChunkState::Missing);
    assert!(!blob.all_present(39..41));
    assert!(blob.all_present(7..7));
}

#[test]
fn nothing_is_written_after_close() {
    let (disk, layer) = (MemoryDisk::default(), Layer::new(40));
    let cache = open(&disk, 1);
    let blob = blob(&cache, &layer);
    put(&blob, &layer, 1).unwrap();
    cache.close().unwrap();
    cache.close().unwrap();
    assert!(matches!(put(&blob, &layer, 2), Err(CacheError::Closed)));
    assert_eq!(get(&blob, &layer, 1), layer.bytes(1));
}

#[test]
fn two_who_ask_for_a_blob_share_it() {
    let (disk, layer) = (MemoryDisk::default(), Layer::new(40));
    let cache = open(&disk, 1);
    assert!(Arc::ptr_eq(&blob(&cache, &layer), &blob(&cache, &layer)));
}

#[test]
fn the_real_disk_does_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let layer = Layer::new(500);
    let open = |boot| Cache::open_on(Arc::new(RealDisk), directory.path(), &machine(boot)).unwrap();
    let cache = open(1);
    let shared = blob(&cache, &layer);
    // The pool's threads commit at the same time; none of the bits may get lost.
    std::thread::scope(|scope| {
        for part in 0..4 {
            let (shared, layer) = (&shared, &layer);
            scope.spawn(move || {
                for chunk in (part..500).step_by(4) {
                    put(shared, layer, chunk).unwrap();
                }
            });
        }
    });
    drop(cache);
    let killed = open(1);
    assert_eq!(blob(&killed, &layer).progress(), (500, layer.data_len()));
    check(&blob(&killed, &layer), &layer, false);
    killed.close().unwrap();
    let rebooted = open(2);
    assert!(blob(&rebooted, &layer).all_present(0..500));
    drop(rebooted);
    let crashed = open(3);
    let unproven = blob(&crashed, &layer);
    assert_eq!(unproven.state(0), ChunkState::Unproven);
    check(&unproven, &layer, true);
    assert!(unproven.all_present(0..500));
}

#[derive(Debug, Clone)]
enum Step {
    Commit(u32),
    Prove(u32),
    Kill,
    CleanStop,
    LosePower { clean: bool, survivors: Vec<bool> },
    Fail(Option<usize>),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..300_u32).prop_map(Step::Commit),
        3 => (0..300_u32).prop_map(Step::Prove),
        2 => Just(Step::Kill),
        1 => Just(Step::CleanStop),
        3 => (any::<bool>(), proptest::collection::vec(any::<bool>(), 1..40))
            .prop_map(|(clean, survivors)| Step::LosePower { clean, survivors }),
        1 => proptest::option::of(0..20_usize).prop_map(Step::Fail),
    ]
}

proptest! {
    #[test]
    fn no_chunk_is_ever_present_with_wrong_bytes(
        steps in proptest::collection::vec(step(), 1..80)
    ) {
        let (disk, layer) = (MemoryDisk::default(), Layer::new(300));
        let mut boot = 1;
        let mut cache = open(&disk, boot);
        for step in steps {
            match step {
                Step::Commit(chunk) => { let _ = put(&blob(&cache, &layer), &layer, chunk); }
                Step::Prove(chunk) => { let _ = blob(&cache, &layer).prove(chunk); }
                Step::Fail(at) => disk.fail_from(at, io::ErrorKind::StorageFull),
                Step::Kill | Step::CleanStop | Step::LosePower { .. } => {
                    if matches!(step, Step::CleanStop | Step::LosePower { clean: true, .. }) {
                        let _ = cache.close();
                    }
                    disk.fail_from(None, io::ErrorKind::Other);
                    if let Step::LosePower { survivors, .. } = step {
                        let mut survivors = survivors.into_iter().cycle();
                        disk.lose_power(|| survivors.next().unwrap());
                        boot += 1;
                    }
                    cache = open(&disk, boot);
                }
            }
            // Not proving here: what is unproven must stay so over restarts too.
            check(&blob(&cache, &layer), &layer, false);
        }
        disk.fail_from(None, io::ErrorKind::Other);
        check(&blob(&cache, &layer), &layer, true);
    }

    #[test]
    fn any_file_can_be_loaded(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let (disk, layer) = (MemoryDisk::default(), Layer::new(40));
        let first = open(&disk, 1);
        put(&blob(&first, &layer), &layer, 1).unwrap();
        disk.meddle(&path(&layer, "present"), |file| {
            let at = file.len().min(bytes.len());
            file[..at].copy_from_slice(&bytes[..at]);
        });
        disk.meddle(&Path::new(STATE).join("cache.stamp"), |file| *file = bytes);
        let again = open(&disk, 1);
        check(&blob(&again, &layer), &layer, true);
    }

    #[test]
    fn all_present_is_each_present(
        set in proptest::collection::vec(0..200_u32, 0..300), from in 0..200_u32, len in 0..80_u32
    ) {
        let presence = super::presence::Presence::empty(200);
        for chunk in &set {
            presence.set(*chunk, None, ChunkState::Present);
        }
        let range = from..(from + len).min(200);
        let each = range.clone().all(|chunk| set.contains(&chunk));
        prop_assert_eq!(presence.all_present(range), each);
    }
}

#[test]
fn a_run_of_chunks_is_stored_whole_and_known_after_a_restart() {
    let (disk, layer) = (MemoryDisk::default(), Layer::new(500));
    // Over the end of the map's first block, of 224 chunks.
    let (first, end) = (200, 250);
    let bytes: Vec<u8> = (first..end).flat_map(|chunk| layer.bytes(chunk)).collect();
    let cache = open(&disk, 1);
    {
        let blob = blob(&cache, &layer);
        // One byte too few: nothing of it.
        assert!(blob.commit(first..end, &bytes[1..]).is_err());
        assert_eq!(blob.progress().0, 0);
        // One of them is there already.
        put(&blob, &layer, first + 1).unwrap();
        blob.commit(first..end, &bytes).unwrap();
        assert_eq!(blob.progress().0, end - first);
        check(&blob, &layer, false);
    }
    cache.close().unwrap();
    drop(cache);
    let cache = open(&disk, 1);
    let blob = blob(&cache, &layer);
    assert!(blob.all_present(first..end));
    assert_eq!(blob.progress().0, end - first);
    check(&blob, &layer, false);
}
