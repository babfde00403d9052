//! Loading the object and finding the rung.

use aya::{Ebpf, EbpfLoader};

use super::btf::Btf;
use super::error::{WitnessError, level_name};
use super::formats;
use super::ladder::{self, Hook, Layout};
use super::links::{self, Attached};
use crate::protocol::Level;

/// Built from `ebpf/` by `cargo xtask build-ebpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../ebpf/forelayer.bpf.o");

/// The rungs, best first.
const LADDER: [Level; 3] = [Level::Tracepoints, Level::Kprobes, Level::Add];

/// A loaded object with a rung that attaches.
pub(super) struct Opened {
    pub(super) ebpf: Ebpf,
    pub(super) level: Level,
    /// What a window attaches.
    pub(super) hooks: Vec<Hook>,
    /// What was attached to see that it attaches.
    pub(super) attached: Vec<Attached>,
}

pub(super) fn open(choice: Option<Level>) -> Result<Opened, WitnessError> {
    let forced = choice.is_some();
    let unusable = |reasons| WitnessError::NoLevel {
        reasons,
        forced: false,
    };
    let events = formats::events_dir()?;
    let (processes, fork_child) = ladder::processes(&events).map_err(unusable)?;
    let layout = Layout::new(&Btf::of_kernel());
    let mut ebpf = load_object(&layout, fork_child)?;

    let mut reasons = Vec::new();
    let mut found = None;
    for level in LADDER
        .into_iter()
        .filter(|level| choice.is_none_or(|choice| choice == *level))
    {
        match ladder::page_cache(level, &events, &layout)
            .and_then(|sets| first_that_attaches(&mut ebpf, &sets))
        {
            Ok((hooks, attached)) => {
                found = Some((level, hooks, attached));
                break;
            }
            Err(reason) => reasons.push(WitnessError::reason(level, &reason)),
        }
    }
    let Some((level, mut hooks, mut attached)) = found else {
        return Err(WitnessError::NoLevel {
            reasons: reasons.join("; "),
            forced,
        });
    };
    attached.extend(attach_all(&mut ebpf, &processes).map_err(unusable)?);
    hooks.extend(processes);
    match ladder::opens(&events)
        .and_then(|opens| attach_all(&mut ebpf, &opens).map(|there| (opens, there)))
    {
        Ok((opens, there)) => {
            hooks.extend(opens);
            attached.extend(there);
        }
        Err(reason) => tracing::warn!(reason, "opens are not recorded; touches are"),
    }
    if !forced && level != LADDER[0] {
        tracing::info!(
            level = level_name(level),
            reasons = reasons.join("; "),
            "the witness uses a lower level"
        );
    }
    Ok(Opened {
        ebpf,
        level,
        hooks,
        attached,
    })
}

fn load_object(layout: &Layout, fork_child: u32) -> Result<Ebpf, WitnessError> {
    let own = mount_namespace("self").unwrap_or(0);
    // Not readable without privilege over process 1: then only our own counts as the host's.
    let host = mount_namespace("1").unwrap_or(own);
    let mut loader = EbpfLoader::new();
    // Nothing in the object is relocated by BTF, and parsing the kernel's takes 50 ms.
    loader.btf(None);
    for (name, value) in &layout.globals {
        loader.override_global(name, value, true);
    }
    loader.override_global("OWN_MNT_NS", &own, true);
    loader.override_global("HOST_MNT_NS", &host, true);
    loader.override_global("FORK_CHILD", &fork_child, true);
    loader.load(OBJECT).map_err(|error| match refusal(&error) {
        Some(reason) => WitnessError::NotAllowed { reason },
        None => WitnessError::Object(Box::new(error)),
    })
}

/// The first of these sets of which every program loads and attaches; the error is the reason of the last.
fn first_that_attaches(
    ebpf: &mut Ebpf,
    sets: &[Vec<Hook>],
) -> Result<(Vec<Hook>, Vec<Attached>), String> {
    let mut reason = String::new();
    for hooks in sets {
        match attach_all(ebpf, hooks) {
            Ok(attached) => return Ok((hooks.clone(), attached)),
            Err(error) => reason = error,
        }
    }
    Err(reason)
}

fn attach_all(ebpf: &mut Ebpf, hooks: &[Hook]) -> Result<Vec<Attached>, String> {
    hooks
        .iter()
        .map(|hook| {
            links::load(ebpf, hook.program).map_err(|error| chain(&error))?;
            links::attach(ebpf, *hook).map_err(|error| chain(&error))
        })
        .collect()
}

/// The inode number in `/proc/<process>/ns/mnt`.
fn mount_namespace(process: &str) -> Option<u32> {
    let link = std::fs::read_link(format!("/proc/{process}/ns/mnt")).ok()?;
    link.to_str()?
        .strip_prefix("mnt:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

/// The system's own message, if the error comes from a refused system call.
fn refusal(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && io.kind() == std::io::ErrorKind::PermissionDenied
        {
            return Some(io.to_string());
        }
        next = error.source();
    }
    None
}

/// An error and what caused it, in one line; aya's messages leave the cause to the reader.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}
