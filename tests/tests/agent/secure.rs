//! An API server as clusters have it: over TLS, to who shows a token.

use std::{fs, net::TcpListener};

use anyhow::{Result, ensure};
use proxy_tests::{api_server::ApiServer, require_root};
use tempfile::TempDir;

use crate::cluster::{expect_answers, secure_cluster, web};

#[test]
fn a_secure_server_is_trusted_by_its_authority_and_trusts_by_the_token() -> Result<()> {
    require_root!();
    secure_cluster(|cluster| {
        let lab = cluster.lab;
        let web = web(lab, &["web-1"]);
        cluster.apply(&web)?;
        let (authority, token) = (lab.directory().join("ca.crt"), lab.directory().join("token"));
        let (right_authority, right_token) = (fs::read(&authority)?, fs::read(&token)?);

        // Another cluster's authority.
        let elsewhere = TempDir::new()?;
        ApiServer::secure(TcpListener::bind("127.0.0.1:0")?)?.kubeconfig(elsewhere.path())?;
        fs::copy(elsewhere.path().join("ca.crt"), &authority)?;
        let log = cluster.log();
        let agent = cluster.spawn_agent()?;
        log.wait_for(&["WARN", "watch services: can't reach https://", "certificate"])?;
        agent.kill()?;
        ensure!(cluster.server.requests().is_empty(), "it talked to whom it can't trust");

        // Another node's token.
        fs::write(&authority, &right_authority)?;
        fs::write(&token, "not-a-token")?;
        let log = cluster.log();
        let agent = cluster.spawn_agent()?;
        log.wait_for(&["WARN", "watch services: unauthorized: https://"])?;
        agent.kill()?;
        ensure!(cluster.server.requests().is_empty(), "it was let in without a token");

        fs::write(&token, &right_token)?;
        let _agent = cluster.start_agent()?;
        expect_answers(lab, &web, &["web-1"])
    })
}
