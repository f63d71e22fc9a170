//! The packet that is traced.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use etherparse::{IpNumber, PacketBuilder};
use proxy_common::{
    datapath::NO_PORTS,
    layout::{FlowKey, INGRESS},
};

use crate::{
    dataplane::address::Address,
    model::{Protocol, parse_ip},
};

/// Source port of the packet where none is given: the first of the usual ephemeral ones.
const SOURCE_PORT: u16 = 32_768;

/// The protocol of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum PacketProtocol {
    Tcp,
    Udp,
    Sctp,
    Icmp,
}

/// Address and port of one end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    /// The address
    pub(super) address: IpAddr,
    /// The port, if one is given
    pub(super) port: Option<u16>,
}

impl FromStr for End {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(end) = text.parse::<SocketAddr>() {
            return Ok(Self {
                address: end.ip(),
                port: Some(end.port()),
            });
        }
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        let address = parse_ip(bare.unwrap_or(text))?;
        Ok(Self { address, port: None })
    }
}

/// The first packet of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct FirstPacket {
    /// Its protocol
    pub(super) protocol: PacketProtocol,
    /// Its source
    pub(super) source: End,
    /// Its destination
    pub(super) destination: End,
}

impl End {
    /// Whether it is this one; any port will do if none is given.
    pub(super) fn is(self, end: SocketAddr) -> bool {
        end.ip() == self.address && self.port.is_none_or(|port| port == end.port())
    }
}

impl FirstPacket {
    /// Its destination, with port 0 where it has none.
    pub(super) fn destination(&self) -> SocketAddr {
        SocketAddr::new(self.destination.address, self.destination.port.unwrap_or(0))
    }

    /// Its key at the ingress hook.
    ///
    /// # Errors
    /// If an address is of another family.
    pub(super) fn key<A: Address>(&self) -> Result<FlowKey<A>> {
        let end = |end: End, port: u16| {
            let address = A::from_ip(end.address).context("an address of the other family")?;
            anyhow::Ok((address, end.port.unwrap_or(port)))
        };
        let (source, destination) = (end(self.source, SOURCE_PORT)?, end(self.destination, 0)?);
        Ok(match self.protocol {
            PacketProtocol::Icmp => FlowKey::new(INGRESS, NO_PORTS, (source.0, 0), (destination.0, 0)),
            protocol => FlowKey::new(INGRESS, protocol.number(), source, destination),
        })
    }

    /// Its bytes, from the network header on.
    ///
    /// # Errors
    /// If its ends are of different families, or a port is missing.
    pub(super) fn bytes(&self) -> Result<Vec<u8>> {
        let builder = match (self.source.address, self.destination.address) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                PacketBuilder::ipv4(source.octets(), destination.octets(), 64)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                PacketBuilder::ipv6(source.octets(), destination.octets(), 64)
            }
            _ => bail!("--source and --destination are of different families"),
        };
        let source = self.source.port.unwrap_or(SOURCE_PORT);
        let destination = match (self.protocol, self.destination.port) {
            (PacketProtocol::Icmp, _) => 0,
            (_, Some(port)) => port,
            (_, None) => bail!("--destination {}: the port is missing", self.destination.address),
        };
        let mut packet = Vec::new();
        match self.protocol {
            PacketProtocol::Tcp => builder
                .tcp(source, destination, 1, 65_535)
                .syn()
                .write(&mut packet, &[])?,
            PacketProtocol::Udp => builder.udp(source, destination).write(&mut packet, &[])?,
            PacketProtocol::Icmp if self.source.address.is_ipv4() => {
                builder.icmpv4_echo_request(1, 1).write(&mut packet, &[])?;
            }
            PacketProtocol::Icmp => builder.icmpv6_echo_request(1, 1).write(&mut packet, &[])?,
            PacketProtocol::Sctp => {
                // The common header: ports, verification tag, checksum; then the chunk INIT (RFC 9260, 3.1 and 3.3.2).
                let mut header = [0; 12 + 20];
                header[..2].copy_from_slice(&source.to_be_bytes());
                header[2..4].copy_from_slice(&destination.to_be_bytes());
                (header[12], header[15]) = (1, 20);
                builder.write(&mut packet, IpNumber::SCTP, &header)?;
            }
        }
        Ok(packet)
    }
}

impl PacketProtocol {
    /// As Services have it, if they do.
    pub(super) const fn of_services(self) -> Option<Protocol> {
        Protocol::from_number(self.number())
    }

    /// IP protocol number (IANA).
    const fn number(self) -> u8 {
        match self {
            Self::Icmp => 1,
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}
