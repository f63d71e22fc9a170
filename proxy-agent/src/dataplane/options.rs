//! How the dataplane is to be set up.

use std::{collections::BTreeMap, time::Duration};

use proxy_common::layout::Timeouts;

use super::{
    LogLevel, Method, cgroup,
    observer::{self, SharedObserver},
    pin::PinDirectory,
    xdp,
};

/// How the dataplane is to be set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to pin
    pub pin: PinDirectory,
    /// How to attach
    pub attach: Method,
    /// Which uplinks get XDP, and how
    pub xdp: xdp::Policy,
    /// Whose sockets are served, and where
    pub sockets: cgroup::Policy,
    /// Number of entries of tables, by name, where it isn't the usual one ([`super::sizes`])
    pub table_sizes: BTreeMap<String, u32>,
    /// Flow timeouts
    pub timeouts: Timeouts,
    /// How often flows are looked through for those whose time is over
    pub collect_interval: Duration,
    /// What the programs log; anything but off needs a tokio runtime
    pub log: LogLevel,
    /// Whether traffic is counted by endpoint, too, which each packet pays for
    pub count_endpoints: bool,
    /// Who is told of what is done
    pub observer: SharedObserver,
}

impl Options {
    /// What is usual, pinned at `pin`.
    pub fn new(pin: PinDirectory) -> Self {
        Self {
            pin,
            attach: Method::default(),
            xdp: xdp::Policy::default(),
            sockets: cgroup::Policy::default(),
            table_sizes: BTreeMap::new(),
            timeouts: Timeouts::DEFAULT,
            collect_interval: Duration::from_secs(10),
            log: LogLevel::Off,
            count_endpoints: false,
            observer: observer::nobody(),
        }
    }
}
