//! Redirects: remembered, forgotten, refused, and never told a secret.

use super::*;

#[tokio::test]
async fn redirects_are_remembered_and_get_no_authorization() {
    let mut bench = Bench::new();
    bench.server.set_auth(AuthMode::Basic {
        username: "u".into(),
        password: "p".into(),
    });
    bench.server.set_redirect(Some(Duration::from_secs(600)));
    bench.log_in("u", "p");
    for n in 0..5 {
        bench.good(n * 100..n * 100 + 50).await;
    }
    let records = bench.log().records();
    let other = bench.server.other_addr().to_string();
    let (stored, asked): (Vec<_>, Vec<_>) = records.iter().partition(|r| r.host == other);
    assert_eq!(asked.len(), 2, "refused, redirected: {:?}", paths(&records));
    assert_eq!(stored.len(), 5);
    for record in stored {
        assert_eq!((record.status, &record.authorization), (206, &None));
    }
    // The refusal and the redirect; the scheduler counts the five ranges themselves.
    assert_eq!(bench.counted().0, 2);
}

#[tokio::test]
async fn a_place_that_refuses_is_asked_for_again() {
    let bench = Bench::new();
    bench.server.set_redirect(Some(Duration::from_secs(600)));
    bench.good(0..10).await;
    bench.server.revoke_redirects();
    bench.log().clear();
    bench.good(10..20).await;
    assert_eq!(statuses(bench.log()), [403, 307, 206]);
    // Also when the registry has stopped to redirect.
    bench.server.set_redirect(None);
    bench.server.revoke_redirects();
    bench.log().clear();
    bench.good(30..40).await;
    bench.good(40..50).await;
    assert_eq!(statuses(bench.log()), [403, 206, 206]);
}

#[tokio::test]
async fn a_place_that_is_over_when_it_is_given_is_not_remembered() {
    let bench = Bench::new();
    bench.server.set_redirect(Some(Duration::ZERO));
    let error = bench.bad(0..10).await;
    let refused = matches!(&*error.failure, Failure::Status { status: 403, .. });
    assert!(refused, "{error}");
    let other = bench.server.other_addr().to_string();
    tells(&error, &["Request has expired", &other]);
    bench.server.set_redirect(Some(Duration::from_secs(600)));
    bench.log().clear();
    bench.good(0..10).await;
    assert_eq!(statuses(bench.log()), [307, 206]);
}

async fn redirecting(location: &str) -> (Repository, tokio::task::JoinHandle<()>) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let head = format!("HTTP/1.1 307 Go\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n");
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            while let Ok(1..) = stream.read(&mut request).await {
                if stream.write_all(head.as_bytes()).await.is_err() {
                    break;
                }
            }
        }
    });
    let name = "a/b".to_owned();
    (Repository { host, name }, task)
}

#[tokio::test]
async fn redirects_that_cannot_be_followed_are_named() {
    let client = Client::new(&config::Registry::default(), Arc::new(Metrics::new())).unwrap();
    let blob = Digest::of(b"");
    let cases = [
        // An address for documentation: no connection must be tried without TLS.
        ("http://192.0.2.1/blob", "registry.plain_http"),
        ("file:///etc/passwd", "neither http nor https"),
        ("http://[", "no URL"),
        ("/v2/again", "too many redirects"),
    ];
    for (location, says) in cases {
        let (repository, task) = redirecting(location).await;
        let error = client.range(&repository, &blob, 100, 0..10).await;
        let error = error.unwrap_err();
        tells(&error, &[says, &repository.host]);
        assert_eq!(error.retry(), None);
        task.abort();
    }
}

/// Answers every request with this head, and behind it with zeros without end if that is wanted. What it could not
/// write because the client went away is no fault.
async fn talking(head: String, endless: bool) -> (Repository, tokio::task::JoinHandle<()>) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let head = head.clone();
            tokio::spawn(async move {
                let mut request = [0; 4096];
                while let Ok(1..) = stream.read(&mut request).await {
                    let _ = stream.write_all(head.as_bytes()).await;
                    while endless && stream.write_all(&[0; 4096]).await.is_ok() {}
                }
            });
        }
    });
    let name = "a/b".to_owned();
    (Repository { host, name }, task)
}

#[tokio::test]
async fn what_comes_with_a_redirect_or_a_refusal_is_not_read_without_bound() {
    let bench = Bench::new();
    let place = format!(
        "http://{}/v2/a/b/blobs/{}",
        bench.server.host(),
        bench.large
    );
    let redirect = format!("HTTP/1.1 307 Go\r\nLocation: {place}\r\n");
    let refusal = "HTTP/1.1 401 No\r\nWWW-Authenticate: Basic realm=\"x\"\r\n";
    // (head, whether it goes on without end, whether the blob is reached)
    let cases = [
        (format!("{redirect}Connection: close\r\n\r\n"), true, true),
        (
            format!("{redirect}Content-Length: 1000000000\r\n\r\n"),
            true,
            true,
        ),
        (
            format!("{redirect}Content-Length: 10\r\n\r\n12345"),
            false,
            true,
        ),
        (format!("{refusal}Connection: close\r\n\r\n"), true, false),
        (
            format!("{refusal}Content-Length: 10\r\n\r\n12345"),
            false,
            false,
        ),
    ];
    for (head, endless, reached) in cases {
        let (repository, task) = talking(head.clone(), endless).await;
        let mut config = config::Registry {
            read_timeout: Duration::from_millis(200),
            ..config::Registry::default()
        };
        let credentials = config::Credentials {
            username: "u".into(),
            password: "p".into(),
        };
        config
            .credentials
            .insert(repository.host.clone(), credentials);
        let client = Client::new(&config, Arc::new(Metrics::new())).unwrap();
        let asking = client.range(&repository, &bench.large, BLOB as u64, 0..10);
        // Not a wait: it ends a body that is read for ever.
        let answer = tokio::time::timeout(Duration::from_secs(20), asking).await;
        let answer = answer.unwrap_or_else(|_| panic!("still reading behind {head:?}"));
        assert_eq!(answer.is_ok(), reached, "{head:?}: {answer:?}");
        task.abort();
    }
}
