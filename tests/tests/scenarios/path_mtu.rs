//! Paths that take only smaller packets than their ends do.

use anyhow::{Context as _, Result, ensure};
use proxy_tests::{
    lab::{Connection, Family, Lab},
    require_root,
};

use super::{PORT, serve};

/// More than 1280, which IPv6 asks for (RFC 8200, 5).
const NARROW: &str = "1300";

/// The node of the endpoint says "packet too big" about a packet to the endpoint; the client must hear it about its
/// Service, or the connection hangs.
#[test]
fn path_mtu_discovery_works_through_a_service() -> Result<()> {
    require_root!();
    Lab::builder()
        .node("node-a", &["client"])
        .node("node-b", &["web"])
        .strict()
        .run(|lab| {
            let service = serve(lab, "web", 1, &["web"])?;
            let _agents = lab.start_agents()?;
            let device = lab.pod("web").host_device().context("no device of its own")?;
            lab.namespace("node-b").ip(&format!("link set {device} mtu {NARROW}"))?;
            for family in Family::ALL {
                let to = service.frontend(family, PORT);
                let client = lab.namespace("client");
                client.run(|| Connection::open(to)?.push(100_000))?;
                let route = client.tool("ip", &["route", "get", &to.ip().to_string()], "")?;
                ensure!(route.contains(&format!("mtu {NARROW}")), "{route}");
            }
            let offended = lab.offended_rules()?;
            ensure!(offended.is_empty(), "{offended:#?}");
            Ok(())
        })
}
