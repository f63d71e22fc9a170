//! What kube-proxy leaves on a node that it served: its rules go on translating what this proxy doesn't see first. Finds
//! it, and removes it without breaking the connections that it made.

mod iptables;
mod nftables;
mod remove;

use std::{fmt, io};

use serde::Serialize;

pub(super) use self::nftables::{forget_keeper, is_kept};
pub use self::{
    nftables::KEEPER,
    remove::{Removed, release, remove},
};
use crate::model::Problem;

/// One of kube-proxy's traces.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(into = "String")]
pub enum Leftover {
    /// An nftables table, by family as `nft` calls it
    Nftables(String),
    /// Chains of iptables, by the command that lists them
    Iptables(String),
    /// The device that holds the addresses of IPVS mode
    Ipvs,
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nftables(family) => write!(f, "nftables table {family} {}", nftables::TABLE),
            Self::Iptables(command) => write!(f, "{}* chains of {command}", iptables::PREFIX),
            Self::Ipvs => write!(f, "device {IPVS_DEVICE}"),
        }
    }
}

impl From<Leftover> for String {
    fn from(leftover: Leftover) -> Self {
        leftover.to_string()
    }
}

/// What to do about leftovers.
pub const ADVICE: &str = "once kube-proxy is stopped on this node, `proxy-agent cleanup --kube-proxy` removes them";

/// The device of IPVS mode (`pkg/proxy/ipvs/proxier.go`).
const IPVS_DEVICE: &str = "kube-ipvs0";

/// What kube-proxy left in this network namespace.
///
/// # Errors
/// If the kernel doesn't tell.
pub fn leftovers() -> io::Result<Vec<Leftover>> {
    let mut found: Vec<Leftover> = nftables::tables_of(nftables::TABLE)?
        .into_iter()
        .map(Leftover::Nftables)
        .collect();
    found.extend(iptables::present()?.into_iter().map(Leftover::Iptables));
    if has_ipvs_device() {
        found.push(Leftover::Ipvs);
    }
    Ok(found)
}

fn has_ipvs_device() -> bool {
    nix::net::if_::if_nametoindex(IPVS_DEVICE).is_ok()
}

/// Leftovers as a problem to be told.
pub(super) fn problem(leftovers: &[Leftover]) -> Option<Problem> {
    let list: Vec<String> = leftovers.iter().map(ToString::to_string).collect();
    (!list.is_empty()).then(|| Problem {
        object: "kube-proxy".to_owned(),
        field: String::new(),
        reason: format!("its rules are on this node: {}; {ADVICE}", list.join(", ")),
    })
}
