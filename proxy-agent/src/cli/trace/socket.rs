//! The socket of a process that opens the traced connection.

use proxy_common::{
    datapath::socket::Socket,
    layout::{AddressBytes, FlowKey},
    packet::{TCP, UDP},
};

/// A socket of the host, bound to the source of the traced packet.
pub(super) struct TracedSocket<A> {
    protocol: u8,
    source: A,
    remote: (A, u16),
}

impl<A: AddressBytes> TracedSocket<A> {
    /// The socket that would send the first packet with this key; `None` for a protocol whose sockets have no hook.
    pub(super) fn of(key: &FlowKey<A>) -> Option<Self> {
        matches!(key.protocol, TCP | UDP).then_some(Self {
            protocol: key.protocol,
            source: key.source,
            remote: (key.destination, key.destination_port),
        })
    }
}

impl<A: AddressBytes> Socket<A> for TracedSocket<A> {
    fn cookie(&self) -> u64 {
        0
    }

    fn protocol(&self) -> u8 {
        self.protocol
    }

    fn is_host(&self) -> bool {
        true
    }

    fn source(&self) -> A {
        self.source
    }

    fn remote(&self) -> (A, u16) {
        self.remote
    }

    fn set_remote(&mut self, remote: (A, u16)) {
        self.remote = remote;
    }
}
