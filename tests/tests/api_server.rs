//! The test API server itself, where the agent doesn't use what it can do.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use proxy_tests::api_server::{ApiServer, Resource};
use serde_json::json;

/// The whole answer to a GET request, status line, headers and chunked body.
fn get(server: &ApiServer, path: &str) -> String {
    let mut connection = TcpStream::connect(server.address()).expect("a connection");
    connection
        .set_read_timeout(Some(Duration::from_secs(20)))
        .expect("a timeout");
    write!(
        connection,
        "GET {path} HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n"
    )
    .expect("a request");
    let mut answer = String::new();
    connection.read_to_string(&mut answer).expect("an answer");
    answer
}

fn with_services(names: &[&str]) -> ApiServer {
    let server = ApiServer::start().expect("the test API server starts");
    for name in names {
        server.apply(json!({"kind": "Service", "metadata": {"namespace": "default", "name": name}}));
    }
    server
}

#[test]
fn a_watch_from_nowhere_begins_with_everything() {
    let server = with_services(&["a", "b"]);
    let answer = get(
        &server,
        "/api/v1/services?watch=true&timeoutSeconds=0&allowWatchBookmarks=true",
    );
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(answer.matches(r#""type":"ADDED""#).count(), 2, "{answer}");
    assert_eq!(
        answer.matches(r#""type":"BOOKMARK""#).count(),
        1,
        "a proper end has a bookmark: {answer}"
    );
}

#[test]
fn a_version_that_is_yet_to_come_is_refused() {
    let server = with_services(&["a"]);
    let answer = get(&server, "/api/v1/services?watch=true&resourceVersion=1000");
    assert!(
        answer.starts_with("HTTP/1.1 504") && answer.contains("Too large resource version"),
        "{answer}"
    );
}

#[test]
fn pages_lead_to_each_other() {
    let server = with_services(&["a", "b", "c"]);
    let first = get(&server, "/api/v1/services?limit=2");
    assert!(
        first.contains(r#""continue":"5/default/b""#) && first.contains(r#""remainingItemCount":1"#),
        "{first}"
    );
    let second = get(&server, "/api/v1/services?limit=2&continue=5%2Fdefault%2Fb");
    assert!(
        second.contains(r#""name":"c""#) && !second.contains(r#""continue""#),
        "{second}"
    );
}

#[test]
fn what_is_not_there_is_refused() {
    let server = with_services(&[]);
    for (path, status) in [
        ("/api/v1/pods", 404),
        ("/api/v1/endpointslices", 404),
        (
            "/apis/discovery.k8s.io/v1/endpointslices?fieldSelector=spec.clusterIP!%3DNone",
            400,
        ),
    ] {
        let answer = get(&server, path);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(r#""kind":"Status""#),
            "{answer}"
        );
    }
    server.forbid(Resource::Nodes);
    assert!(get(&server, "/api/v1/nodes").starts_with("HTTP/1.1 403"));
    assert!(get(&server, "/api/v1/services").starts_with("HTTP/1.1 200"));
}
