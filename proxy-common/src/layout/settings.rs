//! Read-only settings of the programs, set once when they are loaded.

use super::plain;

/// A tick is 2^30 ns of `CLOCK_MONOTONIC`, about 1.07 s: the unit of [`super::FlowValue::last_seen`].
pub const TICK_SHIFT: u32 = 30;

/// How long a flow without packets is kept, in ticks, by its state. Defaults are those of nf_conntrack
/// (`net/netfilter/nf_conntrack_proto_{tcp,udp,sctp}.c`), established as kube-proxy sets it (behaviour.md 7.10).
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP: not answered yet
    pub tcp_opening: u32,
    /// TCP: answered, not closed
    pub tcp_established: u32,
    /// TCP: reset, or closed by both sides
    pub tcp_closing: u32,
    /// UDP: not answered yet
    pub udp_opening: u32,
    /// UDP: packets seen both ways
    pub udp_established: u32,
    /// SCTP: not answered yet
    pub sctp_opening: u32,
    /// SCTP: packets seen both ways, not closed
    pub sctp_established: u32,
    /// SCTP: aborted or shut down
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
            self.tcp_established,
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
        tcp_established: Self::ticks(86_400),
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Flow timeouts
    pub timeouts: Timeouts,
    /// `BPF_F_IPV6` where the kernel's `bpf_l4_csum_replace` knows it (Linux 6.16), else 0
    pub ipv6_checksum_flag: u32,
    /// 1 while there is a previous generation, whose flows are left to it, else 0
    pub previous: u32,
}

impl Settings {
    /// What programs run with when the loader says nothing.
    pub const DEFAULT: Self = Self {
        timeouts: Timeouts::DEFAULT,
        ipv6_checksum_flag: 0,
        previous: 0,
    };
}

plain! {
    Timeouts = 32;
    Settings = 40;
}
