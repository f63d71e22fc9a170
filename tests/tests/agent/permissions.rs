//! What the agent asks of an API server is what the ClusterRole in `manifests/base` grants: no more, no less.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context as _, Result};
use k8s_openapi::api::rbac::v1::ClusterRole;
use proxy_tests::{
    api_server::{Request, Resource, Verb},
    lab::{PATIENCE, wait_until},
    require_root,
};
use serde::Deserialize as _;

use crate::cluster::{NODE, cluster, web};

/// Group, resource, verb.
type Permission = (String, String, String);

fn granted() -> Result<BTreeSet<Permission>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/base/rbac.yaml");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let documents = serde_yaml_ng::Deserializer::from_str(&text).map(serde_yaml_ng::Value::deserialize);
    let documents = documents.collect::<Result<Vec<_>, _>>()?;
    let role = documents
        .into_iter()
        .find(|document| document["kind"] == "ClusterRole")
        .context("no ClusterRole")?;
    let role: ClusterRole = serde_yaml_ng::from_value(role)?;
    let mut granted = BTreeSet::new();
    for rule in role.rules.unwrap_or_default() {
        for group in rule.api_groups.iter().flatten() {
            for resource in rule.resources.iter().flatten() {
                granted.extend(
                    rule.verbs
                        .iter()
                        .map(|verb| (group.clone(), resource.clone(), verb.clone())),
                );
            }
        }
    }
    Ok(granted)
}

fn asked_for(request: &Request) -> Permission {
    let group = request.resource.group();
    let verb = match request.verb {
        Verb::List { .. } | Verb::NextPage => "list",
        Verb::Watch { .. } => "watch",
    };
    (group.to_owned(), request.resource.plural().to_owned(), verb.to_owned())
}

/// behaviour.md 8.15
#[test]
fn the_role_grants_what_the_agent_asks_for_and_nothing_more() -> Result<()> {
    require_root!();
    cluster(|cluster| {
        cluster.apply(&web(cluster.lab, &["web-1"]))?;
        cluster.apply_node(
            NODE,
            &cluster
                .lab
                .node(NODE)
                .addresses()
                .both()
                .map(|address| address.to_string()),
        );
        cluster.apply_node("another", &[]);
        let _agent = cluster.start_agent()?;
        cluster.server.wait_for_watches(Resource::ALL.len());
        cluster.server.expire_watches();
        cluster.server.wait_for_requests("all is listed again", |requests| {
            requests
                .iter()
                .filter(|request| matches!(request.verb, Verb::List { .. }))
                .count()
                == 2 * Resource::ALL.len()
        });
        cluster.server.wait_for_watches(Resource::ALL.len());
        let requests = cluster.server.requests();
        let mut asked: BTreeSet<_> = requests.iter().map(asked_for).collect();
        wait_until("it tells that it has started", PATIENCE, || {
            (!cluster.server.events().is_empty()).then_some(())
        })?;
        let event = ["events.k8s.io", "events", "create"].map(str::to_owned);
        asked.insert(event.into());
        assert_eq!(asked, granted()?);
        for request in requests.iter().filter(|request| request.resource == Resource::Nodes) {
            assert_eq!(
                request.fields,
                format!("metadata.name={NODE}"),
                "of the Nodes, it follows its own"
            );
        }
        Ok(())
    })
}
