//! The driver with a kernel that is made up.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::{Arc, Mutex};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    protocol::{Level, StoreEvent},
    recorder::{Bounds, Driver, Kernel, Output},
    witness::{Watched, WitnessError},
};

/// What was tried, and how often it is refused.
#[derive(Debug, Default)]
struct Tries {
    attach: usize,
    refuse: usize,
}

#[derive(Debug, Clone, Default)]
struct Fake(Arc<Mutex<Tries>>);

impl Kernel for Fake {
    fn watch_devices(&mut self, _: &[u32]) -> Result<(), WitnessError> {
        Ok(())
    }
    fn attach(&mut self) -> Result<(), WitnessError> {
        let mut tries = self.0.lock().unwrap();
        tries.attach += 1;
        if tries.attach <= tries.refuse {
            return Err(WitnessError::Incomplete("part".to_owned()));
        }
        Ok(())
    }
    fn detach(&mut self) {}
    fn watch(&mut self, _: Watched) -> Result<(), WitnessError> {
        Ok(())
    }
    fn unwatch(&mut self, _: Watched) {}
    fn forget(&mut self, _: &[(u64, u32)]) -> Result<(), WitnessError> {
        Ok(())
    }
    fn reset(&mut self) -> Result<(), WitnessError> {
        Ok(())
    }
    fn lost(&self) -> u64 {
        0
    }
}

#[tokio::test]
async fn a_witness_that_could_not_be_attached_is_tried_again_at_the_next_mount() {
    let kernel = Fake::default();
    kernel.0.lock().unwrap().refuse = 2;
    let (_seen, events) = mpsc::channel(1);
    let mut driver = Driver::new(
        kernel.clone(),
        events,
        Level::Tracepoints,
        Bounds::default(),
    )
    .unwrap();
    let (store, mut told) = mpsc::channel(8);
    let (out, mut outputs) = mpsc::channel(8);
    for window in 1..=5 {
        let event = StoreEvent::Mounted {
            window,
            slot: 1,
            at_ns: None,
        };
        store.send(event).await.unwrap();
    }
    drop(store);
    driver
        .run(&mut told, &out, &CancellationToken::new())
        .await
        .unwrap();
    // Refused twice, attached with the third.
    assert_eq!(kernel.0.lock().unwrap().attach, 3);
    // No mount waits for what does not come.
    for window in 1..=5 {
        assert_eq!(outputs.recv().await, Some(Output::Attached(window)));
    }
}
