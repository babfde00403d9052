//! How much memory a process has.

use std::fs;

use anyhow::{Context as _, Result};

/// Resident memory, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Memory {
    /// All of it now.
    pub(super) resident: u64,
    /// Of that, what no file stands behind: the rest is pages of indexes, caches and the program, which the kernel takes
    /// back when it likes.
    pub(super) anonymous: u64,
    /// The most that it ever was.
    pub(super) peak: u64,
}

impl Memory {
    pub(super) fn of(process: u32) -> Result<Self> {
        let path = format!("/proc/{process}/status");
        let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let field =
            |name: &str| field(&status, name).with_context(|| format!("{path} names no {name}"));
        Ok(Self {
            resident: field("VmRSS:")?,
            anonymous: field("RssAnon:")?,
            peak: field("VmHWM:")?,
        })
    }
}

/// A line of /proc/PID/status in kB, in bytes.
fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_figures_are_read() {
        let own = Memory::of(std::process::id()).expect("a process");
        assert!(own.anonymous < own.resident && own.resident <= own.peak + (1 << 20));
        assert_eq!(
            field("VmPeak:\t 9 kB\nVmRSS:\t  20 kB\n", "VmRSS:"),
            Some(20480)
        );
    }
}
