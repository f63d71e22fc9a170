//! Traffic from outside that XDP forwards at the uplinks: every scenario of the hooks holds, and what XDP forwards never
//! enters the node's stack.

use anyhow::{Context as _, Result, bail, ensure};
use proxy_tests::{
    lab::{
        Agent, AgentOptions, Connection, Family, ForeignXdp, FrontendKind, Lab, Load, PATIENCE, Policy, Protocol, Xdp,
        under_xdp, wait_until,
    },
    require_root,
};

use super::{
    fragment, generation,
    outside::{self, cluster, expose_each, frontends, start_agents},
    reject, rollout, silence, size, takeover,
};

/// Runs a scenario of the hooks under both modes of XDP.
macro_rules! under_xdp {
    ($($room:ident::$scenario:ident;)*) => {$(
        mod $scenario {
            use super::*;

            #[test]
            fn generic() -> Result<()> {
                under_xdp(Xdp::Generic, $room::$scenario)
            }

            #[test]
            fn native() -> Result<()> {
                under_xdp(Xdp::Native, $room::$scenario)
            }
        }
    )*};
}

under_xdp! {
    outside::rule_5_4_policy_cluster_serves_and_masquerades_clients_from_outside;
    outside::rule_5_4_on_strict_nodes_in_every_shape;
    outside::rule_5_4_policy_cluster_masquerades_pods;
    outside::rule_5_5_policy_local_keeps_the_clients_address;
    outside::rule_5_5_on_strict_nodes;
    outside::rule_5_6_policy_local_gives_pods_the_whole_cluster;
    outside::rule_6_1_affinity_is_shared_by_all_frontends_of_a_port;
    outside::rule_3_8_a_node_port_at_another_address_is_left_alone;
    outside::a_request_by_one_uplink_is_answered_by_the_other;
    outside::bulk_arrives_unchanged;
    rollout::a_rolling_update_loses_no_request_under_policy_cluster;
    rollout::a_rolling_update_loses_no_request_under_policy_local;
    reject::rule_4_1_without_endpoints_every_frontend_refuses;
    silence::rule_4_3_external_policy_local_drops_without_local_endpoint;
    silence::rule_3_10_source_ranges_guard_the_load_balancer_alone;
    fragment::large_datagrams_through_every_frontend;
    fragment::large_datagrams_by_policy_local;
    fragment::large_datagrams_on_strict_nodes;
    fragment::fragments_in_any_order;
    size::tcp_discovers_the_path_mtu_through_every_frontend;
    takeover::a_node_is_taken_over;
    generation::a_flow_table_grows_and_shrinks_under_load;
    generation::another_layout_and_back_under_load;
}

/// Counts TCP and UDP packets that come from the uplink and meet netfilter's first hook.
const ENTRANCE: &str = "table inet entrance {
    counter seen { }
    chain entrance {
        type filter hook prerouting priority raw;
        iifname \"eth0\" meta l4proto { tcp, udp } counter name seen
    }
}
";

/// Packets that entered the stack of node-a by its uplink since the last call.
fn entered(lab: &Lab) -> Result<u64> {
    let text = lab.namespace("node-a").tool("nft", &["-j", "reset", "counters"], "")?;
    let listing: serde_json::Value = serde_json::from_str(&text)?;
    let objects = listing["nftables"].as_array().context("no list `nftables`")?;
    let counter = objects.iter().find_map(|object| object["counter"]["packets"].as_u64());
    counter.context("no counter")
}

/// A Service with a backend on the other node alone, asked by every frontend, many packets long: how many packets of that
/// entered the stack of the node in between.
fn packets_that_enter(lab: &Lab) -> Result<u64> {
    let [(_, service)] = &expose_each(lab, &["far"], Policy::Cluster)?[..] else {
        bail!("one Service")
    };
    let _agents = start_agents(lab)?;
    let frontends = frontends(lab, service);
    for (protocol, to) in &frontends {
        // Makes the neighbours known.
        lab.request("outside", *protocol, *to)?;
    }
    lab.namespace("node-a").tool("nft", &["-f", "-"], ENTRANCE)?;
    for (protocol, to) in frontends {
        lab.request("outside", protocol, to)?;
        if protocol == Protocol::Tcp {
            lab.namespace("outside").run(|| -> Result<()> {
                let mut connection = Connection::open(to)?;
                connection.pull(100_000)?;
                connection.push(100_000)?;
                Ok(())
            })?;
        }
    }
    entered(lab)
}

fn measured() -> Result<u64> {
    let mut entered = 0;
    cluster().run(|lab| {
        entered = packets_that_enter(lab)?;
        Ok(())
    })?;
    Ok(entered)
}

#[test]
fn packets_to_another_node_never_enter_the_stack() -> Result<()> {
    require_root!();
    let without = measured()?;
    ensure!(without > 100, "without XDP {without} packets entered the stack");
    for mode in Xdp::ALL {
        let with = under_xdp(mode, measured)?;
        ensure!(with == 0, "under {mode} XDP {with} packets entered the stack");
    }
    Ok(())
}

/// An agent for node-a with this `--xdp`.
fn start_agent(lab: &Lab, xdp: &str) -> Result<Agent> {
    let mut options = AgentOptions::default();
    options.arguments.push(format!("--xdp={xdp}"));
    lab.start_agent_with("node-a", options)
}

/// XDP comes, is replaced and goes while requests and an open connection cross it.
fn comes_and_goes(mode: Xdp) -> Result<()> {
    under_xdp(mode, || {
        cluster().run(|lab| {
            let services = expose_each(lab, &["near", "far"], Policy::Cluster)?;
            lab.apply_nodes()?;
            let _other = lab.start_agent("node-b")?;
            let mut agent = start_agent(lab, "off")?;
            let targets: Vec<_> = services
                .iter()
                .flat_map(|(_, service)| frontends(lab, service))
                .collect();
            let to = services[1]
                .1
                .frontend_of(FrontendKind::NodePort, Family::V6, "tcp", lab.node("node-a"));
            let mut open = lab.namespace("outside").run(|| Connection::open(to))?;
            let load = Load::start(lab.namespace("outside"), 2, &targets);
            for xdp in [mode.name(), mode.name(), "off", mode.name(), "off"] {
                load.wait_for(100)?;
                agent.terminate()?;
                agent = start_agent(lab, xdp)?;
                load.wait_for(100)?;
                open.ask().with_context(|| format!("--xdp={xdp}"))?;
            }
            load.stop().expect_no_loss()?;
            lab.namespace("outside").expect_no_loss()
        })
    })
}

#[test]
fn generic_xdp_comes_and_goes_under_load() -> Result<()> {
    require_root!();
    comes_and_goes(Xdp::Generic)
}

#[test]
fn native_xdp_comes_and_goes_under_load() -> Result<()> {
    require_root!();
    comes_and_goes(Xdp::Native)
}

/// What `status` says of XDP at the uplink of node-a.
fn told(lab: &Lab) -> Result<String> {
    let status = lab.listing("node-a", "status", &[])?;
    let devices = status["devices"].as_array().context("no list `devices`")?;
    let uplink = devices.iter().find(|device| device["name"] == "eth0");
    let why = uplink.and_then(|device| device["xdp_why"].as_str());
    Ok(why.context("nothing is told")?.to_owned())
}

/// Another owner's program is left alone, and the hooks serve; once it goes, XDP comes.
#[test]
fn another_program_is_left_alone() -> Result<()> {
    require_root!();
    under_xdp(Xdp::Native, || {
        cluster().run(|lab| {
            let [(_, service)] = &expose_each(lab, &["far"], Policy::Cluster)?[..] else {
                bail!("one Service")
            };
            lab.apply_nodes()?;
            let _other = lab.start_agent("node-b")?;
            let foreign = ForeignXdp::attach(lab.namespace("node-a"), "eth0")?;
            let _agent = start_agent(lab, "auto")?;
            wait_until("status tells of the other program", PATIENCE, || {
                (told(lab).ok()? == "none: another XDP program is attached").then_some(())
            })?;
            let ask_all = || -> Result<()> {
                for (protocol, to) in frontends(lab, service) {
                    lab.request("outside", protocol, to)?;
                }
                Ok(())
            };
            ask_all()?;
            foreign.detach();
            wait_until("XDP is attached", PATIENCE, || {
                (told(lab).ok()? == "native").then_some(())
            })?;
            ask_all()
        })
    })
}

/// Rules by device, and `cleanup`.
#[test]
fn rules_name_devices_and_cleanup_detaches() -> Result<()> {
    require_root!();
    under_xdp(Xdp::Generic, || {
        cluster().run(|lab| {
            for (rule, expected) in [("eth9=native", "off"), ("eth*=generic", "generic"), ("auto", "native")] {
                let mut options = AgentOptions::default();
                options.arguments.extend(["--xdp".to_owned(), rule.to_owned()]);
                let agent = lab.start_agent_with("node-a", options)?;
                wait_until(&format!("--xdp {rule} has effect"), PATIENCE, || {
                    (told(lab).ok()? == expected).then_some(())
                })?;
                agent.terminate()?;
            }
            let xdp = || lab.namespace("node-a").tool("bpftool", &["net", "show"], "");
            ensure!(xdp()?.contains("driver id"), "{}", xdp()?);
            lab.ask_agent("node-a", "cleanup", &[])?;
            ensure!(!xdp()?.contains("driver id"), "{}", xdp()?);
            Ok(())
        })
    })
}

/// A frame for another host, which a bridge floods to the node, is not forwarded: its own host does that.
fn frames_for_others_are_left_alone(mode: Xdp) -> Result<()> {
    under_xdp(mode, || {
        cluster().run(|lab| {
            let [(_, service)] = &expose_each(lab, &["far"], Policy::Cluster)?[..] else {
                bail!("one Service")
            };
            let _agents = start_agents(lab)?;
            let to = service.frontend_of(FrontendKind::NodePort, Family::V4, "udp", lab.node("node-a"));
            lab.request("outside", Protocol::Udp, to)?;
            lab.namespace("router").ip(&format!(
                "neigh replace {} lladdr 02:00:00:00:00:99 dev wire nud permanent\n",
                to.ip()
            ))?;
            let answered = lab.request("outside", Protocol::Udp, to);
            ensure!(answered.is_err(), "{answered:?}");
            Ok(())
        })
    })
}

#[test]
fn generic_xdp_leaves_frames_for_others_alone() -> Result<()> {
    require_root!();
    frames_for_others_are_left_alone(Xdp::Generic)
}

#[test]
fn native_xdp_leaves_frames_for_others_alone() -> Result<()> {
    require_root!();
    frames_for_others_are_left_alone(Xdp::Native)
}
