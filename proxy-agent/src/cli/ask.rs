//! Asks the agent that runs on this node. A reading command does without if none answers.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{net::TcpStream, runtime, time::timeout};

use crate::{
    config::parse_metrics_address,
    inquiry::{About, AgentDetail, ServiceDetail},
};

/// How long an answer may take: the agent may be in the midst of writing all Services.
const PATIENCE: Duration = Duration::from_secs(3);

/// Where the agent answers.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct AskArgs {
    /// Where the agent of this node serves metrics: it is asked what the tables don't hold
    #[arg(long = "agent", value_name = "ADDR[:PORT]", value_parser = parse_metrics_address,
          default_value = "127.0.0.1:10249")]
    address: SocketAddr,
}

impl AskArgs {
    /// How it is.
    ///
    /// # Errors
    /// None answers, or it is none.
    pub(super) fn agent(self) -> Result<AgentDetail> {
        self.ask("/debug/agent")
    }

    /// What it knows of Services.
    ///
    /// # Errors
    /// None answers, or it is none.
    pub(super) fn services(self, about: &About) -> Result<Vec<ServiceDetail>> {
        self.ask(&format!("/debug/services?{}", about.to_query()))
    }

    fn ask<T: DeserializeOwned>(self, path: &str) -> Result<T> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the runtime")?;
        let answer = runtime.block_on(async { timeout(PATIENCE, get(self.address, path)).await });
        let body = match answer {
            Ok(body) => body,
            Err(_) => Err(anyhow::anyhow!("no answer in {} s", PATIENCE.as_secs())),
        };
        let no_agent = || format!("no agent answers at {}", self.address);
        serde_json::from_slice(&body.with_context(no_agent)?).with_context(no_agent)
    }
}

/// The body of a page.
async fn get(address: SocketAddr, path: &str) -> Result<Bytes> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Its failure is the request's as well.
    tokio::spawn(connection);
    let request = Request::get(path)
        .header(HOST, address.to_string())
        .body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    ensure!(response.status().is_success(), "{path}: {}", response.status());
    Ok(response.into_body().collect().await?.to_bytes())
}
