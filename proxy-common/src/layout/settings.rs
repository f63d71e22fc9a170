//! Read-only settings of the programs, set once when they are loaded.

use super::{MAX_FLOWS, opening_slots, plain};

/// A tick is 2^30 ns of `CLOCK_MONOTONIC`, about 1.07 s: the unit of [`super::FlowValue::last_seen`].
pub const TICK_SHIFT: u32 = 30;

/// How long a flow without packets is kept, in ticks, by its state. Defaults are those of nf_conntrack, whose names of the
/// states are given (`net/netfilter/nf_conntrack_proto_{tcp,udp,sctp}.c`), two of them as kube-proxy sets them
/// (behaviour.md 7.10).
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP: not answered yet (SYN_SENT)
    pub tcp_opening: u32,
    /// TCP: answered, but the client has not acknowledged that (SYN_RECV)
    pub tcp_answered: u32,
    /// TCP: the handshake is done, nobody has closed (ESTABLISHED; kube-proxy makes the kernel's 5 days one)
    pub tcp_established: u32,
    /// TCP: closed by one side (CLOSE_WAIT; kube-proxy makes the kernel's minute an hour)
    pub tcp_half_closed: u32,
    /// TCP: reset, or closed by both sides (TIME_WAIT; the kernel's CLOSE, for resets, is shorter, but it has checked that a
    /// reset is within the window)
    pub tcp_closing: u32,
    /// UDP: not answered, or only within a tick: a question and its answer
    pub udp_opening: u32,
    /// UDP: packets both ways, for longer than a tick (the kernel waits for 2 s)
    pub udp_established: u32,
    /// SCTP: the handshake is not done (COOKIE_WAIT, COOKIE_ECHOED)
    pub sctp_opening: u32,
    /// SCTP: the handshake is done, the association neither aborted nor shut down
    pub sctp_established: u32,
    /// SCTP: aborted or shut down (CLOSED)
    pub sctp_closing: u32,
}

impl Timeouts {
    /// Ticks for whole seconds, rounded up.
    pub const fn ticks(seconds: u32) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "a tick is longer than a second")]
        let ticks = ((seconds as u64 * 1_000_000_000).div_ceil(1 << TICK_SHIFT)) as u32;
        ticks
    }

    /// The longest of them.
    pub fn longest(&self) -> u32 {
        let all = [
            self.tcp_opening,
            self.tcp_answered,
            self.tcp_established,
            self.tcp_half_closed,
            self.tcp_closing,
            self.udp_opening,
            self.udp_established,
            self.sctp_opening,
            self.sctp_established,
            self.sctp_closing,
        ];
        all.into_iter().fold(0, u32::max)
    }

    /// The defaults.
    pub const DEFAULT: Self = Self {
        tcp_opening: Self::ticks(120),
        tcp_answered: Self::ticks(60),
        tcp_established: Self::ticks(86_400),
        tcp_half_closed: Self::ticks(3600),
        tcp_closing: Self::ticks(120),
        udp_opening: Self::ticks(30),
        udp_established: Self::ticks(120),
        sctp_opening: Self::ticks(3),
        sctp_established: Self::ticks(210),
        sctp_closing: Self::ticks(10),
    };
}

impl Default for Timeouts {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// What the loader tells the programs.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Flow timeouts
    pub timeouts: Timeouts,
    /// `BPF_F_IPV6` where the kernel's `bpf_l4_csum_replace` knows it (Linux 6.16), else 0
    pub ipv6_checksum_flag: u32,
    /// 1 while there is a previous generation, whose flows are left to it, else 0
    pub previous: u32,
    /// Slots of `openings_v4` that are used, less one: a number's slot is what this mask leaves of it
    pub openings_mask_v4: u32,
    /// Of `openings_v6`
    pub openings_mask_v6: u32,
    /// 1 if traffic is counted by endpoint, too, else 0
    pub count_endpoints: u32,
}

impl Settings {
    /// What programs run with when the loader says nothing.
    pub const DEFAULT: Self = Self {
        timeouts: Timeouts::DEFAULT,
        ipv6_checksum_flag: 0,
        previous: 0,
        openings_mask_v4: opening_slots(MAX_FLOWS) - 1,
        openings_mask_v6: opening_slots(MAX_FLOWS) - 1,
        count_endpoints: 0,
    };
}

plain! {
    Timeouts = 40;
    Settings = 60;
}
