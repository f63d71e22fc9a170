//! Services that are none of this proxy's leave no trace: not in the tables, and not in what becomes of packets.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::{core::v1 as core, discovery::v1::EndpointSlice};
use proxy_tests::{
    lab::{Family, Lab, PATIENCE, Protocol, Service, address::OUTSIDE, wait_until},
    require_root,
};

use super::{
    PORT,
    change::change,
    outside::{cluster, expose, frontends, start_agents},
};

/// How many entries each table has that says what is served. A Service's name stays as long as flows tell of it.
fn fill(lab: &Lab, node: &str) -> Result<BTreeMap<String, u64>> {
    let status = lab.listing(node, "status", &[])?;
    let tables = status["tables"].as_array().context("status has tables")?;
    let entry = |table: &serde_json::Value| {
        let name = table["name"].as_str()?;
        let of_services = ["services_v", "slots_v", "service_names"];
        let counted = of_services.iter().any(|start| name.starts_with(start));
        counted.then(|| Some((name.to_owned(), table["entries"].as_u64()?)))?
    };
    Ok(tables.iter().filter_map(entry).collect())
}

/// Gives the agents a Service that somebody changed by hand, with its slices.
fn write(lab: &Lab, service: &Service, edit: impl Fn(&mut core::Service, &mut [EndpointSlice])) -> Result<()> {
    let mut object = service.service();
    let slices = Family::ALL.into_iter().flat_map(|family| service.family_slices(family));
    let mut slices: Vec<_> = slices.collect();
    edit(&mut object, &mut slices);
    let mut documents = vec![serde_yaml_ng::to_string(&object)?];
    for slice in &slices {
        documents.push(serde_yaml_ng::to_string(slice)?);
    }
    let (namespace, name) = service.key();
    lab.write_manifest(&format!("{namespace}-{name}.yaml"), &documents.join("---\n"))?;
    lab.settle_everywhere()
}

fn spec(service: &mut core::Service) -> &mut core::ServiceSpec {
    service.spec.get_or_insert_default()
}

/// What makes a Service none of this proxy's.
type Edit = fn(&mut core::Service, &mut [EndpointSlice]);

/// behaviour.md 1.3: with its ClusterIP and ports, as the API server leaves them when the type is changed.
fn external_name(service: &mut core::Service, _: &mut [EndpointSlice]) {
    let spec = spec(service);
    spec.type_ = Some("ExternalName".to_owned());
    spec.external_name = Some("example.com".to_owned());
}

/// behaviour.md 1.1: the controller of slices copies the label.
fn headless_label(service: &mut core::Service, slices: &mut [EndpointSlice]) {
    let label = || ("service.kubernetes.io/headless".to_owned(), String::new());
    service.metadata.labels.get_or_insert_default().extend([label()]);
    for slice in slices {
        slice.metadata.labels.get_or_insert_default().extend([label()]);
    }
}

/// behaviour.md 1.2: its slices have no label of their own, and come to the proxy.
fn headless(service: &mut core::Service, _: &mut [EndpointSlice]) {
    let spec = spec(service);
    spec.cluster_ip = Some("None".to_owned());
    spec.cluster_ips = Some(vec!["None".to_owned()]);
}

/// A Service with a frontend of every kind is there, then another's, then there again (behaviour.md 1.1, 1.2, 1.3).
#[test]
fn services_of_others_leave_no_trace() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        // One of its addresses is another server's, which pods reach when this proxy doesn't serve it.
        lab.serve("outside", PORT)?;
        let web = expose(lab, "web", 1, &["near", "far"])?.balancer(OUTSIDE, None);
        let _agents = start_agents(lab)?;
        lab.settle_everywhere()?;
        // What the lab itself has there: one endpoint, once nobody can read earlier ones any more.
        let before = wait_until("old endpoints are freed", PATIENCE, || {
            fill(lab, "node-a").ok().filter(|fill| fill.get("slots_v4") == Some(&1))
        })?;
        ensure!(before.len() == 5, "tables are missing: {before:?}");
        let mut pods = Vec::new();
        for family in Family::ALL {
            for protocol in Protocol::ALL {
                pods.push((protocol, OUTSIDE.with_port(family, PORT)));
            }
        }
        let edits: [(&str, Edit, bool); 4] = [
            ("ExternalName, never used", external_name, false),
            ("ExternalName", external_name, true),
            ("headless label", headless_label, true),
            ("headless", headless, true),
        ];
        for (what, edit, used) in edits {
            change(lab, &web)?;
            let there = fill(lab, "node-a")?;
            ensure!(there != before, "{what}: nothing was written: {there:?}");
            for &(protocol, to) in pods.iter().filter(|_| used) {
                let answer = lab.request("client", protocol, to)?;
                ensure!(answer.backend != "outside", "{what}, {protocol} {to}: {answer:?}");
                let cluster_ip = web.frontend(if to.is_ipv4() { Family::V4 } else { Family::V6 }, PORT);
                lab.request("client", protocol, cluster_ip)?;
            }
            for (protocol, to) in frontends(lab, &web).into_iter().filter(|_| used) {
                lab.request("outside", protocol, to)?;
            }
            write(lab, &web, edit)?;
            // Slots and names are freed when no packet under way can read them any more, names by the collector's next round: on
            // a quiet node that is a minute later.
            let mut now = BTreeMap::new();
            wait_until("the tables are as before", PATIENCE * 4, || {
                now = fill(lab, "node-a").ok()?;
                if used {
                    now.insert("service_names".to_owned(), before["service_names"]);
                }
                (now == before).then_some(())
            })
            .with_context(|| format!("{what}: {now:?} instead of {before:?}"))?;
            let listed = lab.served_endpoints("node-a", &web)?;
            ensure!(listed.is_empty(), "{what}: {listed:?}");
            for &(protocol, to) in &pods {
                let answer = lab.request("client", protocol, to)?;
                ensure!(answer.backend == "outside", "{what}, {protocol} {to}: {answer:?}");
            }
        }
        Ok(())
    })
}
