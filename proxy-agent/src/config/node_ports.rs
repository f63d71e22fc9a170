//! `nodePortAddresses`: ranges, and words that stand for ranges (behaviour.md 3.6).

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::ranges;
use crate::model::Family;

/// On which of the node's addresses nodePorts are served (behaviour.md 3.6, `nodePortAddresses`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// The addresses of the Node object
    Primary,
    /// All of the node's addresses in these ranges, at least one
    Ranges(Vec<IpNet>),
    /// The addresses of the Node object, and all in these ranges, at least one
    PrimaryAnd(Vec<IpNet>),
}

impl NodePortAddresses {
    /// Reads ranges and the words `primary`, `localhost` and `all`.
    pub(super) fn parse(texts: &[String]) -> Result<Self> {
        let mut is_primary = texts.is_empty();
        let mut found = Vec::new();
        for text in texts.iter().map(|text| text.trim()) {
            match text {
                "primary" => is_primary = true,
                "localhost" => found.extend([
                    IpNet::from(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)),
                    IpNet::from(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128)),
                ]),
                "all" => found.extend([
                    IpNet::from(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
                    IpNet::from(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
                ]),
                range => found.extend(ranges("nodePortAddresses", [range].into_iter())?),
            }
        }
        Ok(match (is_primary, found.is_empty()) {
            (true, true) => Self::Primary,
            (true, false) => Self::PrimaryAnd(found),
            (false, _) => Self::Ranges(found),
        })
    }

    /// The ranges named, besides the addresses of the Node object.
    pub fn ranges(&self) -> &[IpNet] {
        match self {
            Self::Primary => &[],
            Self::Ranges(ranges) | Self::PrimaryAnd(ranges) => ranges,
        }
    }

    /// The families that a list of ranges says nothing about. It means all of the node's addresses there (behaviour.md
    /// 3.6), which not everybody expects.
    pub fn open_families(&self) -> Vec<Family> {
        match self {
            Self::Primary | Self::PrimaryAnd(_) => Vec::new(),
            Self::Ranges(ranges) => {
                let is_open = |family: &Family| ranges.iter().all(|range| Family::of(range.addr()) != *family);
                Family::ALL.into_iter().filter(is_open).collect()
            }
        }
    }

    /// The list as the file has it.
    pub(super) fn to_texts(&self) -> Vec<String> {
        let primary = matches!(self, Self::Primary | Self::PrimaryAnd(_)).then(|| "primary".to_owned());
        primary
            .into_iter()
            .chain(self.ranges().iter().map(ToString::to_string))
            .collect()
    }
}
