//! The maps that both sides use.

use std::collections::HashSet;

use aya::Ebpf;
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, RingBuf};
use aya_log::EbpfLogger;
use forelayer_events::{BlockKey, Losses, PageBits};
use tracing_log::LogTracer;

use super::error::WitnessError;
use super::event::Watched;

/// The maps that user space writes and reads, apart from the ring buffers.
pub(super) struct Maps {
    devices: HashMap<MapData, u32, u8>,
    generation: Array<MapData, u32>,
    touched: HashMap<MapData, BlockKey, PageBits>,
    cgroups: HashMap<MapData, u64, u8>,
    namespaces: HashMap<MapData, u32, u8>,
    lost: PerCpuArray<MapData, Losses>,
}

impl std::fmt::Debug for Maps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Maps").finish_non_exhaustive()
    }
}

impl Maps {
    /// Takes every map from the object: the tables, the events, the messages.
    pub(super) fn take(
        ebpf: &mut Ebpf,
    ) -> Result<(Self, RingBuf<MapData>, EbpfLogger<LogTracer>), WitnessError> {
        let maps = Self {
            devices: take(ebpf, "DEVICES")?,
            generation: take(ebpf, "GENERATION")?,
            touched: take(ebpf, "TOUCHED")?,
            cgroups: take(ebpf, "WATCHED_CGROUPS")?,
            namespaces: take(ebpf, "WATCHED_MOUNT_NS")?,
            lost: take(ebpf, "LOST")?,
        };
        let events = take(ebpf, "EVENTS")?;
        let logger = EbpfLogger::init_with_logger(ebpf, LogTracer::new()).map_err(|error| {
            WitnessError::Incomplete(format!("usable map `AYA_LOGS` ({error})"))
        })?;
        Ok((maps, events, logger))
    }

    pub(super) fn set_devices(&mut self, devices: &[u32]) -> Result<(), WitnessError> {
        let failed = failed("write the list of watched devices");
        let known = self
            .devices
            .keys()
            .collect::<Result<Vec<_>, _>>()
            .map_err(failed)?;
        for device in known.iter().filter(|device| !devices.contains(device)) {
            remove(&mut self.devices, device).map_err(failed)?;
        }
        for device in devices {
            self.devices.insert(device, 1, 0).map_err(failed)?;
        }
        Ok(())
    }

    pub(super) fn watch(&mut self, who: Watched) -> Result<(), WitnessError> {
        match who {
            Watched::Cgroup(id) => self.cgroups.insert(id, 1, 0),
            Watched::MountNamespace(number) => self.namespaces.insert(number, 1, 0),
        }
        .map_err(failed("write the list of those whose opens are watched"))
    }

    pub(super) fn unwatch(&mut self, who: Watched) {
        let removed = match who {
            Watched::Cgroup(id) => remove(&mut self.cgroups, &id),
            Watched::MountNamespace(number) => remove(&mut self.namespaces, &number),
        };
        if let Err(error) = removed {
            tracing::debug!(?who, %error, "opens are still watched");
        }
    }

    pub(super) fn reset(&mut self) -> Result<(), WitnessError> {
        let failed = failed("begin a new recording window");
        let current = self.generation.get(&0, 0).map_err(failed)?.wrapping_add(1);
        self.generation.set(0, current, 0).map_err(failed)?;
        // From here on the programs use new keys; what is left of the old ones is only memory.
        self.remove_touched(|key| key.generation != current)?;
        clear(&mut self.cgroups).map_err(failed)?;
        clear(&mut self.namespaces).map_err(failed)
    }

    pub(super) fn forget(&mut self, groups: &[(u64, u32)]) -> Result<(), WitnessError> {
        for &(cgroup, mnt_ns) in groups {
            self.unwatch(Watched::Cgroup(cgroup));
            self.unwatch(Watched::MountNamespace(mnt_ns));
        }
        // Each system call of the pass takes a key: with many groups and touches it is one pass or seconds.
        let groups: HashSet<(u64, u32)> = groups.iter().copied().collect();
        self.remove_touched(|key| groups.contains(&(key.cgroup, key.mnt_ns)))
    }

    fn remove_touched(&mut self, which: impl Fn(&BlockKey) -> bool) -> Result<(), WitnessError> {
        let failed = failed("forget first touches");
        // Collected first: removing the key an iteration stands on would begin it again.
        let keys = self
            .touched
            .keys()
            .filter(|key| key.as_ref().map_or(true, &which))
            .collect::<Result<Vec<_>, _>>()
            .map_err(failed)?;
        for key in &keys {
            remove(&mut self.touched, key).map_err(failed)?;
        }
        Ok(())
    }

    pub(super) fn lost(&self) -> u64 {
        match self.lost.get(&0, 0) {
            Ok(values) => values
                .iter()
                .map(|lost| lost.ring.saturating_add(lost.bits))
                .sum(),
            Err(error) => {
                tracing::warn!(%error, "the eBPF programs' count of lost events cannot be read: taken as one");
                1
            }
        }
    }
}

fn take<T: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<T, WitnessError> {
    let map = ebpf
        .take_map(name)
        .ok_or_else(|| WitnessError::Incomplete(format!("map `{name}`")))?;
    T::try_from(map)
        .map_err(|error| WitnessError::Incomplete(format!("usable map `{name}` ({error})")))
}

fn failed(what: &'static str) -> impl Fn(MapError) -> WitnessError + Copy {
    move |source| WitnessError::Map {
        what,
        source: Box::new(source),
    }
}

/// Removes a key; one that is gone already (the kernel's own clean-up, a racing program) is no error.
fn remove<K: aya::Pod, V: aya::Pod>(
    map: &mut HashMap<MapData, K, V>,
    key: &K,
) -> Result<(), MapError> {
    match map.remove(key) {
        Err(MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(())
        }
        Err(MapError::KeyNotFound) => Ok(()),
        other => other,
    }
}

fn clear<K: aya::Pod, V: aya::Pod>(map: &mut HashMap<MapData, K, V>) -> Result<(), MapError> {
    let keys = map.keys().collect::<Result<Vec<_>, _>>()?;
    keys.iter().try_for_each(|key| remove(map, key))
}
