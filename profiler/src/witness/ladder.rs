//! The rungs: which program hangs where, and what must hold before it may.
//!
//! Invariant kept here: a rung is chosen by what the kernel has and takes, never by its version.

use std::path::Path;

use super::btf::{Btf, BtfError};
use super::formats::{Field, Format, field};
use crate::protocol::Level;

/// One program at one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hook {
    /// The program's name in the object.
    pub(super) program: &'static str,
    /// Where it hangs.
    pub(super) target: Target,
}

/// Where a program hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// An event: category and name.
    Event(&'static str, &'static str),
    /// The entry of a kernel function.
    Function(&'static str),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Event(category, name) => write!(f, "the event {category}:{name}"),
            Self::Function(name) => write!(f, "the kernel function {name}"),
        }
    }
}

const fn event(program: &'static str, category: &'static str, name: &'static str) -> Hook {
    Hook {
        program,
        target: Target::Event(category, name),
    }
}

const fn function(program: &'static str, name: &'static str) -> Hook {
    Hook {
        program,
        target: Target::Function(name),
    }
}

/// A structure's member whose offset a program wants: (variable of the object, structure, members outermost first).
type Wanted = (&'static str, &'static str, &'static [&'static str]);

/// For the mount namespace in every record.
const NAMESPACE: [Wanted; 3] = [
    ("TASK_NSPROXY", "task_struct", &["nsproxy"]),
    ("NSPROXY_MNT_NS", "nsproxy", &["mnt_ns"]),
    ("MNT_NS_INUM", "mnt_namespace", &["ns", "inum"]),
];

/// For the kprobes.
const PROBES: [Wanted; 10] = [
    ("KIOCB_FILP", "kiocb", &["ki_filp"]),
    ("KIOCB_POS", "kiocb", &["ki_pos"]),
    ("ITER_COUNT", "iov_iter", &["count"]),
    ("FILE_INODE", "file", &["f_inode"]),
    ("INODE_INO", "inode", &["i_ino"]),
    ("INODE_SB", "inode", &["i_sb"]),
    ("SB_DEV", "super_block", &["s_dev"]),
    ("VMF_VMA", "vm_fault", &["vma"]),
    ("VMF_PGOFF", "vm_fault", &["pgoff"]),
    ("VMA_FILE", "vm_area_struct", &["vm_file"]),
];

/// What the kernel's type information gives: values for the object's variables, and what the kprobes may do.
#[derive(Debug)]
pub(super) struct Layout {
    /// Values of the object's variables.
    pub(super) globals: Vec<(&'static str, u32)>,
    /// The sets of kprobes to try, best first; or why there are none.
    probes: Result<Vec<Vec<Hook>>, String>,
}

impl Layout {
    /// From the kernel's BTF, or from its absence: then records name no mount namespace and there are no kprobes.
    pub(super) fn new(btf: &Result<Btf, BtfError>) -> Self {
        let btf = match btf {
            Ok(btf) => btf,
            Err(error) => {
                return Self {
                    globals: Vec::new(),
                    probes: Err(error.to_string()),
                };
            }
        };
        let mut globals = offsets(btf, &NAMESPACE).unwrap_or_default();
        let probes = if cfg!(target_arch = "x86_64") {
            offsets(btf, &PROBES).map(|found| {
                globals.extend(found);
                let around = [
                    function("probe_map_pages", "filemap_map_pages"),
                    function("probe_fault", "filemap_fault"),
                ];
                let mut sets = Vec::new();
                if let Some(has_iter) = btf.parameter_is_pointer("filemap_get_pages", 1) {
                    globals.push(("GET_PAGES_HAS_ITER", u32::from(has_iter)));
                    sets.push(
                        [
                            &around[..],
                            &[function("probe_get_pages", "filemap_get_pages")],
                        ]
                        .concat(),
                    );
                }
                if btf.parameter_is_pointer("filemap_read", 1) == Some(true) {
                    sets.push([&around[..], &[function("probe_read", "filemap_read")]].concat());
                }
                sets
            })
        } else {
            Err("the kprobes are written for x86-64".to_owned())
        };
        Self { globals, probes }
    }
}

fn offsets(btf: &Btf, wanted: &[Wanted]) -> Result<Vec<(&'static str, u32)>, String> {
    wanted
        .iter()
        .map(|(global, structure, path)| {
            btf.offset(structure, path)
                .map(|offset| (*global, offset))
                .ok_or_else(|| format!("this kernel's BTF has no {structure}.{}", path.join(".")))
        })
        .collect()
}

/// Where the kernel says that it has kprobes.
const KPROBES: &str = "/sys/bus/event_source/devices/kprobe";

const INO_DEV: [Field; 2] = [field("i_ino", 8, 8), field("s_dev", 16, 4)];
const INDEX: Field = field("index", 24, 8);
const LAST_INDEX: Field = field("last_index", 32, 8);
const ADD: [Field; 3] = [field("i_ino", 16, 8), INDEX, field("s_dev", 32, 4)];
const ORDER: Field = field("order", 36, 1);

/// The sets of programs of a rung, to be tried in this order; or why there is none.
pub(super) fn page_cache(
    level: Level,
    events: &Path,
    layout: &Layout,
) -> Result<Vec<Vec<Hook>>, String> {
    match level {
        Level::Tracepoints => {
            let range = [&INO_DEV[..], &[INDEX, LAST_INDEX]].concat();
            let page = [&INO_DEV[..], &[INDEX]].concat();
            Format::read(events, "filemap", "mm_filemap_get_pages")?.check(&range)?;
            Format::read(events, "filemap", "mm_filemap_map_pages")?.check(&range)?;
            Format::read(events, "filemap", "mm_filemap_fault")?.check(&page)?;
            Ok(vec![vec![
                event("map_pages", "filemap", "mm_filemap_map_pages"),
                event("fault", "filemap", "mm_filemap_fault"),
                event("get_pages", "filemap", "mm_filemap_get_pages"),
            ]])
        }
        Level::Kprobes if !Path::new(KPROBES).exists() => {
            Err("this kernel has no kprobes".to_owned())
        }
        Level::Kprobes => match &layout.probes {
            Ok(sets) if sets.is_empty() => {
                Err("this kernel's BTF has neither filemap_get_pages nor filemap_read".to_owned())
            }
            Ok(sets) => Ok(sets.clone()),
            Err(reason) => Err(reason.clone()),
        },
        Level::Add => {
            let format = Format::read(events, "filemap", "mm_filemap_add_to_page_cache")?;
            format.check(&ADD)?;
            // A record without `order` counts single pages; one with it elsewhere is not known.
            let program = if format.field(ORDER.name).is_none() {
                "add_page"
            } else {
                format.check(&[ORDER])?;
                "add_folio"
            };
            Ok(vec![vec![event(
                program,
                "filemap",
                "mm_filemap_add_to_page_cache",
            )]])
        }
        Level::Off => Ok(vec![Vec::new()]),
    }
}

/// Programs started, made and ended; and the place of the child's number in the record of a fork.
pub(super) fn processes(events: &Path) -> Result<(Vec<Hook>, u32), String> {
    Format::read(events, "sched", "sched_process_exec")?.check(&[field("filename", 8, 4)])?;
    let fork = Format::read(events, "sched", "sched_process_fork")?;
    let (child, 4) = fork.field("child_pid").unwrap_or_default() else {
        return Err("the event sched:sched_process_fork has no `child_pid` of 4 bytes".to_owned());
    };
    Format::read(events, "sched", "sched_process_exit")?;
    let hooks = vec![
        event("exec", "sched", "sched_process_exec"),
        event("fork", "sched", "sched_process_fork"),
        event("exit", "sched", "sched_process_exit"),
    ];
    Ok((hooks, child))
}

/// The calls that open a file by name. One that the kernel lacks is left out; the error says why there are none.
pub(super) fn opens(events: &Path) -> Result<Vec<Hook>, String> {
    let at = [field("dfd", 16, 8), field("filename", 24, 8)];
    let plain = [field("filename", 16, 8)];
    let calls: [(&'static str, &'static str, &'static str, &[Field]); 3] = [
        ("enter_openat", "sys_enter_openat", "sys_exit_openat", &at),
        ("enter_openat", "sys_enter_openat2", "sys_exit_openat2", &at),
        ("enter_open", "sys_enter_open", "sys_exit_open", &plain),
    ];
    let mut hooks = Vec::new();
    let mut reasons = Vec::new();
    for (program, enter, exit, fields) in calls {
        let usable = Format::read(events, "syscalls", enter)
            .and_then(|format| format.check(fields))
            .and_then(|()| Format::read(events, "syscalls", exit))
            .and_then(|format| format.check(&[field("ret", 16, 8)]));
        match usable {
            Ok(()) => hooks.extend([
                event(program, "syscalls", enter),
                event("exit_open", "syscalls", exit),
            ]),
            Err(reason) => reasons.push(reason),
        }
    }
    if hooks.is_empty() {
        Err(reasons.join("; "))
    } else {
        Ok(hooks)
    }
}
