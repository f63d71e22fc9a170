//! Floods of first packets with false sources.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result};
use socket2::{Domain, Socket, Type};

use super::{Family, Namespace, Protocol, raw};

/// Networks that nobody has (RFC 2544, RFC 3849).
const NOBODY_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
const NOBODY_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xbad, 0, 0, 0, 0, 0);

/// Sends that many first packets of TCP or UDP to a frontend from a namespace, each from another source, as fast as it goes. The
/// next flood has other sources: a UDP server's answers to the same ones would establish their flows.
///
/// # Errors
/// A packet could not be sent.
pub fn flood(from: &Namespace, protocol: Protocol, to: SocketAddr, packets: u16) -> Result<()> {
    let (family, domain) = if to.is_ipv4() {
        (Family::V4, Domain::IPV4)
    } else {
        (Family::V6, Domain::IPV6)
    };
    // The headers are the sender's (raw(7)).
    let socket = from.run(|| Socket::new(domain, Type::RAW, Some(socket2::Protocol::from(255))))?;
    let target = SocketAddr::new(to.ip(), 0).into();
    let first = fastrand::u16(..);
    for number in 0..packets {
        let packet = match protocol {
            Protocol::Tcp => raw::syn(source(family, number, first), to)?,
            _ => raw::udp(source(family, number, first), to, b"flood")?,
        };
        socket.send_to(&packet, &target).context("a packet of the flood")?;
    }
    Ok(())
}

/// The source of a number: an address of its own, and ports from `first` on.
fn source(family: Family, number: u16, first: u16) -> SocketAddr {
    let address: IpAddr = match family {
        Family::V4 => Ipv4Addr::from_bits(NOBODY_V4.to_bits() + u32::from(number)).into(),
        Family::V6 => Ipv6Addr::from_bits(NOBODY_V6.to_bits() + u128::from(number)).into(),
    };
    SocketAddr::new(address, 1024 + number.wrapping_add(first) % 50_000)
}
