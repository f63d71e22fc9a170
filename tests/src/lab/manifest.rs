//! Services and their EndpointSlices from a short description, as files for the agents.

use std::{fmt, fs, net::SocketAddr, path::PathBuf};

use anyhow::{Context as _, Result};
use k8s_openapi::{
    api::{
        core::v1 as core,
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};

use super::{Addresses, Family, Lab, Pod};

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
}

impl Protocol {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

#[derive(Clone, Debug)]
struct Port {
    name: String,
    protocol: Protocol,
    number: u16,
    target: u16,
}

#[derive(Clone, Debug)]
struct Member {
    pod: String,
    node: String,
    addresses: Addresses,
}

/// Description of a dual-stack ClusterIP Service.
#[derive(Clone, Debug)]
pub struct Service {
    namespace: String,
    name: String,
    cluster: Addresses,
    ports: Vec<Port>,
    members: Vec<Member>,
}

impl Service {
    /// A Service without ports and endpoints.
    pub fn new(namespace: &str, name: &str, cluster: Addresses) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            cluster,
            ports: Vec::new(),
            members: Vec::new(),
        }
    }

    /// Adds a port and the port of the pods behind it.
    #[must_use]
    pub fn port(mut self, name: &str, protocol: Protocol, number: u16, target: u16) -> Self {
        let name = name.to_owned();
        self.ports.push(Port {
            name,
            protocol,
            number,
            target,
        });
        self
    }

    /// Sets the pods behind it, in place of those it had.
    #[must_use]
    pub fn pods(mut self, pods: &[&Pod]) -> Self {
        self.members.clear();
        pods.iter().fold(self, |service, pod| {
            service.member(pod.name(), pod.node(), pod.addresses())
        })
    }

    /// Adds a pod behind it, by name, node and addresses.
    #[must_use]
    pub fn member(mut self, pod: &str, node: &str, addresses: Addresses) -> Self {
        let (pod, node) = (pod.to_owned(), node.to_owned());
        self.members.push(Member { pod, node, addresses });
        self
    }

    /// Takes a pod from behind it, by name.
    #[must_use]
    pub fn without(mut self, pod: &str) -> Self {
        self.members.retain(|member| member.pod != pod);
        self
    }

    /// Its name with the namespace.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Names of the pods behind it.
    pub fn members(&self) -> impl Iterator<Item = &str> {
        self.members.iter().map(|member| member.pod.as_str())
    }

    /// Its namespace and name.
    pub fn key(&self) -> (&str, &str) {
        (&self.namespace, &self.name)
    }

    /// The address and port that clients use.
    pub const fn frontend(&self, family: Family, port: u16) -> SocketAddr {
        self.cluster.with_port(family, port)
    }

    /// All endpoints of all ports in both families, sorted.
    pub fn endpoints(&self) -> Vec<SocketAddr> {
        let of_port = |port: &Port| {
            let target = port.target;
            let sockets = move |member: &Member| Family::ALL.map(|family| member.addresses.with_port(family, target));
            self.members.iter().flat_map(sockets).collect::<Vec<_>>()
        };
        let mut endpoints: Vec<SocketAddr> = self.ports.iter().flat_map(of_port).collect();
        endpoints.sort_unstable();
        endpoints.dedup();
        endpoints
    }

    /// It as an object of the API.
    pub fn service(&self) -> core::Service {
        let port = |port: &Port| core::ServicePort {
            name: Some(port.name.clone()),
            protocol: Some(port.protocol.to_string()),
            port: i32::from(port.number),
            target_port: Some(IntOrString::Int(i32::from(port.target))),
            ..Default::default()
        };
        core::Service {
            metadata: self.metadata(&self.name),
            spec: Some(core::ServiceSpec {
                type_: Some("ClusterIP".to_owned()),
                cluster_ip: Some(self.cluster.v4.to_string()),
                cluster_ips: Some(self.cluster.both().map(|address| address.to_string()).to_vec()),
                ip_families: Some(Family::ALL.map(|family| family.to_string()).to_vec()),
                ip_family_policy: Some("RequireDualStack".to_owned()),
                ports: Some(self.ports.iter().map(port).collect()),
                ..Default::default()
            }),
            status: None,
        }
    }

    /// Its EndpointSlice of a family, called `NAME-ipv4` or `NAME-ipv6`.
    pub fn slice(&self, family: Family) -> EndpointSlice {
        let mut metadata = self.metadata(&format!("{}-{}", self.name, family.to_string().to_lowercase()));
        metadata.labels = Some([("kubernetes.io/service-name".to_owned(), self.name.clone())].into());
        let endpoint = |member: &Member| Endpoint {
            addresses: vec![member.addresses.of(family).to_string()],
            conditions: Some(EndpointConditions {
                ready: Some(true),
                serving: Some(true),
                terminating: Some(false),
            }),
            hostname: Some(member.pod.clone()),
            node_name: Some(member.node.clone()),
            ..Default::default()
        };
        let port = |port: &Port| EndpointPort {
            name: Some(port.name.clone()),
            protocol: Some(port.protocol.to_string()),
            port: Some(i32::from(port.target)),
            app_protocol: None,
        };
        EndpointSlice {
            metadata,
            address_type: family.to_string(),
            endpoints: self.members.iter().map(endpoint).collect(),
            ports: Some(self.ports.iter().map(port).collect()),
        }
    }

    fn metadata(&self, name: &str) -> ObjectMeta {
        ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(self.namespace.clone()),
            ..Default::default()
        }
    }

    fn yaml(&self) -> Result<String> {
        let mut documents = vec![serde_yaml_ng::to_string(&self.service())?];
        for family in Family::ALL {
            documents.push(serde_yaml_ng::to_string(&self.slice(family))?);
        }
        Ok(documents.join("---\n"))
    }

    fn file(&self, lab: &Lab) -> PathBuf {
        lab.manifests().join(format!("{}-{}.yaml", self.namespace, self.name))
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
}
