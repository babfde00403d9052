//! Who we are to a registry: basic credentials or a token for pulling one repository, kept until it expires.
//!
//! Invariants: a token is asked for once, however many requests need it; credentials go to the registry's own host and
//! to the token server it names, and to that only over TLS (or where plain HTTP is allowed).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use dashmap::DashMap;
use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use reqwest::{
    Response,
    header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE},
};
use serde::Deserialize;
use url::Url;

use super::{
    Repository,
    challenge::{self, Challenge},
    credentials::{Credentials, Secret},
    error::Failure,
    transport::{Transport, authority},
};
use crate::metrics::{ByLane, Lane, Metrics};

/// Lifetime of a token whose server names none (distribution's token specification).
const DEFAULT_LIFETIME: Duration = Duration::from_secs(60);
/// A token's answer is a small document.
const MAX_TOKEN_ANSWER: usize = 1 << 20;
/// Above this many repositories, all is forgotten and learned anew.
const MANY: usize = 4096;

/// What is known of how repositories want to be asked.
#[derive(Debug)]
pub(super) struct Auth {
    credentials: Credentials,
    transport: Arc<Transport>,
    metrics: Arc<Metrics>,
    known: DashMap<Repository, Known>,
}

type Grant = Result<Arc<Pass>, Arc<Failure>>;

/// The way in for one repository: being asked for or there already.
struct Known {
    way: Challenge,
    grant: Shared<BoxFuture<'static, Grant>>,
}

impl std::fmt::Debug for Known {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Known")
            .field("way", &self.way)
            .finish_non_exhaustive()
    }
}

/// A header that lets requests in, and until when.
pub(super) struct Pass {
    header: HeaderValue,
    /// From then on another one is asked for.
    until: Option<Instant>,
}

impl Pass {
    /// The value of `Authorization`.
    pub(super) fn header(&self) -> &HeaderValue {
        &self.header
    }

    fn is_fresh(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}

impl Auth {
    pub(super) fn new(
        credentials: Credentials,
        transport: Arc<Transport>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            credentials,
            transport,
            metrics,
            known: DashMap::new(),
        }
    }

    /// What the next request for a repository should carry: nothing as long as its registry has not asked.
    pub(super) async fn pass(
        self: &Arc<Self>,
        repository: &Repository,
    ) -> Result<Option<Arc<Pass>>, Arc<Failure>> {
        let Some((way, grant)) = self
            .known
            .get(repository)
            .map(|known| (known.way.clone(), known.grant.clone()))
        else {
            return Ok(None);
        };
        match grant.clone().await {
            Ok(pass) if pass.is_fresh(Instant::now()) => Ok(Some(pass)),
            _ => self.renew(repository, way, Some(&grant)).await.map(Some),
        }
    }

    /// Answers a 401: learns the way in from its headers and gets a pass. `used` is the pass that was refused.
    pub(super) async fn answer(
        self: &Arc<Self>,
        repository: &Repository,
        url: &Url,
        headers: &HeaderMap,
        used: Option<&Arc<Pass>>,
    ) -> Result<Arc<Pass>, Arc<Failure>> {
        let offered: Vec<Challenge> = headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(challenge::parse)
            .collect();
        let token = offered
            .iter()
            .find(|way| matches!(way, Challenge::Bearer { .. }));
        let Some(way) = token.or(offered.first()).cloned() else {
            return Err(Arc::new(Failure::Authorization {
                host: authority(url),
                cause: "status 401 without a Basic or Bearer challenge".to_owned(),
                hint: "is it a registry?",
            }));
        };
        // Another request may have got a new pass since the refused one was sent.
        let current = self
            .known
            .get(repository)
            .filter(|known| known.way == way)
            .map(|known| known.grant.clone());
        if let Some(grant) = &current
            && let Ok(pass) = grant.clone().await
            && used.is_none_or(|used| !Arc::ptr_eq(used, &pass))
            && pass.is_fresh(Instant::now())
        {
            return Ok(pass);
        }
        self.renew(repository, way, current.as_ref()).await
    }

    /// Gets another pass in place of `old`; those who come at the same time share one request.
    async fn renew(
        self: &Arc<Self>,
        repository: &Repository,
        way: Challenge,
        old: Option<&Shared<BoxFuture<'static, Grant>>>,
    ) -> Grant {
        if self.known.len() > MANY {
            self.known.clear();
        }
        let grant = {
            let this = Arc::clone(self);
            let (repository, way) = (repository.clone(), way.clone());
            async move {
                this.grant(&repository, &way)
                    .await
                    .map(Arc::new)
                    .map_err(Arc::new)
            }
            .boxed()
            .shared()
        };
        let fresh = Known {
            way,
            grant: grant.clone(),
        };
        let grant = match self.known.entry(repository.clone()) {
            dashmap::Entry::Vacant(entry) => {
                entry.insert(fresh);
                grant
            }
            dashmap::Entry::Occupied(mut entry) => {
                let is_old = old.is_some_and(|old| old.ptr_eq(&entry.get().grant));
                if is_old || entry.get().way != fresh.way {
                    entry.insert(fresh);
                    grant
                } else {
                    entry.get().grant.clone()
                }
            }
        };
        let result = grant.clone().await;
        if result.is_err() {
            // A failure is not remembered: the next request asks anew.
            self.known
                .remove_if(repository, |_, known| known.grant.ptr_eq(&grant));
        }
        result
    }

    async fn grant(&self, repository: &Repository, way: &Challenge) -> Result<Pass, Failure> {
        let found = self.credentials.find(repository).await;
        match way {
            Challenge::Basic => match found {
                Some((Secret::Password { username, password }, _)) => Ok(Pass {
                    header: basic(&username, &password),
                    until: None,
                }),
                Some((Secret::IdentityToken(_), place)) => Err(Failure::Authorization {
                    host: repository.api_host().to_owned(),
                    cause: format!("it takes a password, and {place} holds an identity token"),
                    hint: "",
                }),
                None => Err(Failure::Authorization {
                    host: repository.api_host().to_owned(),
                    cause: format!("there are no credentials for {repository}"),
                    hint: "log in (podman login) or set registry.credentials",
                }),
            },
            Challenge::Bearer { realm, service } => {
                self.token(
                    repository,
                    realm,
                    service.as_deref(),
                    found.map(|(secret, _)| secret),
                )
                .await
            }
        }
    }

    async fn token(
        &self,
        repository: &Repository,
        realm: &str,
        service: Option<&str>,
        secret: Option<Secret>,
    ) -> Result<Pass, Failure> {
        let refused = |cause: String, hint| Failure::Authorization {
            host: repository.api_host().to_owned(),
            cause,
            hint,
        };
        let mut url = Url::parse(realm)
            .map_err(|e| refused(format!("its token server {realm:?} is no URL: {e}"), ""))?;
        self.transport.check(&url, repository.api_host())?;
        let scope = format!("repository:{}:pull", repository.name);
        let request = if let Some(Secret::IdentityToken(token)) = &secret {
            let mut form = url::form_urlencoded::Serializer::new(String::new());
            form.append_pair("grant_type", "refresh_token")
                .append_pair("refresh_token", token)
                .append_pair("client_id", "forelayer")
                .append_pair("scope", &scope);
            if let Some(service) = service {
                form.append_pair("service", service);
            }
            self.transport
                .post(&url)?
                .header(
                    reqwest::header::CONTENT_TYPE,
                    "application/x-www-form-urlencoded",
                )
                .body(form.finish())
        } else {
            let mut query = url.query_pairs_mut();
            if let Some(service) = service {
                query.append_pair("service", service);
            }
            query.append_pair("scope", &scope);
            if let Some(Secret::Password { username, .. }) = &secret {
                query.append_pair("account", username);
            }
            drop(query);
            let request = self.transport.get(&url)?;
            match &secret {
                Some(Secret::Password { username, password }) => {
                    request.header(AUTHORIZATION, basic(username, password))
                }
                _ => request,
            }
        };
        let lane = ByLane {
            lane: Lane::Metadata,
        };
        self.metrics.requests.get_or_create(&lane).inc();
        let asked = Instant::now();
        let response = self
            .transport
            .send(&url, request.header(ACCEPT, "application/json"))
            .await?;
        if !response.status().is_success() {
            return Err(self.transport.refusal(&url, response).await);
        }
        let body = self.whole(&url, response).await?;
        let answer: Answer = serde_json::from_slice(&body).map_err(|e| {
            refused(
                format!(
                    "the answer of its token server {} is no token: {e}",
                    authority(&url)
                ),
                "",
            )
        })?;
        let token = answer.token.or(answer.access_token).unwrap_or_default();
        let mut header = HeaderValue::from_str(&format!("Bearer {token}"))
            .ok()
            .filter(|_| !token.is_empty())
            .ok_or_else(|| {
                refused(
                    format!("its token server {} gave no token", authority(&url)),
                    "",
                )
            })?;
        header.set_sensitive(true);
        let lifetime = answer
            .expires_in
            .map_or(DEFAULT_LIFETIME, Duration::from_secs);
        Ok(Pass {
            header,
            until: asked.checked_add(usable(lifetime)),
        })
    }

    async fn whole(&self, url: &Url, mut response: Response) -> Result<Vec<u8>, Failure> {
        let mut body = Vec::new();
        let lost = |cause| Failure::Connection {
            host: authority(url),
            cause,
        };
        let until = self.transport.patience(MAX_TOKEN_ANSWER as u64);
        while let Some(piece) =
            (self.transport.piece_until(until, &mut response).await).map_err(lost)?
        {
            body.extend_from_slice(&piece);
            if body.len() > MAX_TOKEN_ANSWER {
                let limit = MAX_TOKEN_ANSWER as u64;
                return Err(Failure::TooLarge { limit, size: None });
            }
        }
        Ok(body)
    }
}

/// A token is renewed before it ends: a tenth of its life, at most half a minute, for what is on its way with it.
fn usable(lifetime: Duration) -> Duration {
    lifetime - (lifetime / 10).min(Duration::from_secs(30))
}

fn basic(username: &str, password: &str) -> HeaderValue {
    let text = format!(
        "Basic {}",
        STANDARD.encode(format!("{username}:{password}"))
    );
    let mut header = HeaderValue::from_str(&text).expect("base64 is made of header characters");
    header.set_sensitive(true);
    header
}

/// What a token server says.
#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}
