//! The datapath on tables in memory, with clock and chance in the test's hands.

mod affinity;
mod checksums;
mod collisions;
mod endpoints;
mod eviction;
mod flows;
mod forward;
mod fragmentation;
mod fragments;
mod hairpin;
mod halves;
mod headers;
mod host;
mod icmp_errors;
mod own;
mod policy;
mod reject;
mod sctp;
mod segment;
mod sockets;
mod takeover;
mod tell;
mod world;

/// Runs each test for IPv4 and for IPv6.
macro_rules! both_families {
    ($($(#[doc = $doc:literal])* fn $name:ident<$family:ident>() $body:block)*) => {$(
        mod $name {
            use super::*;

            $(#[doc = $doc])*
            fn run<$family: TestFamily>() $body

            #[test]
            fn ipv4() {
                run::<$crate::packet::V4>();
            }

            #[test]
            fn ipv6() {
                run::<$crate::packet::V6>();
            }
        }
    )*};
}
use both_families;
