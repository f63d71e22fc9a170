//! What the plan says of a frontend, in the bits of its entry ([`service_flags`]).

use proxy_common::layout::{frontend_kind, service_flags};

use crate::plan::{Frontend, Kind, Masquerade, TrafficPolicy};

/// What the bits say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Features {
    /// What kind of address it is
    pub(super) kind: Kind,
    /// Which list is used for whom
    pub(super) policy: TrafficPolicy,
    /// Whose address the endpoint doesn't see
    pub(super) masquerade: Masquerade,
    /// Whether an endpoint exists anywhere
    pub(super) has_endpoints: bool,
    /// Whether only some sources are let in
    pub(super) is_restricted: bool,
}

/// The bits of a frontend.
pub(super) fn encode(frontend: &Frontend) -> u32 {
    let kind = match frontend.kind {
        Kind::ClusterIP => frontend_kind::CLUSTER_IP,
        Kind::ExternalIP => frontend_kind::EXTERNAL_IP,
        Kind::LoadBalancer => frontend_kind::LOAD_BALANCER,
        Kind::NodePort => frontend_kind::NODE_PORT,
    };
    let policy = match frontend.policy {
        TrafficPolicy::Cluster => 0,
        TrafficPolicy::Local => service_flags::LOCAL,
        TrafficPolicy::LocalForOutsiders => service_flags::LOCAL | service_flags::SHORT_CIRCUIT,
    };
    let masquerade = match frontend.masquerade {
        Masquerade::Never => 0,
        Masquerade::Outsiders => service_flags::MASQUERADE_OUTSIDERS,
        Masquerade::Always => service_flags::MASQUERADE,
        Masquerade::Host => service_flags::MASQUERADE_HOST,
    };
    let bit = |set: bool, bit: u32| if set { bit } else { 0 };
    kind << service_flags::KIND_SHIFT
        | policy
        | masquerade
        | bit(frontend.has_endpoints, service_flags::HAS_ENDPOINTS)
        | bit(!frontend.sources.is_empty(), service_flags::RESTRICTED)
}

/// What the bits of an entry say.
pub(super) fn decode(flags: u32) -> Features {
    let has = |bit: u32| flags & bit != 0;
    Features {
        kind: match flags >> service_flags::KIND_SHIFT & frontend_kind::MASK {
            frontend_kind::CLUSTER_IP => Kind::ClusterIP,
            frontend_kind::EXTERNAL_IP => Kind::ExternalIP,
            frontend_kind::LOAD_BALANCER => Kind::LoadBalancer,
            _ => Kind::NodePort,
        },
        policy: if !has(service_flags::LOCAL) {
            TrafficPolicy::Cluster
        } else if has(service_flags::SHORT_CIRCUIT) {
            TrafficPolicy::LocalForOutsiders
        } else {
            TrafficPolicy::Local
        },
        masquerade: if has(service_flags::MASQUERADE) {
            Masquerade::Always
        } else if has(service_flags::MASQUERADE_OUTSIDERS) {
            Masquerade::Outsiders
        } else if has(service_flags::MASQUERADE_HOST) {
            Masquerade::Host
        } else {
            Masquerade::Never
        },
        has_endpoints: has(service_flags::HAS_ENDPOINTS),
        is_restricted: has(service_flags::RESTRICTED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Family, Protocol, ServicePort};

    #[test]
    fn what_is_encoded_is_decoded() {
        let kinds = [Kind::ClusterIP, Kind::ExternalIP, Kind::LoadBalancer, Kind::NodePort];
        let policies = [
            TrafficPolicy::Cluster,
            TrafficPolicy::Local,
            TrafficPolicy::LocalForOutsiders,
        ];
        let masquerades = [
            Masquerade::Never,
            Masquerade::Outsiders,
            Masquerade::Always,
            Masquerade::Host,
        ];
        for (kind, policy) in kinds.into_iter().flat_map(|kind| policies.map(|policy| (kind, policy))) {
            for (masquerade, set) in masquerades.into_iter().zip([false, true].into_iter().cycle()) {
                let frontend = Frontend {
                    service_port: ServicePort {
                        namespace: "default".to_owned(),
                        service: "web".to_owned(),
                        port_name: String::new(),
                        protocol: Protocol::Tcp,
                    },
                    kind,
                    family: Family::V4,
                    address: None,
                    port: 80,
                    cluster: None,
                    local: None,
                    has_endpoints: set,
                    serving: Vec::new(),
                    policy,
                    masquerade,
                    affinity: None,
                    sources: if set {
                        Vec::new()
                    } else {
                        vec!["192.0.2.0/24".parse().expect("a range")]
                    },
                };
                let features = Features {
                    kind,
                    policy,
                    masquerade,
                    has_endpoints: set,
                    is_restricted: !set,
                };
                assert_eq!(decode(encode(&frontend)), features);
            }
        }
    }
}
