//! What `forelayer watch` and `forelayer profile record` have in common: the witness, and the line to the store.

use std::time::Duration;

use forelayer::{
    config::{Config, WitnessLevel},
    control::{Client, ClientError},
};
use forelayer_profiler::{
    protocol::{Container, Level, Started, StoreEvent},
    recorder::Bounds,
    witness::{Witness, WitnessError},
};
use tokio::sync::{mpsc, watch};

/// First and longest pause between two attempts to reach the store.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Events of the store that the recorder has not taken yet.
pub(super) const UNREAD: usize = 1024;

/// Loads the witness with the programs that the configuration names.
pub(super) fn load(config: &Config) -> Result<Witness, WitnessError> {
    Witness::load(match config.witness.level {
        WitnessLevel::Auto => None,
        WitnessLevel::Tracepoints => Some(Level::Tracepoints),
        WitnessLevel::Kprobes => Some(Level::Kprobes),
        WitnessLevel::Add => Some(Level::Add),
        WitnessLevel::Off => Some(Level::Off),
    })
}

/// The configured bounds.
pub(super) fn bounds(config: &Config) -> Bounds {
    Bounds {
        quiet: config.witness.quiet,
        max_window: config.witness.max_window,
        ..Bounds::default()
    }
}

/// Passes the store's events on, for ever: a store that goes away is asked again until it is back. `connected` says
/// which of the two it is.
pub(super) async fn listen(
    client: &Client,
    events: &mpsc::Sender<StoreEvent>,
    connected: &watch::Sender<bool>,
) {
    let mut pause = BACKOFF.0;
    let mut told = false;
    loop {
        let end = listen_once(client, events, connected).await;
        if connected.send_replace(false) {
            pause = BACKOFF.0;
            told = false;
        }
        if events.is_closed() {
            return;
        }
        if !std::mem::replace(&mut told, true) {
            match end {
                Ok(()) => tracing::info!("the store closed its event stream; waiting for it"),
                Err(error) => {
                    tracing::warn!(%error, "no event stream from the store; waiting for it");
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(BACKOFF.1);
    }
}

async fn listen_once(
    client: &Client,
    events: &mpsc::Sender<StoreEvent>,
    connected: &watch::Sender<bool>,
) -> Result<(), ClientError> {
    let mut lines = client.witness_events().await?;
    while let Some(event) = lines.next().await? {
        let hello = matches!(event, StoreEvent::Hello { .. });
        if events.send(event).await.is_err() {
            return Ok(());
        }
        if hello && !connected.send_replace(true) {
            tracing::info!("connected to the store");
        }
    }
    Ok(())
}

/// Tells the store that the programs are attached; its mount waits for that, but not long.
pub(super) fn answer(client: &Client, window: u64) {
    let client = client.clone();
    tokio::spawn(async move {
        if let Err(error) = client.attached(window).await {
            tracing::debug!(window, %error, "the store was not told that the programs are attached");
        }
    });
}

/// Tells the store who started, so that it can narrow what it fetches; one that is away loses nothing by not knowing.
pub(super) fn started(client: &Client, container: &Container) {
    let (client, started) = (client.clone(), Started::of(container));
    tokio::spawn(async move {
        if let Err(error) = client.started(&started).await {
            tracing::debug!(image = started.image, %error, "the store was not told who started");
        }
    });
}
