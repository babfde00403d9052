//! The duties of a virtual machine's only program: the file systems that a system would have mounted, the modules that
//! it would have loaded, and switching the machine off.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use rustix::mount::{MountFlags, mount};

/// Whether this process is the machine's first.
#[must_use]
pub fn is_init() -> bool {
    std::process::id() == 1
}

/// Mounts what programs expect and loads the modules of `/modules`, in the order of their names.
///
/// # Errors
/// The machine cannot be used.
pub fn set_up() -> Result<()> {
    let mounts = [
        ("proc", "/proc", "proc"),
        ("sysfs", "/sys", "sysfs"),
        ("devtmpfs", "/dev", "devtmpfs"),
        ("tmpfs", "/tmp", "tmpfs"),
        ("cgroup2", "/sys/fs/cgroup", "cgroup2"),
    ];
    for (source, place, kind) in mounts {
        fs::create_dir_all(place).with_context(|| format!("cannot make {place}"))?;
        mount(source, place, kind, MountFlags::empty(), None)
            .with_context(|| format!("cannot mount {place}"))?;
    }
    if Path::new("/modules").is_dir() {
        let mut modules: Vec<_> = fs::read_dir("/modules")?.collect::<Result<_, _>>()?;
        modules.sort_by_key(fs::DirEntry::file_name);
        for module in modules {
            let path = module.path();
            let file = fs::File::open(&path)?;
            rustix::system::finit_module(&file, c"", 0)
                .with_context(|| format!("cannot load {}", path.display()))?;
        }
    }
    Ok(())
}

/// The value of `name=value` on the kernel's command line.
#[must_use]
pub fn argument(name: &str) -> Option<String> {
    let line = fs::read_to_string("/proc/cmdline").ok()?;
    line.split_whitespace().find_map(|word| {
        word.strip_prefix(name)?
            .strip_prefix('=')
            .map(str::to_owned)
    })
}

/// Switches the machine off; does not return where it can.
pub fn switch_off() {
    let _ = rustix::system::reboot(rustix::system::RebootCommand::Restart);
}
