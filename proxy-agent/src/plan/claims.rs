//! Who serves an address, port and protocol that several Services ask for.
//!
//! The API server hands out a cluster address once, but files are written by hand, and external addresses are nobody's.
//! The older Service keeps what it has: the newcomer is the mistake, and must not cut off the other's clients. When the
//! owner goes away the next one takes over.

use std::{
    collections::{BTreeSet, HashMap, hash_map},
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use k8s_openapi::jiff::Timestamp;

use super::{Family, Kind, Protocol};
use crate::model::{ObjectName, Problem};

/// An address, port and protocol that packets are matched on (behaviour.md 3.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Vip {
    /// Family of the packets
    pub family: Family,
    /// The virtual address; `None` for a nodePort, which stands for addresses of this node
    pub address: Option<IpAddr>,
    /// The port
    pub port: u16,
    /// The protocol
    pub protocol: Protocol,
}

impl fmt::Display for Vip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => write!(f, "{}/{}", SocketAddr::new(address, self.port), self.protocol),
            None => write!(f, "{} nodePort {}/{}", self.family, self.port, self.protocol),
        }
    }
}

/// A service port that asks for a [`Vip`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// What it asks for
    pub vip: Vip,
    /// As what
    pub kind: Kind,
    /// Name of its port
    pub port_name: String,
}

/// Who asks for a [`Vip`]; ordered by age. One without a known age is the youngest, and of equals the first by name has
/// precedence.
///
/// Whoever has it as cluster address comes before all others: only the API server hands those out, while anybody can write
/// an external address into a Service and would get the others' traffic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claimant {
    is_external: bool,
    no_age: bool,
    created: Option<Timestamp>,
    service: Arc<ObjectName>,
    port_name: String,
    kind: Kind,
}

/// All claims of all Services.
#[derive(Debug, Default)]
pub struct Claims {
    /// Sorted, not empty; the first owns it
    claimants: HashMap<Vip, Vec<Claimant>>,
    /// What each Service asks for
    vips: HashMap<Arc<ObjectName>, Vec<Vip>>,
    /// What more than one asks for
    contested: BTreeSet<Vip>,
}

impl Claims {
    /// Sets what a Service asks for, none when it is gone. Returns the other Services that won or lost a [`Vip`] by it.
    pub fn set(
        &mut self,
        service: &ObjectName,
        created: Option<Timestamp>,
        claims: impl IntoIterator<Item = Claim>,
    ) -> BTreeSet<ObjectName> {
        let mut rivals = BTreeSet::new();
        for vip in self.vips.remove(service).unwrap_or_default() {
            self.withdraw(service, vip, &mut rivals);
        }
        let shared_name = Arc::new(service.clone());
        let mut vips = Vec::new();
        for Claim { vip, kind, port_name } in claims {
            let claimant = Claimant {
                is_external: kind != Kind::ClusterIP,
                no_age: created.is_none(),
                created,
                service: Arc::clone(&shared_name),
                port_name,
                kind,
            };
            self.enter(claimant, vip, &mut rivals);
            vips.push(vip);
        }
        if !vips.is_empty() {
            vips.shrink_to_fit();
            self.vips.insert(shared_name, vips);
        }
        rivals.remove(service);
        rivals
    }

    /// Whether a service port owns what it asks for.
    pub fn owns(&self, service: &ObjectName, port_name: &str, vip: Vip) -> bool {
        let owner = self.claimants.get(&vip).and_then(|claimants| claimants.first());
        owner.is_some_and(|owner| *owner.service == *service && owner.port_name == port_name)
    }

    /// The Services that ask for something.
    pub fn services(&self) -> impl Iterator<Item = &ObjectName> {
        self.vips.keys().map(Arc::as_ref)
    }

    /// Forgets all claims.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Each claim that isn't served, naming both sides.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for vip in &self.contested {
            let Some((owner, losers)) = self.claimants.get(vip).and_then(|claimants| claimants.split_first()) else {
                continue;
            };
            for loser in losers {
                problems.push(Problem {
                    object: format!("Service {}", loser.service),
                    field: field(loser.kind).to_owned(),
                    reason: refusal(*vip, owner, loser),
                });
            }
        }
        problems
    }

    fn enter(&mut self, claimant: Claimant, vip: Vip, rivals: &mut BTreeSet<ObjectName>) {
        let claimants = self.claimants.entry(vip).or_default();
        let Err(position) = claimants.binary_search(&claimant) else {
            return;
        };
        if position == 0
            && let Some(dethroned) = claimants.first()
        {
            rivals.insert((*dethroned.service).clone());
        }
        // Nearly always the only one, and there are as many as service ports.
        claimants.reserve_exact(1);
        claimants.insert(position, claimant);
        if claimants.len() > 1 {
            self.contested.insert(vip);
        }
    }

    fn withdraw(&mut self, service: &ObjectName, vip: Vip, rivals: &mut BTreeSet<ObjectName>) {
        let hash_map::Entry::Occupied(mut entry) = self.claimants.entry(vip) else {
            return;
        };
        let claimants = entry.get_mut();
        let was_owner = claimants.first().is_some_and(|owner| *owner.service == *service);
        claimants.retain(|claimant| *claimant.service != *service);
        if claimants.len() < 2 {
            self.contested.remove(&vip);
        }
        match claimants.first() {
            Some(heir) if was_owner => {
                rivals.insert((*heir.service).clone());
            }
            Some(_) => {}
            None => {
                entry.remove();
            }
        }
    }
}

/// The field of a Service that asks for addresses or ports of a kind.
const fn field(kind: Kind) -> &'static str {
    match kind {
        Kind::ClusterIP => "spec.clusterIPs",
        Kind::ExternalIP => "spec.externalIPs",
        Kind::LoadBalancer => "status.loadBalancer.ingress",
        Kind::NodePort => "spec.ports[].nodePort",
    }
}

fn refusal(vip: Vip, owner: &Claimant, loser: &Claimant) -> String {
    if owner.service == loser.service {
        return format!(
            "port {:?} asks for {vip}, which port {:?} of the same Service has: it is not served",
            loser.port_name, owner.port_name
        );
    }
    let why = if owner.is_external != loser.is_external {
        "has it as its cluster address"
    } else if owner.created == loser.created {
        "comes first by name"
    } else {
        "is older"
    };
    format!(
        "{vip} belongs to Service {}, which {why}: it is not served for this one until it is free",
        owner.service
    )
}
