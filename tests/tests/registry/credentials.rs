//! Who is asked for what with which credentials.

use super::*;

#[tokio::test]
async fn basic_credentials_are_sent_when_asked_for() {
    let mut bench = Bench::new();
    bench.server.set_auth(AuthMode::Basic {
        username: "u".into(),
        password: "p:w".into(),
    });
    let error = bench.client.manifest(&bench.reference()).await.unwrap_err();
    assert!(matches!(&*error.failure, Failure::Authorization { .. }));
    let host = bench.server.host();
    tells(&error, &[&host, "a/b", "manifest t", "podman login"]);
    bench.log().clear();

    bench.log_in("u", "p:w");
    bench.client.manifest(&bench.reference()).await.unwrap();
    bench.good(10..20).await;
    let records = bench.log().records();
    let schemes: Vec<_> = records.iter().map(|r| r.authorization.as_deref()).collect();
    let basic = Some("Basic");
    assert_eq!(schemes, [None, basic, basic], "anonymous first, then known");

    bench.log_in("u", "wrong");
    let error = bench.client.manifest(&bench.reference()).await.unwrap_err();
    let refused = matches!(&*error.failure, Failure::Status { status: 401, .. });
    assert!(refused, "{error}");
    tells(&error, &["authentication required", "podman login"]);
    assert!(!error.to_string().contains("wrong"), "no secret in it");
}

#[tokio::test]
async fn a_login_after_the_start_counts() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("auth.json");
    let bench = Bench::with(&config::Registry {
        auth_files: vec![file.clone()],
        ..config::Registry::default()
    });
    bench.server.set_auth(AuthMode::Basic {
        username: "u".into(),
        password: "p".into(),
    });
    bench.client.manifest(&bench.reference()).await.unwrap_err();
    let key = bench.server.host() + "/a";
    let auth = serde_json::json!({"auths": {key: {"auth": "dTpw"}}});
    std::fs::write(&file, auth.to_string()).unwrap();
    bench.client.manifest(&bench.reference()).await.unwrap();
}

#[tokio::test]
async fn one_token_serves_all_requests_of_a_repository() {
    let bench = Bench::new();
    let (user, expires_in) = (None, Some(300));
    bench.server.set_auth(AuthMode::Bearer { user, expires_in });
    bench.client.manifest(&bench.reference()).await.unwrap();
    let ranges = (0..8).map(|n| bench.good(n * 1000..n * 1000 + 500));
    futures_util::future::join_all(ranges).await;
    let records = bench.log().records();
    let tokens: Vec<_> = records
        .iter()
        .filter(|r| r.path.starts_with("/token"))
        .collect();
    assert_eq!(tokens.len(), 1, "{:?}", paths(&records));
    let scope = "scope=repository%3Aa%2Fb%3Apull";
    assert!(tokens[0].path.contains(scope), "{}", tokens[0].path);
    assert_eq!(records.iter().filter(|r| r.status == 401).count(), 1);
    assert_eq!(records.len(), 3 + 8);
}

#[tokio::test]
async fn requests_that_find_their_token_revoked_share_the_next_one() {
    let bench = Bench::new();
    let (user, expires_in) = (None, None);
    bench.server.set_auth(AuthMode::Bearer { user, expires_in });
    bench.client.manifest(&bench.reference()).await.unwrap();
    bench.server.revoke_tokens();
    bench.log().clear();
    let ranges = (0..8).map(|n| bench.good(n * 1000..n * 1000 + 500));
    futures_util::future::join_all(ranges).await;
    let records = bench.log().records();
    let tokens = records.iter().filter(|r| r.path.starts_with("/token"));
    assert_eq!(tokens.count(), 1, "{:?}", paths(&records));
}

#[tokio::test]
async fn a_token_is_renewed_before_it_ends() {
    let bench = Bench::new();
    // A token that is over when it arrives: every request brings a new one without being refused first.
    let (user, expires_in) = (None, Some(0));
    bench.server.set_auth(AuthMode::Bearer { user, expires_in });
    bench.client.manifest(&bench.reference()).await.unwrap();
    bench.log().clear();
    bench.good(0..10).await;
    let records = bench.log().records();
    assert!(records[0].path.starts_with("/token"), "{records:?}");
    assert!(records.iter().all(|r| r.status != 401), "{records:?}");
}

#[tokio::test]
async fn credentials_go_to_the_token_server_and_tokens_to_the_registry() {
    let mut bench = Bench::new();
    let user = Some(("u".to_owned(), "p".to_owned()));
    let expires_in = Some(300);
    bench.server.set_auth(AuthMode::Bearer { user, expires_in });
    let error = bench.client.manifest(&bench.reference()).await.unwrap_err();
    let other = bench.server.other_addr().to_string();
    tells(
        &error,
        &["a/b", "401", "incorrect username or password", &other],
    );
    bench.log().clear();

    bench.log_in("u", "p");
    bench.client.manifest(&bench.reference()).await.unwrap();
    let records = bench.log().records();
    assert_eq!(records.len(), 3, "{records:?}");
    for record in records {
        let wanted = match (record.path.starts_with("/token"), record.status) {
            (true, _) => Some("Basic"),
            (false, 401) => None,
            (false, _) => Some("Bearer"),
        };
        assert_eq!(record.authorization.as_deref(), wanted, "{}", record.path);
    }
}
