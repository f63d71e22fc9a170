//! The metrics server's pages (behaviour.md 8.7).

use std::{fmt, net::SocketAddr, sync::Arc};

use anyhow::Result;
use hyper::{HeaderMap, StatusCode, Uri};
use serde::Serialize;
use tokio::sync::Mutex;

use super::{Metrics, slis::HealthChecks, text};
use crate::{
    http::{self, Answer},
    inquiry::{About, Inquirer},
};

/// What `/proxyMode` says. kube-proxy's words are iptables, ipvs and nftables; e2e tests ask in order to skip what such a mode
/// can't do, so a name of its own makes them run everything.
const MODE: &str = "ebpf";

/// All pages that there are.
const PATHS: [&str; 10] = [
    "/configz",
    "/debug/agent",
    "/debug/services",
    "/flagz",
    "/healthz",
    "/healthz/ping",
    "/metrics",
    "/metrics/slis",
    "/proxyMode",
    "/statusz",
];

/// What the pages are made from.
struct Pages {
    metrics: Arc<Metrics>,
    agent: Inquirer,
    /// One scrape at a time
    turn: Mutex<()>,
    health_checks: HealthChecks,
}

/// Serves [`PATHS`] at an address from now on, in the background; `agent` answers those below `/debug`.
///
/// # Errors
/// With `hard_fail` only: nobody can listen there (behaviour.md 8.6).
pub fn serve(
    metrics: Metrics,
    agent: Inquirer,
    address: SocketAddr,
    hard_fail: bool,
    refused: impl FnOnce(&str) + Send + 'static,
) -> Result<()> {
    let pages = Arc::new(Pages {
        metrics: Arc::new(metrics),
        agent,
        turn: Mutex::new(()),
        health_checks: HealthChecks::default(),
    });
    http::start("metrics", address, hard_fail, refused, move |request| {
        let pages = pages.clone();
        async move { pages.page(request.uri(), request.headers()).await }
    })
}

impl Pages {
    async fn page(&self, uri: &Uri, headers: &HeaderMap) -> Answer {
        match uri.path() {
            "/metrics" => self.scrape().await,
            "/metrics/slis" => metrics(text::encode(&self.health_checks.registry)),
            "/healthz" => {
                self.health_checks.answered();
                let is_verbose = uri
                    .query()
                    .is_some_and(|query| query.split('&').any(|word| word.split('=').next() == Some("verbose")));
                http::text(
                    StatusCode::OK,
                    if is_verbose {
                        "[+]ping ok\nhealthz check passed\n"
                    } else {
                        "ok"
                    },
                )
            }
            "/healthz/ping" => http::text(StatusCode::OK, "ok"),
            "/proxyMode" => http::text(StatusCode::OK, MODE),
            "/configz" => http::answer(StatusCode::OK, "application/json", self.metrics.configz.to_string()),
            "/debug/agent" => json(self.agent.agent().await),
            "/debug/services" => self.services(uri.query().unwrap_or_default()).await,
            "/statusz" => self.metrics.zpages.statusz(headers, &PATHS),
            "/flagz" => self.metrics.zpages.flagz(headers),
            _ => http::text(StatusCode::NOT_FOUND, "404 page not found\n"),
        }
    }

    /// One question at a time: the answer may be long.
    async fn services(&self, query: &str) -> Answer {
        let _turn = self.turn.lock().await;
        match About::from_query(query) {
            Ok(about) => json(self.agent.services(about).await),
            Err(reason) => http::answer(StatusCode::BAD_REQUEST, "text/plain; charset=utf-8", reason + "\n"),
        }
    }

    /// On a thread that may block: it takes as long as the tables are large.
    async fn scrape(&self) -> Answer {
        let _turn = self.turn.lock().await;
        let scraped = self.metrics.clone();
        let scrape = tokio::task::spawn_blocking(move || scraped.text()).await;
        metrics(scrape.unwrap_or(Err(fmt::Error)))
    }
}

/// A page of metrics.
fn metrics(text: Result<String, fmt::Error>) -> Answer {
    match text {
        Ok(text) => http::answer(StatusCode::OK, text::CONTENT_TYPE, text),
        Err(_) => http::text(StatusCode::INTERNAL_SERVER_ERROR, "the scrape failed\n"),
    }
}

/// What the agent answered; nothing if it is about to end.
fn json<T: Serialize>(answer: Option<T>) -> Answer {
    match answer.and_then(|answer| serde_json::to_string(&answer).ok()) {
        Some(body) => http::answer(StatusCode::OK, "application/json", body),
        None => http::text(StatusCode::SERVICE_UNAVAILABLE, "the agent is ending\n"),
    }
}
