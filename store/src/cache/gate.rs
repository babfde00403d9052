//! Counts writers so that closing the cache can wait for them: nothing is written behind the clean-stop stamp.

use parking_lot::{Condvar, Mutex};

use super::CacheError;

/// Open until closed; writers hold a [`Pass`].
#[derive(Debug, Default)]
pub(super) struct Gate {
    state: Mutex<State>,
    left: Condvar,
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    inside: usize,
}

/// The right to write until it is dropped.
#[derive(Debug)]
pub(super) struct Pass<'a>(&'a Gate);

impl Gate {
    /// Lets a writer in, unless the gate is closed.
    pub(super) fn enter(&self) -> Result<Pass<'_>, CacheError> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(CacheError::Closed);
        }
        state.inside += 1;
        Ok(Pass(self))
    }

    /// Closes and waits until nobody is inside; false if it was closed already.
    pub(super) fn close(&self) -> bool {
        let mut state = self.state.lock();
        if state.closed {
            return false;
        }
        state.closed = true;
        while state.inside > 0 {
            self.left.wait(&mut state);
        }
        true
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.inside -= 1;
        if state.inside == 0 {
            self.0.left.notify_all();
        }
    }
}
