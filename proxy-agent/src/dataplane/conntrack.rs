//! The connections that the kernel's conntrack translates, over netlink (`net/netfilter/nf_conntrack_netlink.c`).

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use netlink_packet_core::Nla as _;
use netlink_packet_netfilter::{
    NetfilterMessageInner, NetfilterProtoFamily,
    conntrack::{
        ConntrackAttribute, ConntrackMessage, IPTuple, ProtoInfo, ProtoInfoTCP, ProtoTuple, Protocol, Status, Tuple,
    },
};

use super::netfilter::{Netfilter, Want};

/// Packets of one direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Way {
    /// IP protocol number
    pub(super) protocol: u8,
    /// Address and port
    pub(super) source: SocketAddr,
    /// Address and port
    pub(super) destination: SocketAddr,
}

/// A connection whose packets' destination conntrack rewrites.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Connection {
    /// Packets of the client as it sends them
    pub(super) original: Way,
    /// Packets of the server as it sends them
    pub(super) reply: Way,
    /// TCP: closed or reset; the entry only waits for what may still be on the way
    pub(super) is_over: bool,
}

/// `CTA_ZONE` (include/uapi/linux/netfilter/nfnetlink_conntrack.h).
const CTA_ZONE: u16 = 18;
/// `TCP_CONNTRACK_TIME_WAIT` and `TCP_CONNTRACK_CLOSE` (include/uapi/linux/netfilter/nf_conntrack_tcp.h).
const TCP_OVER: [u8; 2] = [7, 8];

/// The conntrack table of the network namespace it was opened in.
pub(super) struct Conntrack(Netfilter);

impl Conntrack {
    pub(super) fn open() -> io::Result<Self> {
        Netfilter::open().map(Self)
    }

    /// All connections of TCP, UDP and SCTP whose destination is rewritten. What comes or goes meanwhile may be missing.
    pub(super) fn translated(&self) -> io::Result<Vec<Connection>> {
        let mut connections = Vec::new();
        // The kernel leaves out what has other bits (since Linux 5.16, older ones tell of all).
        let request = ConntrackMessage::Get(vec![ConntrackAttribute::CtaStatus(Status::DstNat)]);
        self.0
            .ask(NetfilterProtoFamily::Unspec, request, Want::List, &mut |message| {
                if let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = message {
                    connections.extend(connection(&attributes));
                }
            })?;
        Ok(connections)
    }

    /// Forgets a connection; one that is gone already is no error.
    pub(super) fn delete(&self, original: &Way) -> io::Result<()> {
        let family = match original.source {
            SocketAddr::V4(_) => NetfilterProtoFamily::IPv4,
            SocketAddr::V6(_) => NetfilterProtoFamily::IPv6,
        };
        let request = ConntrackMessage::Delete(vec![ConntrackAttribute::CtaTupleOrig(tuple(original))]);
        match self.0.ask(family, request, Want::Done, &mut |_| {}) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn connection(attributes: &[ConntrackAttribute]) -> Option<Connection> {
    let (mut original, mut reply, mut is_over) = (None, None, false);
    for attribute in attributes {
        match attribute {
            ConntrackAttribute::CtaTupleOrig(tuple) => original = way(tuple),
            ConntrackAttribute::CtaTupleReply(tuple) => reply = way(tuple),
            ConntrackAttribute::CtaProtoInfo(infos) => is_over = infos.iter().any(is_over_by),
            // Another zone is another network's: kube-proxy has none.
            ConntrackAttribute::Other(other) if other.kind() == CTA_ZONE => return None,
            _ => {}
        }
    }
    let (original, reply) = (original?, reply?);
    (original.destination != reply.source).then_some(Connection {
        original,
        reply,
        is_over,
    })
}

fn is_over_by(info: &ProtoInfo) -> bool {
    let ProtoInfo::TCP(infos) = info else { return false };
    infos
        .iter()
        .any(|info| matches!(info, ProtoInfoTCP::State(state) if TCP_OVER.contains(state)))
}

fn way(tuple: &[Tuple]) -> Option<Way> {
    let (mut source, mut destination): (Option<IpAddr>, Option<IpAddr>) = (None, None);
    let (mut protocol, mut source_port, mut destination_port) = (None, None, None);
    for part in tuple {
        match part {
            Tuple::Ip(addresses) => {
                for address in addresses {
                    match address {
                        IPTuple::SourceAddress(address) => source = Some(*address),
                        IPTuple::DestinationAddress(address) => destination = Some(*address),
                        _ => {}
                    }
                }
            }
            Tuple::Proto(parts) => {
                for part in parts {
                    match part {
                        ProtoTuple::Protocol(number) => protocol = Some(*number),
                        ProtoTuple::SourcePort(port) => source_port = Some(*port),
                        ProtoTuple::DestinationPort(port) => destination_port = Some(*port),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let protocol = protocol.filter(|protocol| matches!(protocol, Protocol::Tcp | Protocol::Udp | Protocol::Sctp))?;
    Some(Way {
        protocol: protocol.into(),
        source: SocketAddr::new(source?, source_port?),
        destination: SocketAddr::new(destination?, destination_port?),
    })
}

fn tuple(way: &Way) -> Vec<Tuple> {
    vec![
        Tuple::Ip(vec![
            IPTuple::SourceAddress(way.source.ip()),
            IPTuple::DestinationAddress(way.destination.ip()),
        ]),
        Tuple::Proto(vec![
            ProtoTuple::Protocol(way.protocol.into()),
            ProtoTuple::SourcePort(way.source.port()),
            ProtoTuple::DestinationPort(way.destination.port()),
        ]),
    ]
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::DefaultNla;

    use super::*;

    fn attributes(original: &Way, reply: &Way) -> Vec<ConntrackAttribute> {
        vec![
            ConntrackAttribute::CtaTupleOrig(tuple(original)),
            ConntrackAttribute::CtaTupleReply(tuple(reply)),
        ]
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("an address and port")
    }

    fn ways(protocol: u8) -> (Way, Way) {
        let original = Way {
            protocol,
            source: address("10.244.1.5:40000"),
            destination: address("10.96.0.1:80"),
        };
        let reply = Way {
            protocol,
            source: address("10.244.2.7:8080"),
            destination: address("192.0.2.1:50000"),
        };
        (original, reply)
    }

    #[test]
    fn a_connection_has_two_ways() {
        let (original, reply) = ways(6);
        let told = attributes(&original, &reply);
        let expected = Connection {
            original,
            reply,
            is_over: false,
        };
        assert_eq!(connection(&told), Some(expected));
        for (state, is_over) in [(3, false), (6, false), (7, true), (8, true)] {
            let mut told = told.clone();
            told.push(ConntrackAttribute::CtaProtoInfo(vec![ProtoInfo::TCP(vec![
                ProtoInfoTCP::State(state),
            ])]));
            assert_eq!(
                connection(&told).map(|found| found.is_over),
                Some(is_over),
                "state {state}"
            );
        }
    }

    #[test]
    fn others_are_left_out() {
        // ICMP has no ports, another zone is another network's, and what goes where it was sent isn't translated.
        let (original, reply) = ways(1);
        assert_eq!(connection(&attributes(&original, &reply)), None);
        let (original, reply) = ways(17);
        let mut told = attributes(&original, &reply);
        told.push(ConntrackAttribute::Other(DefaultNla::new(CTA_ZONE, vec![0, 1])));
        assert_eq!(connection(&told), None);
        let back = Way {
            source: original.destination,
            ..reply
        };
        assert_eq!(connection(&attributes(&original, &back)), None);
    }
}
