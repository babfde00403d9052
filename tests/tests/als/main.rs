//! The whole store on real mounts (root and /dev/fuse), against the embedded registry: what an engine and a container
//! see of a layer, and what the registry sees of them.
#![expect(clippy::unwrap_used, reason = "tests")]

mod lab;
mod overlay;
mod protocol;
mod reads;
mod restart;
mod role;
mod tree;

use std::{fs::File, process::ExitCode};

use libtest_mimic::{Arguments, Completion, Failed, Trial};

fn main() -> ExitCode {
    if let Some(code) = role::play() {
        return code;
    }
    let missing = missing();
    let trial = |name: &str, test: fn() -> Result<(), Failed>| {
        let reason = missing.clone();
        Trial::ignorable_test(name, move || match reason {
            Some(reason) => Ok(Completion::ignored_with(reason)),
            None => test().map(|()| Completion::Completed),
        })
    };
    let tests = vec![
        trial("tree_of_estargz", tree::estargz),
        trial("tree_of_zstd_chunked", tree::zstd_chunked),
        trial("tree_of_old_zstd_chunked", tree::old_zstd_chunked),
        trial("ten_thousand_names_are_listed", tree::ten_thousand_names),
        trial(
            "what_is_looked_up_ahead_sends_nothing",
            tree::looked_up_ahead,
        ),
        trial("two_references_share_one_tree", tree::two_references),
        trial("contract_with_the_blob_digest", protocol::by_blob_digest),
        trial("contract_with_the_toc_digest", protocol::by_toc_digest),
        trial("ordinary_images_are_left_to_the_engine", protocol::ordinary),
        trial("names_that_are_none_are_refused", protocol::refused_names),
        trial(
            "each_engine_that_starts_is_seen",
            protocol::engines_are_seen,
        ),
        trial("reads_are_whole", reads::whole),
        trial("who_reads_on_is_met_on_the_way", reads::followed),
        trial("wrong_bytes_never_reach_a_reader", reads::wrong_bytes),
        trial("raw_blobs_are_proven_by_their_last_read", reads::raw_blob),
        trial("a_second_mount_asks_for_nothing", overlay::second_mount),
        trial("opaque_directories_and_whiteouts_work", overlay::whiteouts),
        trial("a_killed_store_is_not_noticed", restart::killed),
        trial(
            "metadata_needs_no_network_after_a_restart",
            restart::without_network,
        ),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

/// Why these tests cannot run here.
fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root: mounts".to_owned());
    }
    File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .err()
        .map(|error| format!("needs /dev/fuse: {error}"))
}
