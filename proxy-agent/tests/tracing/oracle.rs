//! What the rules say of a first packet.

use std::net::IpAddr;

use crate::{
    trace::Traced,
    world::{Case, Detection, Kind, Origin},
};

/// What becomes of a packet. Endpoints are known by their numbers.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    Reject,
    Drop,
    Forward {
        candidates: &'static [u8],
        /// Besides the case that the client gets itself
        masquerade: bool,
    },
}

/// behaviour.md 4 and 5, for a packet to a port of a Service.
pub(crate) fn expected(case: &Case) -> Expected {
    let (candidates, masquerade) = list_and_masquerade(case);
    // 2.9 and 4.1-4.3: what nobody has is refused, what somebody has elsewhere is dropped. An endpoint exists exactly if
    // the Cluster list has one.
    if !candidates.is_empty() {
        Expected::Forward {
            candidates,
            masquerade: masquerade && !case.is_by_socket(),
        }
    } else if case.shape.cluster.is_empty() {
        Expected::Reject
    } else {
        Expected::Drop
    }
}

fn list_and_masquerade(case: &Case) -> (&'static [u8], bool) {
    let (cluster, local) = (case.shape.cluster, case.shape.local);
    let is_pod = is_local_pod(case);
    match case.kind {
        // 5.3: iTP decides about the list only; without a detector nobody is told from a pod.
        Kind::Cluster => {
            let masquerade = case.masquerade_all || is_pod == Some(false);
            (if case.internal_local { local } else { cluster }, masquerade)
        }
        // 5.6, in this order.
        _ if case.external_local && is_pod == Some(true) => (cluster, false),
        _ if case.external_local && case.client.origin == Origin::Host => (cluster, true),
        // 5.5
        _ if case.external_local => (local, false),
        // 5.4
        _ => (cluster, true),
    }
}

/// behaviour.md 5.8; `None` where there is no detector.
fn is_local_pod(case: &Case) -> Option<bool> {
    match case.detection {
        Detection::Nothing => None,
        Detection::ClusterRange => Some(case.client.is_in_cluster_range),
        Detection::NodeRange => Some(case.client.is_in_node_range),
        Detection::Bridge | Detection::InterfacePrefix => Some(case.client.origin == Origin::Pod),
    }
}

impl Expected {
    /// Whether this came of the packet.
    pub(crate) fn allows(&self, traced: &Traced, case: &Case) -> bool {
        let service = Some(format!("ns/{}:{}", case.service(), case.protocol));
        match self {
            Self::Reject => *traced == Traced::unforwarded("reject", service),
            Self::Drop => *traced == Traced::unforwarded("drop", service),
            Self::Forward { candidates, masquerade } => {
                let mut endpoints: Vec<_> = candidates.iter().map(|number| case.family.endpoint(*number)).collect();
                endpoints.sort_unstable();
                let Some(backend) = traced.backend else { return false };
                let client: IpAddr = case.client.source(case.family).parse().expect("an address");
                // 5.2
                let masquerade = *masquerade || backend.ip() == client && !case.is_by_socket();
                endpoints.contains(&backend)
                    && *traced
                        == Traced {
                            verdict: "forward".to_owned(),
                            service,
                            candidates: endpoints,
                            backend: Some(backend),
                            masquerade,
                        }
            }
        }
    }
}
