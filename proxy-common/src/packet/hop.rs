//! What a router does to a packet: it looks at the plain network header and counts a hop.

use super::{Family, Packet, TCP, Transport, UDP, V4, V6, View as _, ViewMut as _, checksum};

/// A family whose packets can be forwarded without the stack.
pub trait Hops: Family {
    /// What routes may go by besides addresses and ports, as `struct bpf_fib_lookup` has it: the type of service (RFC 791) in
    /// the first byte, or traffic class and flow label in network byte order (RFC 8200, 3).
    fn class<P: Packet>(packet: &P) -> Option<u32>;

    /// The transport header of a packet that may go one hop further and that has nothing in its network header that a
    /// router would have to look at: no options, no extension headers, no fragment. `None` for all others.
    fn plain_transport<P: Packet>(packet: &P) -> Option<Transport>;

    /// Counts a hop. `None` if the packet could not be written.
    fn count_hop<P: Packet>(packet: &mut P) -> Option<()>;
}

/// Whether a packet with this hop limit may be forwarded, and has ports that we know.
#[inline(always)]
const fn may_go_on(hop_limit: u8, protocol: u8) -> bool {
    hop_limit > 1 && matches!(protocol, TCP | UDP)
}

impl Hops for V4 {
    #[inline(always)]
    fn class<P: Packet>(packet: &P) -> Option<u32> {
        let [_, class] = packet.view::<20>(0)?.load(0);
        Some(u32::from_ne_bytes([class, 0, 0, 0]))
    }

    #[inline(always)]
    fn plain_transport<P: Packet>(packet: &P) -> Option<Transport> {
        const VERSION_4_WITH_FIVE_WORDS: u8 = 0x45;
        let header = packet.view::<20>(0)?;
        let [version_and_length, _] = header.load(0);
        let [hop_limit, protocol] = header.load(8);
        if version_and_length != VERSION_4_WITH_FIVE_WORDS || !may_go_on(hop_limit, protocol) {
            return None;
        }
        Self::transport(packet).ok()
    }

    #[inline(always)]
    fn count_hop<P: Packet>(packet: &mut P) -> Option<()> {
        let [hop_limit, protocol, sum @ ..]: [u8; 4] = packet.view::<20>(0)?.load(8);
        let sum = u16::from_ne_bytes(sum);
        let (old, new) = ([hop_limit, protocol], [hop_limit.wrapping_sub(1), protocol]);
        let mut header = packet.view_mut::<20>(0)?;
        header.store(8, new);
        header.store(
            10,
            checksum::update(sum, checksum::difference(&old, &new)).to_ne_bytes(),
        );
        Some(())
    }
}

impl Hops for V6 {
    #[inline(always)]
    fn class<P: Packet>(packet: &P) -> Option<u32> {
        const VERSION: u32 = 0xf000_0000;
        let first = u32::from_be_bytes(packet.view::<40>(0)?.load(0));
        Some((first & !VERSION).to_be())
    }

    #[inline(always)]
    fn plain_transport<P: Packet>(packet: &P) -> Option<Transport> {
        let [protocol, hop_limit] = packet.view::<40>(0)?.load(6);
        if !may_go_on(hop_limit, protocol) {
            return None;
        }
        Self::transport(packet).ok()
    }

    #[inline(always)]
    fn count_hop<P: Packet>(packet: &mut P) -> Option<()> {
        let [protocol, hop_limit] = packet.view::<40>(0)?.load(6);
        packet
            .view_mut::<40>(0)?
            .store(6, [protocol, hop_limit.wrapping_sub(1)]);
        Some(())
    }
}
