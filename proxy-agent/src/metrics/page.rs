//! The metrics server's pages (behaviour.md 8.7).

use std::{net::SocketAddr, sync::Arc};

use anyhow::Result;
use hyper::StatusCode;
use tokio::sync::Mutex;

use super::Metrics;
use crate::http::{self, Answer};

/// What `/proxyMode` says. kube-proxy's words are iptables, ipvs and nftables; e2e tests ask in order to skip what such a mode
/// can't do, so a name of its own makes them run everything.
const MODE: &str = "ebpf";

/// What `/metrics` is written in.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the pages are made from.
struct Pages {
    metrics: Arc<Metrics>,
    /// One scrape at a time
    turn: Mutex<()>,
}

/// Serves `/metrics`, `/healthz`, `/proxyMode` and `/configz` at an address from now on, in the background.
///
/// # Errors
/// With `hard_fail` only: nobody can listen there (behaviour.md 8.6).
pub fn serve(
    metrics: Metrics,
    address: SocketAddr,
    hard_fail: bool,
    refused: impl FnOnce(&str) + Send + 'static,
) -> Result<()> {
    let pages = Arc::new(Pages {
        metrics: Arc::new(metrics),
        turn: Mutex::new(()),
    });
    http::start("metrics", address, hard_fail, refused, move |request| {
        let pages = pages.clone();
        async move { pages.page(request.uri().path()).await }
    })
}

impl Pages {
    async fn page(&self, path: &str) -> Answer {
        match path {
            "/metrics" => self.scrape().await,
            "/healthz" => http::text(StatusCode::OK, "ok"),
            "/proxyMode" => http::text(StatusCode::OK, MODE),
            "/configz" => http::answer(StatusCode::OK, "application/json", self.metrics.configz.to_string()),
            _ => http::text(StatusCode::NOT_FOUND, "404 page not found\n"),
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
