//! `cleanup`: removes every trace, or kube-proxy's.

use anyhow::Result;
use clap::Args;

use crate::dataplane::{
    self, cleanup, kube_proxy,
    pin::{DEFAULT_PIN_DIRECTORY, PinDirectory},
};

/// Detach all programs and remove all that is pinned; traffic to Services is not served any more
#[derive(Debug, Args)]
pub(super) struct CleanupArgs {
    /// Directory on a BPF file system where the agent pins
    #[arg(long, value_name = "DIR", default_value = DEFAULT_PIN_DIRECTORY)]
    pin_dir: PinDirectory,

    /// Remove what kube-proxy left instead: its nftables tables, the KUBE-* chains of iptables, its ipsets and kube-ipvs0. An
    /// agent may run. Connections that kube-proxy made go on
    #[arg(long)]
    kube_proxy: bool,

    /// Hand the node back instead: serve nothing new, so that kube-proxy's rules do, and let the connections there are go on.
    /// Without this option cleanup ends them
    #[arg(long, conflicts_with = "kube_proxy")]
    keep_connections: bool,
}

impl CleanupArgs {
    pub(super) fn run(self) -> Result<()> {
        if self.kube_proxy {
            remove_kube_proxy()
        } else if self.keep_connections {
            self.hand_back()
        } else {
            self.remove()
        }
    }

    fn remove(&self) -> Result<()> {
        let removed = cleanup::cleanup(&self.pin_dir)?;
        println!(
            "{}: removed {} tcx links, clsact filters of {} devices, {} tables",
            self.pin_dir.root().display(),
            removed.links,
            removed.filtered_devices,
            removed.tables
        );
        if kube_proxy::release()? {
            println!("removed the table that kept kube-proxy's connections");
        }
        Ok(())
    }

    fn hand_back(&self) -> Result<()> {
        let handed_back = cleanup::hand_back(&self.pin_dir, dataplane::now())?;
        println!(
            "{}: {} frontends are served no more, {} connections go on",
            self.pin_dir.root().display(),
            handed_back.frontends,
            handed_back.connections
        );
        if handed_back.connections > 0 {
            println!("`proxy-agent flows` lists them; once they have ended, `proxy-agent cleanup` removes the rest");
        }
        Ok(())
    }
}

fn remove_kube_proxy() -> Result<()> {
    let outcome = kube_proxy::remove()?;
    if outcome.removed.is_empty() {
        println!("nothing of kube-proxy is here");
    }
    for removed in &outcome.removed {
        println!("removed {removed}");
    }
    if outcome.is_kept {
        println!(
            "{} connections that conntrack translates go on: for them {} stays. An agent removes it when they have ended, as \
             does this command",
            outcome.connections,
            kube_proxy::KEEPER
        );
    }
    Ok(())
}
