//! Which flows and events a reader wants to see.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use clap::Args;
use ipnet::IpNet;

use super::services::is_named;

/// The flags that say which; what all that are given mean is wanted.
#[derive(Debug, Args)]
pub(super) struct FilterArgs {
    /// Only those of the Service of this name (`name` or `namespace/name`)
    #[arg(long, value_name = "SERVICE")]
    service: Option<String>,

    /// Only those of clients with this address, ADDR:PORT or CIDR
    #[arg(long, value_name = "ADDR")]
    client: Option<Wanted>,

    /// Only those served by backends with this address, ADDR:PORT or CIDR
    #[arg(long, value_name = "ADDR")]
    backend: Option<Wanted>,
}

impl FilterArgs {
    /// Whether somebody wants to see what is of this service port, as `namespace/name:port_name`, client and backend. What has
    /// none of one of these is not wanted where that is asked for.
    pub(super) fn wants(&self, port: Option<&str>, client: Option<SocketAddr>, backend: Option<SocketAddr>) -> bool {
        let means = |wanted: Option<Wanted>, address: Option<SocketAddr>| {
            wanted.is_none_or(|wanted| address.is_some_and(|address| wanted.means(address.ip(), address.port())))
        };
        let service = self.service.as_deref();
        service.is_none_or(|wanted| is_of_service(wanted, port))
            && means(self.client, client)
            && means(self.backend, backend)
    }
}

/// A range of addresses, one address, or one with its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// `10.244.0.0/16`, or `10.244.0.5`
    Range(IpNet),
    /// `10.244.0.5:8080`
    Exactly(SocketAddr),
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let range = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        range
            .map(Self::Range)
            .or_else(|_| text.parse().map(Self::Exactly))
            .map_err(|_| format!("{text:?} is no address, no ADDR:PORT ([ADDR]:PORT for IPv6) and no CIDR"))
    }
}

impl Wanted {
    /// Whether it means this address and port.
    fn means(&self, address: IpAddr, port: u16) -> bool {
        match self {
            Self::Range(range) => range.contains(&address),
            Self::Exactly(wanted) => *wanted == SocketAddr::new(address, port),
        }
    }
}

/// Whether a service port, as `namespace/name:port_name`, is of the Service that a flag names.
fn is_of_service(wanted: &str, port: Option<&str>) -> bool {
    let service = port.and_then(|port| port.rsplit_once(':')).map(|(service, _)| service);
    service
        .and_then(|service| service.split_once('/'))
        .is_some_and(|(namespace, service)| is_named(wanted, namespace, service))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_wanted_by_range_alone_or_with_a_port() {
        let means = |wanted: &str, address: &str, port| {
            let wanted: Wanted = wanted.parse().expect("understood");
            wanted.means(address.parse().expect("an address"), port)
        };
        assert!(means("10.244.0.0/16", "10.244.3.4", 1) && !means("10.244.0.0/16", "10.245.3.4", 1));
        assert!(means("10.244.3.4", "10.244.3.4", 1) && !means("10.244.3.4", "10.244.3.5", 1));
        assert!(means("10.244.3.4:80", "10.244.3.4", 80) && !means("10.244.3.4:80", "10.244.3.4", 81));
        assert!(means("fd00::/8", "fd00::1", 1) && means("[fd00::1]:80", "fd00::1", 80));
        assert!("web".parse::<Wanted>().expect_err("a name").contains("CIDR"));
    }

    #[test]
    fn service_ports_are_wanted_by_their_service() {
        assert!(is_of_service("web", Some("default/web:http")) && is_of_service("default/web", Some("default/web:")));
        assert!(!is_of_service("web", Some("default/web-2:http")) && !is_of_service("web", None));
    }
}
