//! Why the witness cannot see, in one sentence that says what to do.

use crate::protocol::Level;

use super::btf::BtfError;

/// Why the witness cannot see.
#[derive(Debug, thiserror::Error)]
pub enum WitnessError {
    /// The kernel's event descriptions are not to be had.
    #[error(
        "no tracefs at /sys/kernel/tracing or /sys/kernel/debug/tracing, and {reason}; run as root, or mount it: \
         mount -t tracefs tracefs /sys/kernel/tracing"
    )]
    NoTracefs {
        /// Why it could not be mounted.
        reason: String,
    },
    /// The kernel refuses eBPF to this process.
    #[error(
        "the kernel refuses eBPF programs to this process ({reason}); run as root or with CAP_BPF and CAP_PERFMON, \
         outside a container, and see whether kernel lockdown is in force"
    )]
    NotAllowed {
        /// What was refused.
        reason: String,
    },
    /// No rung works here, or not the one that was asked for.
    #[error(
        "this kernel has nothing to watch page-cache touches with: {reasons}{}",
        if *.forced { "; choose another `witness.level`" } else { "" }
    )]
    NoLevel {
        /// One reason a rung.
        reasons: String,
        /// The rung was asked for.
        forced: bool,
    },
    /// The kernel took a program when it was tried and refuses it now.
    #[error("cannot attach the program `{program}` to {target}: {source}")]
    Attach {
        /// The program.
        program: &'static str,
        /// The event or function.
        target: String,
        /// What aya says.
        #[source]
        source: Box<aya::programs::ProgramError>,
    },
    /// A map could not be read or written.
    #[error("cannot {what}: {source}")]
    Map {
        /// What was tried.
        what: &'static str,
        /// What aya says.
        #[source]
        source: Box<aya::maps::MapError>,
    },
    /// The embedded object could not be loaded.
    #[error("cannot load the eBPF object: {0}")]
    Object(#[from] Box<aya::EbpfError>),
    /// The embedded object lacks a part that the loader expects: they were not built from the same sources.
    #[error("the eBPF object has no {0}; rebuild it: cargo xtask build-ebpf")]
    Incomplete(String),
    /// The kernel's type information is of no use.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// Not inside a tokio runtime, or its event queue cannot be used.
    #[error("cannot wait for events: {0}")]
    Wait(#[from] std::io::Error),
}

impl WitnessError {
    /// Whether the next attempt would fail in the same way, as long as nobody changes rights or kernel.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        matches!(
            self,
            Self::NoTracefs { .. } | Self::NotAllowed { .. } | Self::NoLevel { .. }
        )
    }

    /// The rung that was tried, and why it does not work, as part of [`WitnessError::NoLevel`].
    pub(super) fn reason(level: Level, reason: &str) -> String {
        format!("level {}: {reason}", level_name(level))
    }
}

/// The name of a rung as the configuration writes it.
pub(super) fn level_name(level: Level) -> &'static str {
    match level {
        Level::Tracepoints => "tracepoints",
        Level::Kprobes => "kprobes",
        Level::Add => "add",
        Level::Off => "off",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_kernel_lacks_or_forbids_is_final() {
        let reason = || "why".to_owned();
        for error in [
            WitnessError::NoTracefs { reason: reason() },
            WitnessError::NotAllowed { reason: reason() },
            WitnessError::NoLevel {
                reasons: reason(),
                forced: true,
            },
        ] {
            assert!(error.is_final(), "{error}");
        }
        // Memory or descriptors may be there the next time.
        let short = || std::io::Error::from_raw_os_error(libc::ENOMEM);
        for error in [
            WitnessError::Wait(short()),
            WitnessError::Incomplete(reason()),
            WitnessError::Object(Box::new(aya::EbpfError::FileError {
                path: "/x".into(),
                error: short(),
            })),
        ] {
            assert!(!error.is_final(), "{error}");
        }
    }
}
