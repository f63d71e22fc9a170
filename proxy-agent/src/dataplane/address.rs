//! Addresses between the tables' bytes and the standard library's types.

use std::net::{IpAddr, SocketAddr};

use proxy_common::layout::{AddressBytes, Backend};

/// An address as the tables hold it.
pub trait Address: AddressBytes + Send {
    /// The bytes of an address; `None` for one of the other family.
    fn from_ip(address: IpAddr) -> Option<Self>;

    /// The address of the bytes.
    fn to_ip(self) -> IpAddr;
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
}

/// An endpoint as a slot holds it; `None` for one of the other family.
pub fn backend<A: Address>(endpoint: SocketAddr) -> Option<Backend<A>> {
    A::from_ip(endpoint.ip()).map(|address| Backend {
        address,
        port: endpoint.port(),
        reserved: 0,
    })
}
