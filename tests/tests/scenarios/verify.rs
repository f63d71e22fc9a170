//! `status --verify` tells whether the tables hold what is planned.

use anyhow::{Result, bail, ensure};
use proxy_agent::dataplane::{kernel, pin::PinDirectory};
use proxy_common::layout::SlotKey;
use proxy_tests::{
    lab::{Family, FrontendKind, Lab, Policy},
    require_root,
};

use super::{PORT, serve};

#[test]
fn tables_that_hold_the_plan_are_told_from_those_that_do_not() -> Result<()> {
    require_root!();
    Lab::builder().node("node-a", &["client", "near"]).outside().run(|lab| {
        let web = serve(lab, "web", 1, &["near"])?;
        let web = web.node_port("tcp", 30080).external_policy(Policy::Local);
        lab.apply(&web)?;
        lab.apply_nodes()?;
        let mut agent = lab.start_agent("node-a")?;
        let told = lab.verify(&agent)?;
        ensure!(told.contains("The tables hold the plan: 8 frontends"), "{told}");

        // A hand takes an endpoint away, behind the agent's back.
        let mut tables = kernel::open(&PinDirectory::new(lab.pin_directory("node-a")))?;
        let frontend = web.frontend(Family::V4, PORT);
        let entries = tables.v4.services.entries()?;
        let found = entries.iter().find(|(key, _)| key.port == PORT && key.protocol == 6);
        let Some((_, value)) = found else {
            bail!("{frontend} is not in the table")
        };
        let slot = SlotKey {
            set: value.cluster_set,
            index: 0,
        };
        ensure!(tables.v4.slots.remove(&slot)?, "there was no endpoint");
        let Err(error) = lab.verify(&agent) else {
            bail!("the damage is not told")
        };
        ensure!(format!("{error:#}").contains("differ from the plan"), "{error:#}");
        agent.expect_differences();

        // The next agent makes it good.
        agent.kill()?;
        let agent = lab.start_agent("node-a")?;
        lab.verify(&agent)?;
        let to = web.frontend_of(FrontendKind::NodePort, Family::V4, "tcp", lab.node("node-a"));
        lab.tcp_request("outside", to)?;
        Ok(())
    })
}

#[test]
fn tables_that_nobody_has_written_are_told() -> Result<()> {
    require_root!();
    Lab::builder().node("node-a", &["client", "near"]).run(|lab| {
        let agent = lab.start_agent("node-a")?;
        lab.verify(&agent)?;
        agent.terminate()?;
        serve(lab, "web", 1, &["near"])?;
        let manifests = lab.manifests();
        let manifests = manifests.to_string_lossy();
        let arguments = ["--verify", "--node-name", "node-a", "--manifests", &manifests];
        let Err(error) = lab.ask_agent("node-a", "status", &arguments) else {
            bail!("what nobody has written is not told")
        };
        ensure!(format!("{error:#}").contains("nothing is programmed yet"), "{error:#}");
        Ok(())
    })
}
