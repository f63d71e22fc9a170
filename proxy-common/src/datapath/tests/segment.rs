//! Packets to send: built field by field, their checksums computed in full.

use crate::packet::{BufferPacket, Hops, SCTP, TCP, UDP, V4, V6, checksum::checksum, crc32c::crc32c, tcp_flags};

/// An address, as a number in network order, and a port.
pub(super) type Endpoint = (u128, u16);

/// A family whose packets and addresses tests can make.
pub(super) trait TestFamily: Hops {
    /// The address with this number.
    fn address(number: u128) -> Self::Address;

    /// The number of an address.
    fn number(address: &Self::Address) -> u128;

    /// A network header before `payload`; `options` are IPv4 options or IPv6 extension headers, the first of type `next`.
    fn header(segment: &Segment, payload: usize) -> Vec<u8>;
}

#[expect(clippy::cast_possible_truncation, reason = "addresses of IPv4 are the low 32 bits")]
impl TestFamily for V4 {
    fn address(number: u128) -> [u8; 4] {
        (number as u32).to_be_bytes()
    }

    fn number(address: &[u8; 4]) -> u128 {
        u32::from_be_bytes(*address).into()
    }

    fn header(segment: &Segment, payload: usize) -> Vec<u8> {
        let length = 20 + segment.options.len();
        let mut header = vec![0x40 | (length / 4) as u8, 0];
        header.extend(((length + payload) as u16).to_be_bytes());
        // Identification, "don't fragment", time to live.
        header.extend([0x12, 0x34, 0x40, 0, 64, segment.protocol, 0, 0]);
        header.extend(Self::address(segment.source.0));
        header.extend(Self::address(segment.destination.0));
        header.extend(&segment.options);
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum.to_ne_bytes());
        header
    }
}

#[expect(clippy::cast_possible_truncation, reason = "test packets are short")]
impl TestFamily for V6 {
    fn address(number: u128) -> [u8; 16] {
        number.to_be_bytes()
    }

    fn number(address: &[u8; 16]) -> u128 {
        u128::from_be_bytes(*address)
    }

    fn header(segment: &Segment, payload: usize) -> Vec<u8> {
        let mut header = vec![0x60, 0, 0, 0];
        header.extend(((segment.options.len() + payload) as u16).to_be_bytes());
        header.extend([segment.first_extension.unwrap_or(segment.protocol), 64]);
        header.extend(Self::address(segment.source.0));
        header.extend(Self::address(segment.destination.0));
        header.extend(&segment.options);
        header
    }
}

/// A packet to send.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub(super) protocol: u8,
    pub(super) source: Endpoint,
    pub(super) destination: Endpoint,
    pub(super) flags: u8,
    /// TCP's sequence and acknowledgment numbers
    pub(super) numbers: [u8; 8],
    /// IPv4 options, or IPv6 extension headers
    pub(super) options: Vec<u8>,
    /// Protocol number of the first extension header
    pub(super) first_extension: Option<u8>,
    pub(super) payload: Vec<u8>,
}

impl Segment {
    /// A packet that opens a flow: SYN, if TCP; INIT, if SCTP.
    pub(super) fn first(protocol: u8, source: Endpoint, destination: Endpoint) -> Self {
        Self {
            protocol,
            source,
            destination,
            flags: if protocol == UDP { 0 } else { tcp_flags::SYN },
            numbers: [0, 0, 0, 1, 0, 0, 0, 2],
            options: Vec::new(),
            first_extension: None,
            payload: b"payload".to_vec(),
        }
    }

    /// Any later packet.
    pub(super) fn later(protocol: u8, source: Endpoint, destination: Endpoint) -> Self {
        Self::first(protocol, source, destination).flags(tcp_flags::ACK)
    }

    /// With these TCP control bits, or the SCTP chunk that means the same; UDP has none.
    pub(super) fn flags(mut self, flags: u8) -> Self {
        self.flags = if self.protocol == UDP { 0 } else { flags };
        self
    }

    /// With IPv6 extension headers, the first of this type; the last names this packet's protocol.
    pub(super) fn extensions(mut self, first: u8, headers: Vec<u8>) -> Self {
        self.first_extension = Some(first);
        self.options = headers;
        self
    }

    /// The bytes, from the network header on.
    pub(super) fn bytes<F: TestFamily>(&self) -> Vec<u8> {
        let mut transport = Vec::new();
        transport.extend(self.source.1.to_be_bytes());
        transport.extend(self.destination.1.to_be_bytes());
        if self.protocol == SCTP {
            // DATA, if nothing else.
            let chunk = match self.flags {
                tcp_flags::SYN => 1,
                flags if flags == tcp_flags::SYN | tcp_flags::ACK => 2,
                flags if flags & tcp_flags::RST != 0 => 6,
                _ => 0,
            };
            // Verification tag, checksum, type, flags and length of the chunk.
            transport.extend([1, 2, 3, 4, 0, 0, 0, 0, chunk, 0, 0, 4]);
            transport.extend(&self.payload);
            let sum = crc32c(&transport);
            transport[8..12].copy_from_slice(&sum.to_le_bytes());
            let mut bytes = F::header(self, transport.len());
            bytes.extend(transport);
            return bytes;
        }
        let at = if self.protocol == TCP {
            transport.extend(self.numbers);
            // Data offset, flags, window, checksum, urgent pointer.
            transport.extend([5 << 4, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
            16
        } else {
            let length = u16::try_from(8 + self.payload.len()).expect("a short payload");
            transport.extend(length.to_be_bytes());
            transport.extend([0, 0]);
            6
        };
        transport.extend(&self.payload);
        let mut sum = checksum(&pseudo::<F>(
            self.protocol,
            self.source.0,
            self.destination.0,
            &transport,
        ));
        if self.protocol != TCP && sum == 0 {
            sum = 0xffff;
        }
        transport[at..at + 2].copy_from_slice(&sum.to_ne_bytes());
        let mut bytes = F::header(self, transport.len());
        bytes.extend(transport);
        bytes
    }
}

/// Pseudo header (RFC 9293, 3.1; RFC 8200, 8.1) and what follows: what the transport checksum is taken of.
pub(super) fn pseudo<F: TestFamily>(protocol: u8, source: u128, destination: u128, transport: &[u8]) -> Vec<u8> {
    use crate::layout::AddressBytes as _;
    let mut data = F::address(source).as_bytes().to_vec();
    data.extend(F::address(destination).as_bytes());
    // The fields differ in place and width between the families, but not in the sum.
    data.extend([0, protocol]);
    data.extend(u16::try_from(transport.len()).expect("a short packet").to_be_bytes());
    data.extend(transport);
    data
}

/// Source and destination of a packet.
pub(super) fn endpoints<F: TestFamily>(bytes: &mut [u8]) -> (Endpoint, Endpoint) {
    let packet = BufferPacket::new(bytes);
    let addresses = F::addresses(&packet).expect("addresses");
    let transport = F::transport(&packet).expect("ports");
    (
        (F::number(&addresses.source), transport.source_port),
        (F::number(&addresses.destination), transport.destination_port),
    )
}

/// Fails unless the checksums of a packet are those computed in full.
pub(super) fn assert_checksums<F: TestFamily>(bytes: &mut [u8]) {
    let ((source, _), (destination, _)) = endpoints::<F>(bytes);
    let transport = F::transport(&BufferPacket::new(bytes)).expect("ports");
    if !F::IPV6 {
        let header = usize::from(bytes[0] & 0xf) * 4;
        assert_eq!(checksum(&bytes[..header]), 0, "checksum of the IPv4 header");
    }
    if transport.protocol == SCTP {
        let mut packet = bytes[transport.offset..].to_vec();
        let stored = u32::from_le_bytes([packet[8], packet[9], packet[10], packet[11]]);
        packet[8..12].fill(0);
        assert_eq!(stored, crc32c(&packet), "checksum of {transport:?}");
        return;
    }
    let at = transport.checksum_offset();
    let stored = u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
    bytes[at..at + 2].copy_from_slice(&[0, 0]);
    let mut computed = checksum(&pseudo::<F>(
        transport.protocol,
        source,
        destination,
        &bytes[transport.offset..],
    ));
    if transport.protocol != TCP && computed == 0 {
        computed = 0xffff;
    }
    bytes[at..at + 2].copy_from_slice(&stored.to_ne_bytes());
    assert_eq!(stored, computed, "transport checksum of {transport:?}");
}
