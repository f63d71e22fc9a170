//! Tables `services_v4`, `services_v6` and `service_names`.

use super::{AddressBytes, plain};

/// Key of a frontend.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServiceKey<A> {
    /// Virtual address; all zero for a nodePort, which is looked up for any of the node's own addresses
    pub address: A,
    /// Port, host byte order; 0 is the wildcard that answers for unknown ports of a ClusterIP
    pub port: u16,
    /// IP protocol number; 0 in a wildcard entry
    pub protocol: u8,
    /// Always 0
    pub reserved: u8,
}

impl<A: AddressBytes> ServiceKey<A> {
    /// Key of `address`:`port` for an IP protocol number; port in host byte order.
    pub const fn new(address: A, port: u16, protocol: u8) -> Self {
        Self {
            address,
            port,
            protocol,
            reserved: 0,
        }
    }

    /// Key of the entry that answers for the ports of `address` that no Service has.
    pub const fn wildcard(address: A) -> Self {
        Self::new(address, 0, 0)
    }
}

/// A frontend: the service port it belongs to and the endpoint sets it may choose from.
///
/// Sets are immutable once a service entry names them; a changed endpoint list is a new set, and the update of this one
/// value flips to it.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct ServiceValue {
    /// ClientIP affinity timeout in seconds, [`AFFINITY_NONE`] without affinity
    #[cfg(feature = "other-layout")]
    pub affinity_timeout: u32,
    /// Id of the service port, key of `service_names` and `service_counts`; shared by all its frontends
    pub service: u32,
    /// Bits of [`service_flags`]
    pub flags: u32,
    /// Endpoint set for traffic policy Cluster, first part of the key of `slots_*`; 0 when not used
    pub cluster_set: u32,
    /// Number of endpoints in `cluster_set`
    pub cluster_count: u32,
    /// Endpoint set for traffic policy Local; 0 when not used
    pub local_set: u32,
    /// Number of endpoints in `local_set`
    pub local_count: u32,
    /// ClientIP affinity timeout in seconds, [`AFFINITY_NONE`] without affinity
    #[cfg(not(feature = "other-layout"))]
    pub affinity_timeout: u32,
}

/// No session affinity.
pub const AFFINITY_NONE: u32 = 0;

/// Bits of [`ServiceValue::flags`].
pub mod service_flags {
    /// behaviour.md 2.9: an endpoint exists somewhere, so an empty list means drop rather than reject
    pub const HAS_ENDPOINTS: u32 = 1;
    /// Traffic policy Local: chooses from `local_set`
    pub const LOCAL: u32 = 1 << 1;
    /// behaviour.md 5.6: with [`LOCAL`], local pods and the node itself choose from `cluster_set` nevertheless
    pub const SHORT_CIRCUIT: u32 = 1 << 2;
    /// behaviour.md 5.4: every client is hidden from the backend
    pub const MASQUERADE: u32 = 1 << 3;
    /// behaviour.md 5.3: clients that are not local pods are hidden from the backend
    pub const MASQUERADE_OUTSIDERS: u32 = 1 << 4;
    /// behaviour.md 5.6: clients with an address of the node are hidden from the backend
    pub const MASQUERADE_HOST: u32 = 1 << 5;
    /// behaviour.md 3.10: only sources in table `sources_*` under this service id are let in
    pub const RESTRICTED: u32 = 1 << 6;
    /// behaviour.md 4.6: answers for the ports of a ClusterIP that no Service has (`port` and `protocol` are 0)
    pub const WILDCARD: u32 = 1 << 7;
    /// Position of the [`super::frontend_kind`]
    pub const KIND_SHIFT: u32 = 8;
}

/// What kind of address a frontend is (behaviour.md 3.1), in [`ServiceValue::flags`] at [`service_flags::KIND_SHIFT`].
pub mod frontend_kind {
    /// An address of `spec.clusterIPs`
    pub const CLUSTER_IP: u32 = 0;
    /// An address of `spec.externalIPs`
    pub const EXTERNAL_IP: u32 = 1;
    /// An address of `status.loadBalancer.ingress`
    pub const LOAD_BALANCER: u32 = 2;
    /// A port on this node's addresses
    pub const NODE_PORT: u32 = 3;
    /// All bits of a kind
    pub const MASK: u32 = 3;
}

/// Name of a service port, UTF-8 padded with zero bytes: what reading commands show without agent or API server.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServiceName {
    /// Namespace of the Service
    pub namespace: [u8; 64],
    /// Name of the Service
    pub name: [u8; 64],
    /// Name of the port, empty for an unnamed single port
    pub port_name: [u8; 63],
    /// IP protocol number of the service port
    pub protocol: u8,
}

plain! {
    ServiceKey<[u8; 4]> = 8;
    ServiceKey<[u8; 16]> = 20;
    ServiceValue = 28;
    ServiceName = 192;
}
