//! The tables as packets meet them.

use std::{collections::BTreeMap, net::SocketAddr, num::NonZeroU32};

use proxy_common::layout::{Backend, MemberKey, ServiceKey, SlotKey, filter_bit, service_flags};

use super::Plan;
use crate::{
    dataplane::{
        address::Address,
        features,
        memory::{Memory, MemoryFamily},
        service_name,
        table::Table as _,
    },
    plan::{Frontend, ServicePort},
};

/// A frontend as a packet meets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct View {
    pub(super) service_port: ServicePort,
    /// Bits of the service entry
    pub(super) flags: u32,
    pub(super) affinity: u32,
    pub(super) cluster: Vec<SocketAddr>,
    pub(super) local: Vec<SocketAddr>,
}

pub(super) type Views = BTreeMap<(SocketAddr, u8), View>;

/// What a plan must look like to packets.
pub(super) fn expected(plan: &Plan) -> Views {
    let view = |frontend: &Frontend| {
        let address = SocketAddr::new(frontend.address.expect("a virtual address"), frontend.port);
        let view = View {
            service_port: frontend.service_port.clone(),
            flags: features::encode(frontend),
            affinity: frontend.affinity.map_or(0, NonZeroU32::get),
            cluster: frontend.cluster.clone().unwrap_or_default(),
            local: frontend.local.clone().unwrap_or_default(),
        };
        ((address, frontend.service_port.protocol.number()), view)
    };
    plan.values().flatten().map(view).collect()
}

/// What the tables look like to packets. Panics at a hole, a missing name or a clear filter bit.
pub(super) fn seen(memory: &Memory) -> Views {
    let mut views = Views::new();
    see(memory, &memory.v4, &mut views);
    see(memory, &memory.v6, &mut views);
    views
}

fn see<A: Address>(memory: &Memory, family: &MemoryFamily<A>, views: &mut Views) {
    let endpoints = |set: u32, count: u32, affinity: u32| -> Vec<SocketAddr> {
        (0..count)
            .map(|index| {
                let backend: Backend<A> = family
                    .slots
                    .get(&SlotKey { set, index })
                    .expect("readable")
                    .expect("no hole in a set");
                let (word, mask) = filter_bit(&backend.address);
                assert_ne!(
                    memory.backend_filter.get(&word).expect("readable").unwrap_or(0) & mask,
                    0
                );
                let member = MemberKey::new(set, backend.address, backend.port);
                let member = family.members.get(&member).expect("readable");
                assert!(
                    member.is_some() || affinity == 0,
                    "a client's endpoint must be found again"
                );
                SocketAddr::new(backend.address.to_ip(), backend.port)
            })
            .collect()
    };
    for (key, value) in family.services.entries().expect("readable") {
        if key == ServiceKey::wildcard(key.address) {
            assert_eq!(value.flags, service_flags::WILDCARD);
            continue;
        }
        let sources = family.sources.entries().expect("readable");
        let restricted = value.flags & service_flags::RESTRICTED != 0;
        assert!(
            !restricted || sources.iter().any(|(source, _)| source.source.service == value.service),
            "a restricted frontend lets somebody in"
        );
        let name = memory
            .service_names
            .get(&value.service)
            .expect("readable")
            .expect("a name");
        let (word, mask) = filter_bit(&key.address);
        assert_ne!(
            memory.frontend_filter.get(&word).expect("readable").unwrap_or(0) & mask,
            0
        );
        let view = View {
            service_port: service_name::decode(&name).expect("a name"),
            flags: value.flags,
            affinity: value.affinity_timeout,
            cluster: endpoints(value.cluster_set, value.cluster_count, value.affinity_timeout),
            local: endpoints(value.local_set, value.local_count, value.affinity_timeout),
        };
        views.insert((SocketAddr::new(key.address.to_ip(), key.port), key.protocol), view);
    }
}
