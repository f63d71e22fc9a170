//! What kubelets and load balancers ask the agent.

use std::net::{IpAddr, SocketAddr, TcpListener};

use anyhow::{Context as _, Result, ensure};
use proxy_tests::{
    api_server::Resource,
    lab::{Family, PATIENCE, wait_until},
    require_root,
};
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, NODE, cluster, web},
    http::{Page, get},
};

/// Port of the health check of [`serve_for_load_balancer`].
const CHECK: u16 = 31_234;

fn healthz(cluster: &Cluster<'_>, path: &str) -> Result<(Page, Value)> {
    let page = get(cluster.lab.node(NODE).namespace(), "127.0.0.1:10256".parse()?, path)?;
    let body = serde_json::from_str(&page.body).with_context(|| format!("{page:?}"))?;
    Ok((page, body))
}

/// Waits until a page answers with a status.
fn wait_for(cluster: &Cluster<'_>, path: &str, status: u16) -> Result<(Page, Value)> {
    let mut last = None;
    wait_until(&format!("{path} answers {status}"), PATIENCE, || {
        let (page, body) = healthz(cluster, path).ok()?;
        let found = (page.status == status).then(|| (page, body.clone()));
        last = Some(body);
        found
    })
    .with_context(|| format!("last: {last:?}"))
}

fn node(spec: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}, "spec": spec})
}

/// behaviour.md 8.4, 8.5: the proxy is live all the time; load balancers are told when the node is to go.
#[test]
fn rule_8_5_healthz_follows_the_node_and_livez_does_not() -> Result<()> {
    require_root!();
    cluster(|cluster| {
        cluster.apply(&web(cluster.lab, &["web-1"]))?;
        let _agent = cluster.start_agent()?;
        let (_, unknown) = wait_for(cluster, "/healthz", 503)?;
        ensure!(unknown["nodeEligible"] == false, "an unknown Node: {unknown}");

        cluster.server.apply(node(&json!({})));
        let (page, body) = wait_for(cluster, "/healthz", 200)?;
        ensure!(page.header("content-type") == Some("application/json"), "{page:?}");
        ensure!(page.header("x-content-type-options") == Some("nosniff"), "{page:?}");
        ensure!(body["nodeEligible"] == true && body["healthy"] == true, "{body}");
        ensure!(body["lastUpdated"] == body["currentTime"], "{body}");
        for family in ["IPv4", "IPv6"] {
            ensure!(body["status"][family]["healthy"] == true, "{body}");
        }

        let taint = json!({"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]});
        cluster.server.apply(node(&taint));
        let (page, body) = wait_for(cluster, "/healthz", 503)?;
        ensure!(body["nodeEligible"] == false && body["healthy"] == true, "{body}");
        ensure!(page.header("x-content-type-options") == Some("nosniff"), "{page:?}");
        let (page, body) = healthz(cluster, "/livez")?;
        ensure!(page.status == 200 && body["nodeEligible"].is_null(), "{page:?}");

        cluster.server.apply(node(&json!({})));
        wait_for(cluster, "/healthz", 200)?;
        cluster.server.begin_deletion(Resource::Nodes, "", NODE);
        wait_for(cluster, "/healthz", 503)?;

        // At every address of both families, and counted.
        let namespace = cluster.lab.node(NODE).namespace();
        ensure!(get(namespace, "[::1]:10256".parse()?, "/livez")?.status == 200);
        let text = get(namespace, "127.0.0.1:10249".parse()?, "/metrics")?.body;
        let counted = |name: &str| text.lines().any(|line| line.starts_with(name));
        ensure!(counted("kubeproxy_proxy_healthz_total{code=\"503\"} "), "{text}");
        ensure!(counted("kubeproxy_proxy_livez_total{code=\"200\"} 2"), "{text}");
        Ok(())
    })
}

/// A Service of type LoadBalancer with external policy Local, and its slice with these endpoints on the node.
fn serve_for_load_balancer(cluster: &Cluster<'_>, port: u16, conditions: &[Value]) {
    let service = web(cluster.lab, &["web-1"]);
    let mut object = serde_json::to_value(service.service()).expect("a Service");
    object["spec"]["type"] = "LoadBalancer".into();
    object["spec"]["externalTrafficPolicy"] = "Local".into();
    object["spec"]["healthCheckNodePort"] = port.into();
    cluster.server.apply(object);
    let mut slice = serde_json::to_value(service.slice(Family::V4)).expect("an EndpointSlice");
    let endpoints = conditions.iter().enumerate().map(|(index, conditions)| {
        json!({"addresses": [format!("10.9.9.{index}")], "nodeName": NODE, "conditions": conditions})
    });
    slice["endpoints"] = endpoints.collect();
    cluster.server.apply(slice);
}

/// Waits for an answer of the health check port that has this weight.
fn wait_for_weight(cluster: &Cluster<'_>, address: IpAddr, port: u16, weight: &str) -> Result<Page> {
    let address = SocketAddr::new(address, port);
    let mut last = None;
    wait_until(&format!("{address} tells weight {weight}"), PATIENCE, || {
        let page = get(cluster.lab.node(NODE).namespace(), address, "/any/path");
        let page = page.map_err(|error| last = Some(format!("{error:#}"))).ok()?;
        let found = page.header("x-load-balancing-endpoint-weight") == Some(weight);
        if !found {
            last = Some(format!("{page:?}"));
        }
        found.then_some(page)
    })
    .with_context(|| format!("last: {last:?}"))
}

/// behaviour.md 8.1, 8.2, 8.3: the port follows the Service, and the answer its endpoints here.
#[test]
fn rule_8_1_health_check_node_ports_follow_services() -> Result<()> {
    require_root!();
    cluster(|cluster| {
        let lab = cluster.lab;
        let address: IpAddr = lab.node(NODE).wire_addresses()[0].v4.into();
        cluster.apply_node(NODE, &[address.to_string()]);
        let (ready, terminating) = (json!({"ready": true}), json!({"ready": true, "terminating": true}));
        serve_for_load_balancer(cluster, CHECK, &[ready.clone(), ready.clone(), terminating.clone()]);
        // Another process has the port at first.
        let at = SocketAddr::new(address, CHECK);
        let taken = lab.node(NODE).namespace().run(|| TcpListener::bind(at))?;
        let log = cluster.log();
        let _agent = cluster.spawn_agent()?;
        log.wait_for(&["WARN", "cannot serve the health check of default/web at port 31234"])?;
        let refused = cluster.server.wait_for_event("the refusal", |event| {
            event["reason"] == "FailedToStartServiceHealthcheck"
        });
        ensure!(
            refused["regarding"]["kind"] == "Service" && refused["type"] == "Warning",
            "{refused}"
        );
        drop(taken);

        let page = wait_for_weight(cluster, address, CHECK, "2")?;
        ensure!(page.status == 200, "{page:?}");
        ensure!(page.header("content-type") == Some("application/json"), "{page:?}");
        ensure!(page.header("x-content-type-options") == Some("nosniff"), "{page:?}");
        let body = "{\n\t\"service\": {\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": 2,\n\t\
                    \"serviceProxyHealthy\": true\n}";
        ensure!(page.body == body, "{page:?}");

        // None is left that counts.
        serve_for_load_balancer(cluster, CHECK, std::slice::from_ref(&terminating));
        let page = wait_for_weight(cluster, address, CHECK, "0")?;
        ensure!(page.status == 503, "{page:?}");

        // Another port, for which an API server wants another Service: the old one is closed.
        cluster.server.delete(Resource::Services, "default", "web");
        serve_for_load_balancer(cluster, CHECK + 1, std::slice::from_ref(&ready));
        wait_for_weight(cluster, address, CHECK + 1, "1")?;
        let namespace = lab.node(NODE).namespace();
        ensure!(get(namespace, at, "/").is_err(), "the old port is open still");

        cluster.server.delete(Resource::Services, "default", "web");
        wait_until("the port is closed with its Service", PATIENCE, || {
            get(namespace, SocketAddr::new(address, CHECK + 1), "/")
                .is_err()
                .then_some(())
        })
    })
}
