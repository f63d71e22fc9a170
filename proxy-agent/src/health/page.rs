//! `/healthz` and `/livez` (behaviour.md 8.5).

use std::net::SocketAddr;

use anyhow::Result;
use hyper::StatusCode;

use super::{Moment, ProxyHealth};
use crate::http::{self, Answer};

/// Which page was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// `/healthz`: the proxy, and the node as load balancers see it
    Healthz,
    /// `/livez`: the proxy alone
    Livez,
}

/// Serves the pages at an address from now on, in the background; `count` is told of each answer, page and status.
///
/// # Errors
/// With `hard_fail` only: nobody can listen there (behaviour.md 8.6).
pub fn serve(
    health: ProxyHealth,
    address: SocketAddr,
    hard_fail: bool,
    refused: impl FnOnce(&str) + Send + 'static,
    count: impl Fn(Asked, u16) + Clone + Send + Sync + 'static,
) -> Result<()> {
    http::start("health", address, hard_fail, refused, move |request| {
        let answer = page(&health, request.uri().path(), &count);
        async move { answer }
    })
}

fn page(health: &ProxyHealth, path: &str, count: impl Fn(Asked, u16)) -> Answer {
    let asked = match path {
        "/healthz" => Asked::Healthz,
        "/livez" => Asked::Livez,
        _ => return http::text(StatusCode::NOT_FOUND, "404 page not found\n"),
    };
    let report = health.report(asked == Asked::Healthz, Moment::now());
    let status = if report.is_good {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    count(asked, status.as_u16());
    // It consists of texts and truths.
    let body = serde_json::to_string(&report).unwrap_or_default();
    http::answer(status, "application/json", body)
}
