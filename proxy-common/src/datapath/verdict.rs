//! What the datapath decided, and why.

use core::fmt;

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Goes on as it is
    Continue,
    /// Goes on, rewritten
    Rewrite,
    /// Refused: the sender is to be told
    Reject,
    /// Dropped silently
    Drop,
    /// Taken away and kept, to be sent on later
    Hold,
}

/// A verdict and its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What becomes of the packet
    pub verdict: Verdict,
    /// Why
    pub reason: Reason,
}

/// Declares the reasons: number, verdict and text of each.
macro_rules! reasons {
    ($($(#[doc = $doc:literal])* $name:ident = $number:literal, $verdict:ident, $text:literal;)*) => {
        /// Why a packet got its verdict: the index into table `reason_counts`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum Reason {
            $($(#[doc = $doc])* $name = $number,)*
        }

        impl Reason {
            /// Every reason, by number.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The verdict that goes with the reason.
            #[inline(always)]
            pub const fn verdict(self) -> Verdict {
                match self {
                    $(Self::$name => Verdict::$verdict,)*
                }
            }
        }

        impl fmt::Display for Reason {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$name => $text,)*
                })
            }
        }
    };
}

reasons! {
    /// The addresses are those of no frontend and no flow: the usual case, not counted
    Unrelated = 0, Continue, "not traffic of a Service";
    /// A packet of a known flow
    Established = 1, Rewrite, "known flow, rewritten";
    /// The first packet of a flow
    NewFlow = 2, Rewrite, "new flow to a chosen endpoint";
    /// Truncated, or headers that cannot be
    Malformed = 3, Continue, "malformed packet, passed untouched";
    /// A fragment that is not translated, as the first one of its packet was not
    Fragment = 4, Continue, "fragment, passed untouched";
    /// ICMP and others
    OtherProtocol = 5, Continue, "neither TCP, UDP nor SCTP, passed untouched";
    /// The address is a frontend's or the node's, the port is not
    NoFrontend = 6, Continue, "no frontend has this address, port and protocol";
    /// A client uses directly the ports of an old flow, which ends by that
    FlowRetired = 7, Continue, "direct connection, an old flow of its ports was retired";
    /// behaviour.md 4.1
    NoEndpoints = 8, Reject, "the service port has no endpoints";
    /// behaviour.md 4.2
    NoLocalEndpoints = 9, Drop, "the service port has no endpoints on this node and its traffic policy is Local";
    /// The service entry names an endpoint that its set doesn't hold
    EndpointMissing = 10, Drop, "the endpoint set is incomplete";
    /// No room for another flow
    FlowTableFull = 11, Drop, "the flow table is full";
    /// Every port tried for a colliding flow is in use
    PortsExhausted = 12, Drop, "no free port for the flow";
    /// The device has no address of the family
    NoMasqueradeAddress = 13, Drop, "the device has no address to masquerade with";
    /// The packet could not be written
    RewriteFailed = 14, Drop, "the packet could not be rewritten";
    /// behaviour.md 4.6
    NoPort = 15, Reject, "the cluster address has no such port";
    /// behaviour.md 4.7
    Unallocated = 16, Drop, "no Service has this address of the cluster's Service range";
    /// behaviour.md 3.10
    SourceRefused = 17, Drop, "the source is in none of the Service's loadBalancerSourceRanges";
    /// Its quote and addresses were translated as the flow's packets are
    IcmpError = 18, Rewrite, "ICMP error about a known flow, translated";
    /// The limit of `reject` answers
    AnswerLimited = 19, Drop, "refused, with no answer since there are too many";
    /// RFC 1122, 3.2.2
    Unanswerable = 20, Drop, "refused, with no answer since none may be given to such a packet";
    /// As the first fragment of its packet
    FragmentRewritten = 21, Rewrite, "fragment of a rewritten packet, rewritten";
    /// Fragments come in any order, but only the first one has ports
    FragmentHeld = 22, Hold, "fragment, held until the first one of its packet comes";
    /// Counted beside the packet's own reason when its held fragments are sent on
    FragmentReleased = 23, Continue, "held fragment, sent on behind the first one of its packet";
    /// As the first fragment of its packet
    FragmentRefused = 24, Drop, "fragment of a refused packet";
    /// Its place in the table is taken, or it is larger than that
    FragmentNotHeld = 25, Drop, "fragment that came before the first one of its packet, and no room to hold it";
    /// Of a connection from before, which conntrack may translate
    MidStream = 26, Continue, "from the midst of a connection that kube-proxy may have made, passed untouched";
    /// A flow that the previous generation of programs has opened: it goes on with it, and counts its packets
    Previous = 27, Continue, "flow of the previous generation, left to it";
    /// It goes to a frontend that has an endpoint for it, but is on its way already
    HostUnserved = 28, Continue, "packet of a host process that no socket hook saw, passed untouched";
    /// Counted beside the packet's own reason when the table is full and the packet's flow gets its place
    FlowEvicted = 29, Continue, "unanswered or closed flow, given up for a new one as the flow table was full";
    /// Counted beside the packet's own reason, each time that another flow or a socket has the port that was tried
    PortTaken = 30, Continue, "port in use, another one tried for the flow";
}

impl Reason {
    /// Whether it is why a service port refused a packet, which is known by then: such packets are counted by service port, too.
    #[inline(always)]
    pub const fn is_refusal_of_service(self) -> bool {
        matches!(
            self,
            Self::NoEndpoints
                | Self::NoLocalEndpoints
                | Self::EndpointMissing
                | Self::FlowTableFull
                | Self::PortsExhausted
                | Self::NoMasqueradeAddress
                | Self::SourceRefused
        )
    }
}

impl From<Reason> for Outcome {
    #[inline(always)]
    fn from(reason: Reason) -> Self {
        Self {
            verdict: reason.verdict(),
            reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::tables::REASON_COUNTS;

    #[test]
    fn reasons_are_numbered_in_order_and_fit_their_table() {
        for (number, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, number);
        }
        assert!(Reason::ALL.len() <= REASON_COUNTS.max_entries as usize);
    }
}
