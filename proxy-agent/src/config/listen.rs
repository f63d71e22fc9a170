//! Addresses that the agent listens at, as kube-proxy's flags and fields write them (behaviour.md 8.9).

use std::net::{IpAddr, SocketAddr};

/// Port of the metrics server, unless it is said (behaviour.md 8.7).
pub(super) const METRICS_PORT: u16 = 10249;
/// Port of the proxy's health, unless it is said (behaviour.md 8.4).
pub(super) const HEALTHZ_PORT: u16 = 10256;

/// Reads `address:port`, or an address alone, which gets the default port. IPv6 with a port is written `[address]:port`.
///
/// # Errors
/// It is neither; says so.
pub(super) fn parse_listen_address(text: &str, default_port: u16) -> Result<SocketAddr, String> {
    let text = text.trim();
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    bare.unwrap_or(text)
        .parse::<IpAddr>()
        .map(|address| SocketAddr::new(address, default_port))
        .map_err(|_| {
            format!("{text:?} is no address to listen at: ADDRESS:PORT and ADDRESS are, IPv6 as [ADDRESS]:PORT")
        })
}

/// [`parse_listen_address`] for the metrics server.
///
/// # Errors
/// Those of [`parse_listen_address`].
pub fn parse_metrics_address(text: &str) -> Result<SocketAddr, String> {
    parse_listen_address(text, METRICS_PORT)
}

/// [`parse_listen_address`] for the proxy's health.
///
/// # Errors
/// Those of [`parse_listen_address`].
pub fn parse_healthz_address(text: &str) -> Result<SocketAddr, String> {
    parse_listen_address(text, HEALTHZ_PORT)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// behaviour.md 8.9: the port is appended if it is missing.
    #[test]
    fn rule_8_9_a_missing_port_is_the_default_one() {
        for (text, expected) in [
            ("127.0.0.1", "127.0.0.1:10249"),
            ("127.0.0.1:9", "127.0.0.1:9"),
            ("::1", "[::1]:10249"),
            ("[::1]", "[::1]:10249"),
            ("[::]:9", "[::]:9"),
            (" 0.0.0.0:0 ", "0.0.0.0:0"),
        ] {
            assert_eq!(parse_metrics_address(text), Ok(expected.parse().unwrap()), "{text}");
        }
        for text in [
            "",
            "localhost",
            "localhost:9",
            ":9",
            "127.0.0.1:",
            "127.0.0.1:65536",
            "[::1",
            "1.2.3.4:x",
        ] {
            let error = parse_metrics_address(text).unwrap_err();
            assert!(
                error.starts_with(&format!("{text:?} is no address to listen at")),
                "{error}"
            );
        }
    }
}
