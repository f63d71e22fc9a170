//! What the agents of a lab read: files of Services, EndpointSlices and Nodes, and their configuration.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};
use k8s_openapi::{api::core::v1 as core, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use serde_json::{Value, json};

use super::{AgentOptions, Family, Lab, Service, address};

impl Service {
    fn yaml(&self) -> Result<String> {
        let mut documents = vec![serde_yaml_ng::to_string(&self.service())?];
        for slice in Family::ALL.into_iter().flat_map(|family| self.family_slices(family)) {
            documents.push(serde_yaml_ng::to_string(&slice)?);
        }
        Ok(documents.join("---\n"))
    }

    fn file(&self, lab: &Lab) -> PathBuf {
        let (namespace, name) = self.key();
        lab.manifests().join(format!("{namespace}-{name}.yaml"))
    }
}

impl Lab {
    /// Writes a Service and its EndpointSlices for the agents, in one step: they see the old state or the new one.
    pub fn apply(&self, service: &Service) -> Result<()> {
        let file = service.file(self);
        let name = file.file_name().context("a file name")?.to_string_lossy().into_owned();
        self.write_manifest(&name, &service.yaml()?)?;
        self.expect(service);
        Ok(())
    }

    /// Takes note of a Service that agents must serve to count as ready.
    pub(super) fn expect(&self, service: &Service) {
        self.applied
            .lock()
            .expect("nobody panics here")
            .insert(service.full_name(), service.clone());
    }

    /// The Services that were applied and not deleted.
    pub(super) fn applied(&self) -> Vec<Service> {
        self.applied
            .lock()
            .expect("nobody panics here")
            .values()
            .cloned()
            .collect()
    }

    /// Writes a file for the agents in one step; the name must be one they read (`.yaml`, `.yml`, `.json`).
    pub fn write_manifest(&self, name: &str, text: &str) -> Result<()> {
        let file = self.manifests().join(name);
        let unfinished = self.directory().join(format!("{name}.new"));
        fs::write(&unfinished, text)?;
        fs::rename(&unfinished, &file).with_context(|| format!("writing {}", file.display()))
    }

    /// Removes a Service from what the agents see.
    pub fn delete(&self, service: &Service) -> Result<()> {
        self.applied
            .lock()
            .expect("nobody panics here")
            .remove(&service.full_name());
        let file = service.file(self);
        fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))
    }

    /// Writes the Node object of a node, with its addresses on the first wire and its pods' networks, in a zone or in none.
    pub fn apply_node(&self, name: &str, zone: Option<&str>) -> Result<()> {
        let node = self.node(name);
        let label = |zone: &str| [("topology.kubernetes.io/zone".to_owned(), zone.to_owned())].into();
        let address = |address: String| core::NodeAddress {
            address,
            type_: "InternalIP".to_owned(),
        };
        let networks = address::pod_networks(node.number).to_vec();
        let node = core::Node {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                labels: zone.map(label),
                ..Default::default()
            },
            spec: Some(core::NodeSpec {
                pod_cidr: networks.first().cloned(),
                pod_cidrs: Some(networks),
                ..Default::default()
            }),
            status: Some(core::NodeStatus {
                addresses: Some(node.addresses().both().map(|own| address(own.to_string())).to_vec()),
                ..Default::default()
            }),
        };
        self.write_manifest(&format!("node-{name}.yaml"), &serde_yaml_ng::to_string(&node)?)
    }

    /// Writes the Node objects of all nodes, in no zone.
    pub fn apply_nodes(&self) -> Result<()> {
        let mut nodes = self.nodes().iter();
        nodes.try_for_each(|node| self.apply_node(node.name(), None))
    }

    /// Writes a KubeProxyConfiguration with these fields for [`super::AgentOptions::configured`]; a later one of the same name
    /// replaces it.
    pub fn write_configuration(&self, name: &str, fields: &Value) -> Result<PathBuf> {
        let mut object = json!({ "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration" });
        let fields = fields.as_object().context("fields of a KubeProxyConfiguration")?;
        object.as_object_mut().context("an object")?.extend(fields.clone());
        let file = self.directory().join(format!("{name}.conf"));
        fs::write(&file, serde_yaml_ng::to_string(&object)?)?;
        Ok(file)
    }

    /// Describes the nodes to the agents, and gives the options of agents that know which clients are pods (`clusterCIDR`), with
    /// further arguments.
    pub fn cluster_options(&self, arguments: &[&str]) -> Result<AgentOptions> {
        self.apply_nodes()?;
        let cidrs = format!("{},{}", address::POD_NETWORK_V4, address::POD_NETWORK_V6);
        let configuration = self.write_configuration("proxy", &json!({ "clusterCIDR": cidrs }))?;
        let mut options = AgentOptions::configured(&configuration);
        options.arguments.extend(arguments.iter().map(ToString::to_string));
        Ok(options)
    }
}
