//! The metrics server's pages (behaviour.md 8.7).

use std::{net::SocketAddr, sync::Arc};

use anyhow::Result;
use hyper::{StatusCode, Uri};
use serde::Serialize;
use tokio::sync::Mutex;

use super::Metrics;
use crate::{
    http::{self, Answer},
    inquiry::{About, Inquirer},
};

/// What `/proxyMode` says. kube-proxy's words are iptables, ipvs and nftables; e2e tests ask in order to skip what such a mode
/// can't do, so a name of its own makes them run everything.
const MODE: &str = "ebpf";

/// What `/metrics` is written in.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the pages are made from.
struct Pages {
    metrics: Arc<Metrics>,
    agent: Inquirer,
    /// One scrape at a time
    turn: Mutex<()>,
}

/// Serves `/metrics`, `/healthz`, `/proxyMode` and `/configz` at an address from now on, in the background; and `/debug/agent` and
/// `/debug/services`, which `agent` answers.
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
    });
    http::start("metrics", address, hard_fail, refused, move |request| {
        let pages = pages.clone();
        async move { pages.page(request.uri()).await }
    })
}

impl Pages {
    async fn page(&self, uri: &Uri) -> Answer {
        match uri.path() {
            "/metrics" => self.scrape().await,
            "/healthz" => http::text(StatusCode::OK, "ok"),
            "/proxyMode" => http::text(StatusCode::OK, MODE),
            "/configz" => http::answer(StatusCode::OK, "application/json", self.metrics.configz.to_string()),
            "/debug/agent" => json(self.agent.agent().await),
            "/debug/services" => self.services(uri.query().unwrap_or_default()).await,
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
        let metrics = self.metrics.clone();
        match tokio::task::spawn_blocking(move || metrics.text()).await {
            Ok(Ok(text)) => http::answer(StatusCode::OK, OPEN_METRICS, text),
            Ok(Err(_)) | Err(_) => http::text(StatusCode::INTERNAL_SERVER_ERROR, "the scrape failed\n"),
        }
    }
}

/// What the agent answered; nothing if it is about to end.
fn json<T: Serialize>(answer: Option<T>) -> Answer {
    match answer.and_then(|answer| serde_json::to_string(&answer).ok()) {
        Some(body) => http::answer(StatusCode::OK, "application/json", body),
        None => http::text(StatusCode::SERVICE_UNAVAILABLE, "the agent is ending\n"),
    }
}
