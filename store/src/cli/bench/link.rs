//! How far away the registry is.

use std::time::{Duration, Instant};

use forelayer::{
    config::Config,
    registry::{Repository, reference::is_loopback},
};
use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};

/// Connections made to measure.
const TRIES: usize = 5;
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where the registry is.
#[derive(Debug)]
pub(super) struct Link {
    /// With a port.
    address: String,
}

impl Link {
    /// That of a repository.
    pub(super) fn to(repository: &Repository, config: &Config) -> Self {
        let host = repository.api_host();
        let plain = is_loopback(host) || config.registry.plain_http.iter().any(|name| name == host);
        Self {
            address: with_port(host, if plain { 80 } else { 443 }),
        }
    }

    /// Seconds of a round trip: the fastest connection; none where none can be made.
    pub(super) async fn round_trip(&self) -> Option<f64> {
        let addresses: Vec<_> = timeout(PATIENCE, lookup_host(&self.address))
            .await
            .ok()?
            .ok()?
            .collect();
        let mut fastest: Option<f64> = None;
        for _ in 0..TRIES {
            let begin = Instant::now();
            let made = timeout(PATIENCE, TcpStream::connect(addresses.as_slice())).await;
            if let Ok(Ok(_)) = made {
                let took = begin.elapsed().as_secs_f64();
                fastest = Some(fastest.map_or(took, |fastest| fastest.min(took)));
            }
        }
        fastest
    }
}

/// A host with the port that it names, or this one.
fn with_port(host: &str, port: u16) -> String {
    // The colons of an IPv6 address are in brackets.
    let behind = host.rfind(']').map_or(host, |at| &host[at..]);
    if behind.contains(':') {
        host.to_owned()
    } else {
        format!("{host}:{port}")
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn hosts_get_the_port_that_their_protocol_has() {
        for (image, address) in [
            ("registry.example/app:1", "registry.example:443"),
            ("registry.example:5000/app:1", "registry.example:5000"),
            ("localhost/app", "localhost:80"),
            ("python", "registry-1.docker.io:443"),
            ("[::1]:5000/app", "[::1]:5000"),
        ] {
            let reference: forelayer::registry::Reference = image.parse().unwrap();
            let link = Link::to(&reference.repository, &Config::default());
            assert_eq!(link.address, address);
        }
        assert_eq!(with_port("[::1]", 80), "[::1]:80");
    }

    #[tokio::test]
    async fn a_round_trip_is_measured_where_somebody_listens() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let link = Link { address };
        assert!(link.round_trip().await.unwrap() < PATIENCE.as_secs_f64());
        drop(listener);
        assert!(link.round_trip().await.is_none());
    }
}
