//! Remembers where a registry keeps a blob, so that one range costs one request and not two.
//!
//! Invariant: a remembered place is used only until it expires, and forgotten when it refuses; it is never sent
//! credentials (crate::registry decides that by origin).

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use dashmap::DashMap;
use reqwest::header::{CACHE_CONTROL, HeaderMap};
use url::Url;

use super::Repository;
use crate::digest::Digest;

/// How long a place is remembered that says nothing of its end. A place that refuses earlier is asked for again.
const DEFAULT: Duration = Duration::from_secs(300);
/// No place is remembered longer.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// Above this many, those that have expired are dropped; above twice as many, all.
const MANY: usize = 4096;

/// Where blobs are, by repository and digest.
#[derive(Debug, Default)]
pub(super) struct Redirects {
    places: DashMap<(Repository, Digest), Place>,
}

#[derive(Debug)]
struct Place {
    url: Url,
    until: Instant,
}

impl Redirects {
    pub(super) fn get(&self, repository: &Repository, blob: &Digest, now: Instant) -> Option<Url> {
        let key = (repository.clone(), *blob);
        let place = self.places.get(&key)?;
        if now < place.until {
            return Some(place.url.clone());
        }
        drop(place);
        self.places.remove(&key);
        None
    }

    pub(super) fn put(
        &self,
        repository: &Repository,
        blob: &Digest,
        url: Url,
        now: Instant,
        lifetime: Duration,
    ) {
        if lifetime.is_zero() {
            return;
        }
        if self.places.len() > MANY {
            self.places.retain(|_, place| now < place.until);
        }
        if self.places.len() > 2 * MANY {
            self.places.clear();
        }
        let until = now + lifetime;
        self.places
            .insert((repository.clone(), *blob), Place { url, until });
    }

    /// Forgets a place that refused, unless another one was learned meanwhile.
    pub(super) fn forget(&self, repository: &Repository, blob: &Digest, url: &Url) {
        self.places
            .remove_if(&(repository.clone(), *blob), |_, place| place.url == *url);
    }
}

/// How long the target of a redirect may be used: what its signature says, else what the answer's `Cache-Control`
/// says, else five minutes; a tenth less, so that it does not end on the way.
pub(super) fn lifetime(target: &Url, headers: &HeaderMap, now: SystemTime) -> Duration {
    let said = signature_lifetime(target, now).or_else(|| cache_lifetime(headers));
    let said = said.map_or(DEFAULT, |lifetime| lifetime.min(LONGEST));
    said - said / 10
}

/// S3 and its kin: `X-Amz-Expires`, `X-Goog-Expires` (seconds); CloudFront: `Expires` (Unix time); Azure: `se` (date).
fn signature_lifetime(target: &Url, now: SystemTime) -> Option<Duration> {
    target
        .query_pairs()
        .filter_map(|(name, value)| match name.to_ascii_lowercase().as_str() {
            "x-amz-expires" | "x-goog-expires" => value.parse().ok().map(Duration::from_secs),
            "expires" => {
                let end = UNIX_EPOCH.checked_add(Duration::from_secs(value.parse().ok()?))?;
                Some(end.duration_since(now).unwrap_or_default())
            }
            "se" => {
                let end = humantime::parse_rfc3339(&value).ok()?;
                Some(end.duration_since(now).unwrap_or_default())
            }
            _ => None,
        })
        .min()
}

fn cache_lifetime(headers: &HeaderMap) -> Option<Duration> {
    let header = headers.get(CACHE_CONTROL)?.to_str().ok()?;
    header.split(',').map(str::trim).find_map(|directive| {
        if directive.eq_ignore_ascii_case("no-store") || directive.eq_ignore_ascii_case("no-cache")
        {
            return Some(Duration::ZERO);
        }
        let (name, value) = directive.split_once('=')?;
        if !name.eq_ignore_ascii_case("max-age") {
            return None;
        }
        value
            .trim_matches('"')
            .parse()
            .ok()
            .map(Duration::from_secs)
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn seconds(query: &str, cache_control: Option<&'static str>) -> u64 {
        let url = Url::parse(&format!("https://cdn.example/blob?{query}")).unwrap();
        let mut headers = HeaderMap::new();
        if let Some(value) = cache_control {
            headers.insert(CACHE_CONTROL, value.parse().unwrap());
        }
        let now = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        lifetime(&url, &headers, now).as_secs()
    }

    #[test]
    fn lifetimes_as_stores_write_them() {
        assert_eq!(
            seconds("X-Amz-Date=20240101T000000Z&X-Amz-Expires=1000", None),
            900
        );
        assert_eq!(seconds("X-Goog-Expires=100", Some("max-age=5")), 90);
        assert_eq!(seconds("Expires=1700000100&Signature=x", None), 90);
        assert_eq!(seconds("Expires=1600000000", None), 0);
        assert_eq!(seconds("se=2023-11-14T22%3A30%3A00Z&sig=x", None), 900);
        assert_eq!(seconds("x=y", Some("private, max-age=100")), 90);
        assert_eq!(seconds("x=y", Some("no-store, max-age=100")), 0);
        assert_eq!(seconds("", None), 270);
        assert_eq!(seconds("Expires=soon&se=later&X-Amz-Expires=", None), 270);
        assert_eq!(seconds("Expires=99999999999999999999", None), 270);
        assert_eq!(seconds("X-Amz-Expires=9999999999", None), 77760);
    }

    #[test]
    fn places_end() {
        let repository: Repository = serde_json::from_str(r#"{"host":"h","name":"n"}"#).unwrap();
        let blob = Digest::of(b"x");
        let redirects = Redirects::default();
        let [a, b] = ["http://a/", "http://b/"].map(|url| Url::parse(url).unwrap());
        let now = Instant::now();
        let nine = Duration::from_secs(9);
        redirects.put(&repository, &blob, a.clone(), now, nine);
        assert_eq!(redirects.get(&repository, &blob, now), Some(a.clone()));
        redirects.forget(&repository, &blob, &b);
        assert_eq!(redirects.get(&repository, &blob, now), Some(a.clone()));
        assert_eq!(redirects.get(&repository, &blob, now + nine), None);
        redirects.put(&repository, &blob, b.clone(), now, nine);
        redirects.forget(&repository, &blob, &b);
        assert_eq!(redirects.get(&repository, &blob, now), None);
        redirects.put(&repository, &blob, a, now, Duration::ZERO);
        assert_eq!(redirects.get(&repository, &blob, now), None);
    }
}
