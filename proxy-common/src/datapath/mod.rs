//! The datapath: what happens to a packet at a hook, generic over the packet, the tables, the environment and the
//! address family. See ARCHITECTURE.md, "The packet's way".
//!
//! Invariants: knows no BPF and no Kubernetes; time and randomness are parameters; nothing here can panic.

mod affinity;
mod direct;
mod edge;
mod eviction;
mod first;
pub mod flow;
mod forward;
mod fragment;
mod frontend;
mod host;
mod icmp_error;
mod masquerade;
mod own;
mod reject;
mod reserve;
mod select;
pub mod socket;
mod tables;
mod tell;
#[cfg(test)]
mod tests;
mod translate;
mod upkeep;
mod verdict;

pub use edge::{egress, egress_fast, egress_slow, ingress, ingress_fast, ingress_slow};
pub use eviction::{Look, Victim, evict_one, look_at_oldest, make_room};
pub use first::choose;
pub use forward::{Crossing, Forwarding, Hop, Routes, forward};
pub use fragment::send_held;
pub use frontend::{NO_PORTS, find as find_frontend, find_for_process};
pub use host::judge_host_packet;
pub use icmp_error::icmp_error;
pub use reject::{refuse, reject};
pub use reserve::{Claim, Eviction, Rival, claim};
pub use select::{Choice, decide, scale};
pub use tables::{Environment, FlowHandle, InsertError, InsertMode, PacketCopy, Scratch, Tables};
pub use tell::tell;
pub use verdict::{Outcome, Reason, Verdict};
