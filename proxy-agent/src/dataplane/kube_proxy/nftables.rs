//! The tables of kube-proxy's nftables mode, and the one that keeps the connections which they made.

use std::{fmt::Write as _, io};

use anyhow::{Context as _, Result};
use netlink_packet_netfilter::{
    NetfilterMessageInner, NetfilterProtoFamily,
    nftables::{ChainAttribute, ChainMessage, NfTablesMessage, TableAttribute, TableMessage},
};

use super::remove::run;
use crate::dataplane::netfilter::{Netfilter, Want};

/// Name of kube-proxy's tables (`pkg/proxy/nftables/proxier.go`).
pub(super) const TABLE: &str = "kube-proxy";
/// Name of the nftables tables that keep conntrack translating.
pub const KEEPER: &str = "proxy-agent-keeps-established";

/// Families, as `nft` calls them, that tables can be of.
const FAMILIES: [(&str, NetfilterProtoFamily); 4] = [
    ("ip", NetfilterProtoFamily::IPv4),
    ("ip6", NetfilterProtoFamily::IPv6),
    ("inet", NetfilterProtoFamily::Inet),
    ("netdev", NetfilterProtoFamily::NetDev),
];

/// The families that have a table of this name.
pub(super) fn tables_of(name: &str) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for (family, number) in FAMILIES {
        let request = NfTablesMessage::GetTable(TableMessage {
            attributes: vec![TableAttribute::Name(name.to_owned())],
        });
        if exists(number, request)? {
            found.push(family.to_owned());
        }
    }
    Ok(found)
}

/// Whether a family has a chain of this name in a table.
pub(super) fn has_chain(family: NetfilterProtoFamily, table: &str, chain: &str) -> io::Result<bool> {
    let request = NfTablesMessage::GetChain(ChainMessage {
        attributes: vec![
            ChainAttribute::Table(table.to_owned()),
            ChainAttribute::Name(chain.to_owned()),
        ],
    });
    exists(family, request)
}

fn exists(family: NetfilterProtoFamily, request: impl Into<NetfilterMessageInner>) -> io::Result<bool> {
    match Netfilter::open()?.ask(family, request, Want::One, &mut |_| {}) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        // A kernel without nf_tables has none.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes kube-proxy's tables; gives what it removed.
pub(super) fn remove() -> Result<Vec<String>> {
    let tables = tables_of(TABLE).context("cannot list the nftables tables")?;
    if tables.is_empty() {
        return Ok(tables);
    }
    let script = tables.iter().fold(String::new(), |mut script, family| {
        writeln!(script, "delete table {family} {TABLE}").expect("a string takes everything");
        script
    });
    run("nft", &["-f", "-"], &script)?;
    Ok(tables)
}

/// Keeps conntrack translating what it translates, whatever rules go.
///
/// With the last chain of type `nat` the kernel takes away what translates packets of established connections as well
/// (`nf_nat_unregister_fn`), and with the last rule that needs conntrack, conntrack itself (`nf_ct_netns_put`). So one of each
/// has to be there: a chain that sees first packets only, and a rule that does nothing.
pub(super) fn keep_established() -> Result<()> {
    let script = ["ip", "ip6"].map(|family| {
        format!(
            "table {family} {KEEPER} {{ chain prerouting {{ type nat hook prerouting priority -100; ct state new return; }}; }}\n"
        )
    });
    run(
        "nft",
        &["-f", "-"],
        &(forgetting(&tables_of(KEEPER)?) + &script.concat()),
    )?;
    Ok(())
}

/// Whether [`keep_established`] is in effect.
pub(in crate::dataplane) fn is_kept() -> io::Result<bool> {
    tables_of(KEEPER).map(|tables| !tables.is_empty())
}

/// Ends [`keep_established`].
pub(in crate::dataplane) fn forget_keeper() -> Result<()> {
    run("nft", &["-f", "-"], &forgetting(&tables_of(KEEPER)?))?;
    Ok(())
}

fn forgetting(families: &[String]) -> String {
    let line = |family: &String| format!("delete table {family} {KEEPER}\n");
    families.iter().map(line).collect()
}
