//! What the recorder needs of the kernel.

use crate::witness::{Watched, Witness, WitnessError};

/// What the recorder needs of the witness; [`Witness`] is the real one.
pub trait Kernel {
    /// See [`Witness::watch_devices`].
    ///
    /// # Errors
    /// The kernel refused.
    fn watch_devices(&mut self, devices: &[u32]) -> Result<(), WitnessError>;
    /// See [`Witness::attach`].
    ///
    /// # Errors
    /// The kernel refused.
    fn attach(&mut self) -> Result<(), WitnessError>;
    /// See [`Witness::detach`].
    fn detach(&mut self);
    /// See [`Witness::watch`].
    ///
    /// # Errors
    /// The kernel refused.
    fn watch(&mut self, who: Watched) -> Result<(), WitnessError>;
    /// See [`Witness::unwatch`].
    fn unwatch(&mut self, who: Watched);
    /// See [`Witness::forget_all`].
    ///
    /// # Errors
    /// The kernel refused.
    fn forget(&mut self, groups: &[(u64, u32)]) -> Result<(), WitnessError>;
    /// See [`Witness::reset`].
    ///
    /// # Errors
    /// The kernel refused.
    fn reset(&mut self) -> Result<(), WitnessError>;
    /// See [`Witness::lost`].
    fn lost(&self) -> u64;
}

impl Kernel for Witness {
    fn watch_devices(&mut self, devices: &[u32]) -> Result<(), WitnessError> {
        Witness::watch_devices(self, devices)
    }
    fn attach(&mut self) -> Result<(), WitnessError> {
        Witness::attach(self)
    }
    fn detach(&mut self) {
        Witness::detach(self);
    }
    fn watch(&mut self, who: Watched) -> Result<(), WitnessError> {
        Witness::watch(self, who)
    }
    fn unwatch(&mut self, who: Watched) {
        Witness::unwatch(self, who);
    }
    fn forget(&mut self, groups: &[(u64, u32)]) -> Result<(), WitnessError> {
        Witness::forget_all(self, groups)
    }
    fn reset(&mut self) -> Result<(), WitnessError> {
        Witness::reset(self)
    }
    fn lost(&self) -> u64 {
        Witness::lost(self)
    }
}
