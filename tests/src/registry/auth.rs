//! Who may ask: nobody in particular, basic credentials, or tokens from a token server.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use parking_lot::Mutex;
use serde_json::json;
use url::Url;

/// How the registry wants to be asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum AuthMode {
    /// Anybody may read and write.
    #[default]
    None,
    /// Username and password with every request.
    Basic {
        /// The name.
        username: String,
        /// The password.
        password: String,
    },
    /// Tokens for pulling one repository, from the second listener.
    Bearer {
        /// Whom the token server gives tokens; `None`: anybody.
        user: Option<(String, String)>,
        /// `expires_in` of the answers; `None`: left out.
        expires_in: Option<u64>,
    },
}

/// The mode and the tokens given out.
#[derive(Debug, Default)]
pub(super) struct Auth {
    mode: Mutex<AuthMode>,
    /// Token -> its scope.
    tokens: Mutex<HashMap<String, String>>,
    given: AtomicU64,
}

impl Auth {
    pub(super) fn set(&self, mode: AuthMode) {
        *self.mode.lock() = mode;
        self.revoke();
    }

    pub(super) fn revoke(&self) {
        self.tokens.lock().clear();
    }

    /// Whether a request may read `repository`; otherwise the values of WWW-Authenticate.
    pub(super) fn admits(
        &self,
        authorization: Option<&str>,
        repository: &str,
        token_server: SocketAddr,
    ) -> Result<(), Vec<String>> {
        match &*self.mode.lock() {
            AuthMode::None => Ok(()),
            AuthMode::Basic { username, password } => {
                let wanted = basic(username, password);
                if authorization == Some(&wanted) {
                    return Ok(());
                }
                Err(vec!["Basic realm=\"test, registry\"".to_owned()])
            }
            AuthMode::Bearer { .. } => {
                let scope = format!("repository:{repository}:pull");
                let token = authorization.and_then(|header| header.strip_prefix("Bearer "));
                if token.is_some_and(|token| self.tokens.lock().get(token) == Some(&scope)) {
                    return Ok(());
                }
                Err(vec![
                    "Negotiate".to_owned(),
                    format!(
                        "Bearer realm=\"http://{token_server}/token\",service=\"test\",scope=\"{scope}\""
                    ),
                ])
            }
        }
    }

    /// The token server's answer: status and document.
    pub(super) fn token(&self, url: &Url, authorization: Option<&str>) -> (u16, String) {
        let AuthMode::Bearer { user, expires_in } = self.mode.lock().clone() else {
            return (404, String::new());
        };
        if let Some((username, password)) = &user
            && authorization != Some(&basic(username, password))
        {
            let errors = json!({"errors": [{"code": "UNAUTHORIZED", "message": "incorrect username or password"}]});
            return (401, errors.to_string());
        }
        let query: HashMap<_, _> = url.query_pairs().collect();
        let (Some(scope), Some("test")) =
            (query.get("scope"), query.get("service").map(AsRef::as_ref))
        else {
            return (400, "scope and service are wanted".to_owned());
        };
        let token = format!("token-{}", self.given.fetch_add(1, Ordering::Relaxed));
        self.tokens
            .lock()
            .insert(token.clone(), scope.clone().into_owned());
        // Servers use either name.
        let name = if expires_in.is_some() {
            "token"
        } else {
            "access_token"
        };
        let mut answer = json!({ name: token });
        if let Some(seconds) = expires_in {
            answer["expires_in"] = seconds.into();
        }
        (200, answer.to_string())
    }
}

fn basic(username: &str, password: &str) -> String {
    format!(
        "Basic {}",
        STANDARD.encode(format!("{username}:{password}"))
    )
}
