//! Addresses between the tables' bytes and the standard library's types.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use proxy_common::layout::{AddressBytes, Backend, Range, ServiceRanges, SourceKey};

/// An address as the tables hold it.
pub trait Address: AddressBytes + Ord + Send {
    /// The bytes of an address; `None` for one of the other family.
    fn from_ip(address: IpAddr) -> Option<Self>;

    /// The address of the bytes.
    fn to_ip(self) -> IpAddr;

    /// The ranges of the family that cluster addresses are from, to be written.
    fn service_ranges(ranges: &mut ServiceRanges) -> &mut [Range<Self>];
}

impl Address for [u8; 4] {
    fn from_ip(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V4(address) => Some(address.octets()),
            IpAddr::V6(_) => None,
        }
    }

    fn to_ip(self) -> IpAddr {
        self.into()
    }

    fn service_ranges(ranges: &mut ServiceRanges) -> &mut [Range<Self>] {
        &mut ranges.v4
    }
}

impl Address for [u8; 16] {
    fn from_ip(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(address.octets()),
        }
    }

    fn to_ip(self) -> IpAddr {
        self.into()
    }

    fn service_ranges(ranges: &mut ServiceRanges) -> &mut [Range<Self>] {
        &mut ranges.v6
    }
}

/// An endpoint as a slot holds it; `None` for one of the other family.
pub fn backend<A: Address>(endpoint: SocketAddr) -> Option<Backend<A>> {
    A::from_ip(endpoint.ip()).map(|address| Backend {
        address,
        port: endpoint.port(),
        reserved: 0,
    })
}

/// A range of sources as table `sources_*` holds it; `None` for one of the other family.
pub fn source<A: Address>(service: u32, range: IpNet) -> Option<SourceKey<A>> {
    A::from_ip(range.network()).map(|address| SourceKey::new(service, address, range.prefix_len()))
}

/// The range that a key of table `sources_*` stands for; `None` for one that [`source`] doesn't make.
pub fn ip_range<A: Address>(key: &SourceKey<A>) -> Option<IpNet> {
    let prefix = key.prefix_length.checked_sub(u32::BITS)?;
    IpNet::new(key.source.address.to_ip(), u8::try_from(prefix).ok()?).ok()
}

/// A range as table `service_ranges` holds it; `None` for one of the other family.
pub fn range<A: Address>(range: IpNet) -> Option<Range<A>> {
    Some(Range {
        network: A::from_ip(range.network())?,
        mask: A::from_ip(range.netmask())?,
    })
}
