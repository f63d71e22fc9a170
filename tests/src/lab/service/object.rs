//! A described Service as objects of the API.

use k8s_openapi::{
    api::{
        core::v1 as core,
        discovery::v1::{Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone},
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};

use super::{IpMode, Member, Policy, Port, Service, State};
use crate::lab::{Addresses, Family};

impl Service {
    /// It as an object of the API.
    pub fn service(&self) -> core::Service {
        let kind = self.kind();
        let port = |port: &Port| core::ServicePort {
            name: Some(port.name.clone()),
            protocol: Some(port.protocol.to_string()),
            port: i32::from(port.number),
            target_port: Some(match &port.target_name {
                Some(name) => IntOrString::String(name.clone()),
                None => IntOrString::Int(i32::from(port.target)),
            }),
            node_port: port.on_nodes.map(i32::from),
            ..Default::default()
        };
        let policy = |policy: Policy| format!("{policy:?}");
        let is_external = kind != "ClusterIP" || !self.external.is_empty();
        let affinity = self.affinity.map(|timeout| core::SessionAffinityConfig {
            client_ip: Some(core::ClientIPConfig {
                timeout_seconds: Some(i32::try_from(timeout.as_secs()).expect("at most a day")),
            }),
        });
        let external: Vec<String> = self.external.iter().flat_map(texts).collect();
        core::Service {
            metadata: self.metadata(&self.name),
            spec: Some(core::ServiceSpec {
                type_: Some(kind.to_owned()),
                cluster_ip: Some(self.cluster.v4.to_string()),
                cluster_ips: Some(texts(&self.cluster).to_vec()),
                ip_families: Some(Family::ALL.map(|family| family.to_string()).to_vec()),
                ip_family_policy: Some("RequireDualStack".to_owned()),
                ports: Some(self.ports.iter().map(port).collect()),
                external_ips: (!external.is_empty()).then_some(external),
                external_traffic_policy: is_external.then(|| policy(self.external_policy)),
                internal_traffic_policy: (self.internal_policy == Policy::Local).then(|| policy(Policy::Local)),
                load_balancer_source_ranges: (!self.source_ranges.is_empty()).then(|| self.source_ranges.clone()),
                session_affinity: affinity.is_some().then(|| "ClientIP".to_owned()),
                session_affinity_config: affinity,
                ..Default::default()
            }),
            status: self.status(),
        }
    }

    fn status(&self) -> Option<core::ServiceStatus> {
        let ingress = |(addresses, mode): &(Addresses, Option<IpMode>)| {
            let mode = mode.map(|mode| match mode {
                IpMode::Vip => "VIP".to_owned(),
                IpMode::Proxy => "Proxy".to_owned(),
            });
            texts(addresses).map(|address| core::LoadBalancerIngress {
                ip: Some(address),
                ip_mode: mode.clone(),
                ..Default::default()
            })
        };
        (!self.balancer.is_empty()).then(|| core::ServiceStatus {
            load_balancer: Some(core::LoadBalancerStatus {
                ingress: Some(self.balancer.iter().flat_map(ingress).collect()),
            }),
            ..Default::default()
        })
    }

    /// Its EndpointSlices of a family, called `NAME-ipv4` or `NAME-ipv6`, from the second on with its number.
    pub fn family_slices(&self, family: Family) -> impl Iterator<Item = EndpointSlice> {
        (0..self.slices).map(move |index| self.slice_of(family, index))
    }

    /// Its EndpointSlice of a family; the first one, if there are several.
    pub fn slice(&self, family: Family) -> EndpointSlice {
        self.slice_of(family, 0)
    }

    fn slice_of(&self, family: Family, index: usize) -> EndpointSlice {
        let mut name = format!("{}-{}", self.name, family.to_string().to_lowercase());
        if index > 0 {
            name = format!("{name}-{}", index + 1);
        }
        let mut metadata = self.metadata(&name);
        metadata.labels = Some([("kubernetes.io/service-name".to_owned(), self.name.clone())].into());
        let port = |port: &Port| EndpointPort {
            name: Some(port.name.clone()),
            protocol: Some(port.protocol.to_string()),
            port: Some(i32::from(port.target)),
            app_protocol: None,
        };
        let members = self.members.iter().skip(index).step_by(self.slices);
        EndpointSlice {
            metadata,
            address_type: family.to_string(),
            endpoints: members.map(|member| member.endpoint(family)).collect(),
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
}

impl State {
    fn conditions(self) -> EndpointConditions {
        EndpointConditions {
            ready: Some(self == Self::Ready),
            serving: Some(matches!(self, Self::Ready | Self::Terminating)),
            terminating: Some(matches!(self, Self::Terminating | Self::Ending)),
        }
    }
}

impl Member {
    fn endpoint(&self, family: Family) -> Endpoint {
        let zones: Vec<ForZone> = self.zones.iter().map(|name| ForZone { name: name.clone() }).collect();
        let nodes: Vec<ForNode> = self.nodes.iter().map(|name| ForNode { name: name.clone() }).collect();
        let hints = (!zones.is_empty() || !nodes.is_empty()).then(|| EndpointHints {
            for_zones: (!zones.is_empty()).then_some(zones),
            for_nodes: (!nodes.is_empty()).then_some(nodes),
        });
        Endpoint {
            addresses: vec![self.addresses.of(family).to_string()],
            conditions: Some(self.state.conditions()),
            hints,
            hostname: Some(self.pod.clone()),
            node_name: Some(self.node.clone()),
            ..Default::default()
        }
    }
}

fn texts(addresses: &Addresses) -> [String; 2] {
    addresses.both().map(|address| address.to_string())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::lab::{Family, IpMode, Policy, Protocol, Service, State, address};

    fn web() -> Service {
        Service::new("default", "web", address::cluster(80))
            .port("web", Protocol::Tcp, 80, 8080)
            .port("sig", Protocol::Sctp, 7, 7)
            .member("a", "node-a", address::pod(1, 1))
            .member("b", "node-b", address::pod(2, 1))
            .member("c", "node-b", address::pod(2, 2))
    }

    #[test]
    fn the_type_follows_from_the_addresses() {
        let kind = |service: &Service| service.service().spec.and_then(|spec| spec.type_);
        let service = web();
        assert_eq!(kind(&service).as_deref(), Some("ClusterIP"));
        let service = service.external(address::external(1));
        assert_eq!(kind(&service).as_deref(), Some("ClusterIP"));
        let service = service.node_port("web", 30_080);
        assert_eq!(kind(&service).as_deref(), Some("NodePort"));
        let service = service.balancer(address::balancer(1), None);
        assert_eq!(kind(&service).as_deref(), Some("LoadBalancer"));
    }

    #[test]
    fn every_field_gets_where_it_belongs() {
        let service = web()
            .node_port("sig", 30_007)
            .target_name("web", "http")
            .balancer(address::balancer(1), Some(IpMode::Proxy))
            .source_ranges(&["192.0.2.0/24"])
            .external_policy(Policy::Local)
            .affinity(Duration::from_secs(5));
        let object = serde_json::to_value(service.service()).expect("an object");
        let spec = &object["spec"];
        assert_eq!(spec["ports"][0]["nodePort"], serde_json::Value::Null);
        assert_eq!(spec["ports"][1]["nodePort"], 30_007);
        assert_eq!(spec["ports"][1]["protocol"], "SCTP");
        assert_eq!(spec["ports"][0]["targetPort"], "http");
        assert_eq!(spec["ports"][1]["targetPort"], 7);
        assert_eq!(spec["externalTrafficPolicy"], "Local");
        assert_eq!(spec["sessionAffinity"], "ClientIP");
        assert_eq!(spec["loadBalancerSourceRanges"][0], "192.0.2.0/24");
        assert_eq!(spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"], 5);
        let ingress = &object["status"]["loadBalancer"]["ingress"];
        assert_eq!(ingress[1]["ip"], "2001:db8:113::1");
        assert_eq!(ingress[1]["ipMode"], "Proxy");
    }

    #[test]
    fn slices_share_the_endpoints() {
        let service = web()
            .slices(2)
            .state("b", State::Terminating)
            .hints("c", &["z"], &["node-b"]);
        let slices: Vec<_> = service.family_slices(Family::V4).collect();
        let sizes: Vec<_> = slices.iter().map(|slice| slice.endpoints.len()).collect();
        assert_eq!(sizes, [2, 1]);
        let object = serde_json::to_value(&slices).expect("objects");
        assert_eq!(object[1]["metadata"]["name"], "web-ipv4-2");
        let (c, b) = (&object[0]["endpoints"][1], &object[1]["endpoints"][0]);
        assert_eq!(c["hints"]["forZones"][0]["name"], "z");
        assert_eq!(c["hints"]["forNodes"][0]["name"], "node-b");
        assert_eq!(b["conditions"]["ready"], false);
        assert_eq!(b["conditions"]["serving"], true);
        assert_eq!(
            service.endpoints().len(),
            2 * 2 * 2,
            "two ready ones, two ports, two families"
        );
    }
}
