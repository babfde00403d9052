//! Counters of the kernel's messages, one a mount and operation, looked up once.

use prometheus_client::metrics::counter::Counter;

use crate::{
    metrics::{ByOp, Metrics},
    mount::MountName,
};

macro_rules! ops {
    ($($op:ident),* $(,)?) => {
        /// How often the kernel sent each message on one mount.
        #[derive(Debug)]
        pub(crate) struct Ops {
            $(pub(crate) $op: Counter,)*
        }

        impl Ops {
            /// The counters of a mount.
            pub(crate) fn new(metrics: &Metrics, mount: MountName) -> Self {
                // A function of its own: each look-up holds the family's lock until its statement ends.
                let counter = |op| {
                    let mount = mount.as_str();
                    metrics.fuse_requests.get_or_create_owned(&ByOp { mount, op })
                };
                Self {
                    $($op: counter(stringify!($op)),)*
                }
            }
        }
    };
}

ops! {
    lookup, getattr, readlink, open, read, flush, release, opendir, readdir, readdirplus, releasedir, statfs, getxattr,
    listxattr, create, rmdir, forget, ioctl, lseek, other,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_the_pages() {
        let metrics = Metrics::new();
        let ops = Ops::new(&metrics, MountName::Plain);
        ops.statfs.inc();
        let again = Ops::new(&metrics, MountName::Plain);
        assert_eq!(
            again.statfs.get(),
            1,
            "one counter, however often looked up"
        );
        let row = "forelayer_fuse_requests_total{mount=\"plain\",op=\"statfs\"} 1";
        assert!(metrics.page().contains(row));
    }
}
