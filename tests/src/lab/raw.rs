//! Whole IP packets, sent and seen as they are: for what no socket sends (fragments in another order, SCTP) and for looking
//! at what a device carries. Build and read them with `etherparse`.

mod sctp;

use std::{
    io::{self, Read as _},
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};
use etherparse::{
    IpFragOffset, IpHeaders, IpNumber, Ipv6FragmentHeader, PacketBuilder, PacketBuilderStep, SlicedPacket,
};
use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, SockaddrLike as _, bind, socket},
};
use socket2::{Domain, Protocol, Socket, Type};

pub use self::sctp::{Chunk, Sctp, sctp};
use super::{Namespace, PATIENCE};

/// What passes a device in either direction, from the start of the capture on.
#[derive(Debug)]
pub struct Capture {
    socket: Socket,
    device: String,
}

impl Capture {
    /// Starts on a device of a namespace.
    pub fn start(namespace: &Namespace, device: &str) -> Result<Self> {
        let open = || -> Result<Socket> {
            let addresses = getifaddrs()?.filter(|found| found.interface_name == device);
            let mut addresses = addresses.filter_map(|found| found.address);
            let link = addresses.find(|address| address.family() == Some(AddressFamily::Packet));
            let link = link.with_context(|| format!("no device {device}"))?;
            // Datagrams of the packet family start with the IP header, whatever the device's own header.
            let flags = SockFlag::SOCK_CLOEXEC;
            let descriptor = socket(AddressFamily::Packet, SockType::Datagram, flags, SockProtocol::EthAll)?;
            bind(std::os::fd::AsRawFd::as_raw_fd(&descriptor), &link)?;
            Ok(Socket::from(descriptor))
        };
        let socket = namespace.run(open).with_context(|| format!("capturing on {device}"))?;
        Ok(Self {
            socket,
            device: device.to_owned(),
        })
    }

    /// All IP packets up to the first wanted one, which is the last of them. To show that a packet does *not* come, want one
    /// that was sent after it.
    ///
    /// # Errors
    /// No wanted one came within the lab's patience.
    pub fn take_until(&mut self, what: &str, wanted: impl Fn(&SlicedPacket<'_>) -> bool) -> Result<Vec<Vec<u8>>> {
        let deadline = Instant::now() + PATIENCE;
        let mut packets = Vec::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("{} carried no {what} within {PATIENCE:?}", self.device);
            }
            self.socket.set_read_timeout(Some(left))?;
            let length = match self.socket.read(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error.into()),
            };
            // Neighbour discovery of IPv4 is no IP.
            let Ok(sliced) = SlicedPacket::from_ip(&buffer[..length]) else {
                continue;
            };
            let found = wanted(&sliced);
            packets.push(buffer[..length].to_vec());
            if found {
                return Ok(packets);
            }
        }
    }
}

/// Sends an IP packet, complete with its headers, the way that the namespace's routes say.
///
/// # Errors
/// It is no IP packet, or the kernel refused it: it has no route, or is larger than the device's MTU.
pub fn send(namespace: &Namespace, packet: &[u8]) -> Result<()> {
    let (headers, _) = IpHeaders::from_slice(packet)?;
    let (domain, to) = match &headers {
        IpHeaders::Ipv4(header, _) => (Domain::IPV4, IpAddr::from(header.destination)),
        IpHeaders::Ipv6(header, _) => (Domain::IPV6, IpAddr::from(header.destination)),
    };
    namespace.run(|| {
        // IPPROTO_RAW: the headers are the sender's (raw(7)).
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(255)))?;
        let sent = socket.send_to(packet, &SocketAddr::new(to, 0).into())?;
        ensure!(sent == packet.len(), "sent {sent} bytes of {}", packet.len());
        Ok(())
    })
}

/// A UDP packet.
///
/// # Panics
/// The addresses are of two families.
pub fn udp(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Result<Vec<u8>> {
    let mut packet = Vec::new();
    let builder = between(from, to).udp(from.port(), to.port());
    builder.write(&mut packet, payload)?;
    Ok(packet)
}

/// The first packet of a TCP connection.
///
/// # Panics
/// The addresses are of two families.
pub fn syn(from: SocketAddr, to: SocketAddr) -> Result<Vec<u8>> {
    let mut packet = Vec::new();
    let builder = between(from, to).tcp(from.port(), to.port(), 1, 64_000);
    builder.syn().write(&mut packet, &[])?;
    Ok(packet)
}

fn between(from: SocketAddr, to: SocketAddr) -> PacketBuilderStep<IpHeaders> {
    const HOPS: u8 = 64;
    match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), HOPS),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), HOPS),
        _ => panic!("{from} and {to} are of two families"),
    }
}

/// Splits an IP packet without extension headers into fragments with at most `size` bytes of its payload each, in order.
///
/// # Errors
/// It is no such packet.
///
/// # Panics
/// `size` is no multiple of 8: only the last fragment may end elsewhere.
pub fn fragments(packet: &[u8], size: u16, identification: u16) -> Result<Vec<Vec<u8>>> {
    assert!(
        size > 0 && size.is_multiple_of(8),
        "fragments end at multiples of 8 bytes"
    );
    let (headers, payload) = IpHeaders::from_slice(packet)?;
    let chunks: Vec<&[u8]> = payload.payload.chunks(size.into()).collect();
    let mut fragments = Vec::new();
    for (chunk, index) in chunks.iter().zip(0u16..) {
        let more = usize::from(index) + 1 < chunks.len();
        let offset = IpFragOffset::try_new(index * (size / 8))?;
        let mut headers = headers.clone();
        match &mut headers {
            IpHeaders::Ipv4(header, _) => {
                header.identification = identification;
                header.dont_fragment = false;
                header.more_fragments = more;
                header.fragment_offset = offset;
            }
            IpHeaders::Ipv6(header, extensions) => {
                let within = header.next_header;
                extensions.fragment = Some(Ipv6FragmentHeader::new(within, offset, more, identification.into()));
                header.next_header = IpNumber::IPV6_FRAGMENTATION_HEADER;
            }
        }
        headers.set_payload_len(chunk.len())?;
        if let IpHeaders::Ipv4(header, _) = &mut headers {
            header.header_checksum = header.calc_header_checksum();
        }
        let mut fragment = Vec::new();
        headers.write(&mut fragment)?;
        fragment.extend_from_slice(chunk);
        fragments.push(fragment);
    }
    Ok(fragments)
}
