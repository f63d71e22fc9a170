//! What becomes of packets by the tables as they are, decided by the very code that forwards them.

use std::net::SocketAddr;

use etherparse::PacketBuilder;
use proxy_common::{
    datapath::{self, Choice, Verdict},
    layout::{FlowKey, INGRESS, ServiceValue, SlotKey, Timeouts},
    packet::{Family, V4, V6},
};

use crate::{
    dataplane::{
        address::Address,
        collect,
        simulation::{Hook, Simulation, Surroundings},
        table::{FamilyTables, Tables},
    },
    plan::Protocol,
};

/// The first packet of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probe {
    /// Interface index of the device it comes from
    pub(super) device: u32,
    pub(super) protocol: Protocol,
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
}

/// What becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is forwarded to one of these
    Forwarded(Vec<SocketAddr>),
    /// It isn't forwarded
    Stopped,
}

impl Probe {
    /// Its fate, whichever endpoint chance has for it; `now` is the time since boot.
    pub(super) fn fate(&self, tables: &Tables, now: std::time::Duration) -> Fate {
        if self.destination.is_ipv4() {
            self.fate_in::<V4>(tables, &tables.v4, now)
        } else {
            self.fate_in::<V6>(tables, &tables.v6, now)
        }
    }

    fn fate_in<F: Family>(&self, tables: &Tables, family: &FamilyTables<F::Address>, now: std::time::Duration) -> Fate
    where
        F::Address: Address,
    {
        let address = |end: SocketAddr| F::Address::from_ip(end.ip()).expect("an address of the family");
        let ends = [self.source, self.destination].map(|end| (address(end), end.port()));
        let key = FlowKey::new(INGRESS, self.protocol.number(), ends[0], ends[1]);
        let mut fates = [0, u32::MAX / 2, u32::MAX].map(|random| {
            let surroundings = Surroundings {
                now: collect::tick(now),
                device: self.device,
                timeouts: Timeouts::DEFAULT,
                random: &|| random,
            };
            let simulation = Simulation::<F>::new(tables, family);
            let outcome = simulation
                .run(Hook::Ingress, &mut self.packet(), &surroundings)
                .expect("readable");
            if outcome.verdict != Verdict::Rewrite {
                return Fate::Stopped;
            }
            let (mut service, mut choice) = (ServiceValue::default(), Choice::default());
            datapath::find_frontend(&simulation, &key, &mut service).expect("what was forwarded has a frontend");
            datapath::decide(&simulation, &surroundings, &key, &service, &mut choice).expect("and an endpoint");
            let slot = |index| family.slots.get(&SlotKey { set: choice.set, index }).expect("readable");
            let slots = (0..choice.count).map(|index| slot(index).expect("no hole in a set"));
            let mut candidates: Vec<_> = slots
                .map(|backend| SocketAddr::new(backend.address.to_ip(), backend.port))
                .collect();
            candidates.sort_unstable();
            let flow = simulation.flows().expect("readable")[&key];
            let backend = SocketAddr::new(flow.address.to_ip(), flow.port);
            assert!(
                candidates.contains(&backend),
                "{self:?} went to {backend}, none of {candidates:?}"
            );
            Fate::Forwarded(candidates)
        });
        fates.sort_unstable_by_key(|fate| *fate == Fate::Stopped);
        assert_eq!(fates[0], fates[2], "chance decides over nothing but the endpoint");
        fates[0].clone()
    }

    fn packet(&self) -> Vec<u8> {
        let builder = match (self.source, self.destination) {
            (SocketAddr::V4(source), SocketAddr::V4(destination)) => {
                PacketBuilder::ipv4(source.ip().octets(), destination.ip().octets(), 64)
            }
            (SocketAddr::V6(source), SocketAddr::V6(destination)) => {
                PacketBuilder::ipv6(source.ip().octets(), destination.ip().octets(), 64)
            }
            _ => panic!("ends of different families"),
        };
        let (source, destination) = (self.source.port(), self.destination.port());
        let mut packet = Vec::new();
        let written = match self.protocol {
            Protocol::Udp => builder.udp(source, destination).write(&mut packet, &[]),
            _ => builder
                .tcp(source, destination, 1, 65_535)
                .syn()
                .write(&mut packet, &[]),
        };
        written.expect("a packet");
        packet
    }
}
