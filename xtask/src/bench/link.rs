//! The registry's link.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Serialize, Serializer};

/// Latency and bandwidth, written `MS:MBIT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Link {
    /// Milliseconds added to each request and each connection.
    latency_ms: u64,
    /// Megabits a second over all connections; 0: as fast as it goes.
    mbit: u64,
}

impl Link {
    pub(super) fn latency(self) -> Duration {
        Duration::from_millis(self.latency_ms)
    }

    /// Bytes a second; `None`: as fast as it goes.
    pub(super) fn bandwidth(self) -> Option<u64> {
        (self.mbit > 0).then_some(self.mbit * 1_000_000 / 8)
    }
}

impl FromStr for Link {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text} is not MS:MBIT, as 50:1000");
        let (latency, rate) = text.split_once(':').ok_or_else(wrong)?;
        let link = Self {
            latency_ms: latency.parse().map_err(|_| wrong())?,
            mbit: rate.parse().map_err(|_| wrong())?,
        };
        // A day and a terabit: no product of them overflows.
        if link.latency_ms > 86_400_000 || link.mbit > 1_000_000 {
            return Err(format!("{text} is no link"));
        }
        Ok(link)
    }
}

impl fmt::Display for Link {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} ms, ", self.latency_ms)?;
        match self.mbit {
            0 => write!(out, "unshaped"),
            rate => write!(out, "{rate} Mbit/s"),
        }
    }
}

impl Serialize for Link {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_latency_and_rate() {
        let link: Link = "50:1000".parse().expect("a link");
        assert_eq!(link.latency(), Duration::from_millis(50));
        assert_eq!(link.bandwidth(), Some(125_000_000));
        assert_eq!(link.to_string(), "50 ms, 1000 Mbit/s");
        let link: Link = "10:0".parse().expect("a link");
        assert_eq!(link.bandwidth(), None);
        assert_eq!(link.to_string(), "10 ms, unshaped");
        for wrong in ["", "50", "50:", "-1:2", "1:99999999"] {
            assert!(wrong.parse::<Link>().is_err(), "{wrong}");
        }
    }
}
