//! Tables `watchers`, `event_rings` and `events_lost`: who watches the datapath, and where it is told of new flows and refused packets.
//!
//! Whoever watches puts a BPF ring buffer of its own into a place of `event_rings`, and what it wants to be told, and until
//! when, into the same place of `watchers`; what its ring has no room for is counted in that of `events_lost`. It renews the
//! time for as long as it lives: one that was killed is told nothing any more a few ticks later. Place [`ANYBODY`] has no ring but the latest time of all, so that one look is enough while
//! nobody watches.

use super::plain;

/// Place of [`Watcher`] that says until when there is anybody at all; nobody's own.
pub const ANYBODY: u32 = 0;
/// How many can watch at once, at places from 1 on.
pub const MAX_WATCHERS: u32 = 8;
/// How many ticks ahead a watcher says that it watches, see [`Watcher::until`]. It is to renew that every second.
pub const LEASE: u32 = 5;

/// [`Event::service`] of a packet that is for no service port.
pub const NO_SERVICE: u32 = u32::MAX;

/// Who watches.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Watcher {
    /// What it wants to be told: a bit for each `datapath::Reason`, by its number
    pub reasons: u64,
    /// First tick (see [`super::TICK_SHIFT`]) at which it doesn't watch any more
    pub until: u32,
    /// Always 0
    pub reserved: u32,
}

impl Watcher {
    /// Whether it watches at tick `now`.
    #[inline(always)]
    pub const fn watches(&self, now: u32) -> bool {
        now < self.until
    }

    /// Whether it wants to be told of what has the reason of this number.
    #[inline(always)]
    pub const fn wants(&self, reason: u8) -> bool {
        // As the kernel shifts, too: by what is left of the number modulo 64.
        self.reasons & 1_u64.wrapping_shl(reason as u32) != 0
    }
}

/// What a watcher is told: a flow was opened, or a packet was refused.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Event {
    /// When, in nanoseconds of `CLOCK_MONOTONIC`
    pub nanoseconds: u64,
    /// Source of the packet as it came to the hook, network byte order; an IPv4 address as `::ffff:a.b.c.d` (RFC 4291,
    /// 2.5.5.2). All zero where a socket has none yet
    pub source: [u8; 16],
    /// Its destination, likewise: the frontend, but of a packet that is refused on its way to a backend that
    pub destination: [u8; 16],
    /// The backend that the flow was opened to, likewise; all zero if there is none
    pub backend: [u8; 16],
    /// Port of `source`, host byte order; 0 if there is none
    pub source_port: u16,
    /// Port of `destination`, host byte order; 0 if there is none
    pub destination_port: u16,
    /// Port of `backend`, host byte order
    pub backend_port: u16,
    /// IP protocol number; 0 for a packet without ports
    pub protocol: u8,
    /// [`super::INGRESS`], [`super::EGRESS`] or [`AT_SOCKET`]
    pub hook: u8,
    /// Id of the service port, key of `service_names`; [`NO_SERVICE`] if there is none
    pub service: u32,
    /// Interface index of the edge; 0 at a socket
    pub device: u32,
    /// Bytes of the packet from the network header on; 0 at a socket
    pub length: u32,
    /// Number of the `datapath::Reason`, or [`ANSWERED`]
    pub reason: u8,
    /// Number of the reason that the packet was counted by: another one if it was to be answered and that failed
    pub outcome: u8,
    /// Bits of [`super::flow_flags`] of a flow
    pub flags: u8,
    /// Always 0
    pub reserved: u8,
}

/// [`Event::reason`] of a flow's first answer, which is no packet's reason. The addresses and ports are those that the flow was
/// opened with; a flow whose opening nobody was told of has one, too.
pub const ANSWERED: u8 = 63;

/// [`Event::hook`] of a process that connects or sends: there is no packet yet.
pub const AT_SOCKET: u8 = 2;

plain! {
    Watcher = 16;
    Event = 80;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watcher_is_told_what_it_asked_for_until_it_is_gone() {
        let watcher = Watcher {
            reasons: 1 << 3 | 1 << 40,
            until: 10,
            ..Watcher::default()
        };
        assert!(watcher.watches(9) && !watcher.watches(10));
        assert!(watcher.wants(3) && watcher.wants(40) && !watcher.wants(4));
        assert!(!Watcher::default().watches(0), "nobody");
    }
}
