//! Addresses as Kubernetes objects spell them (behaviour.md 1.6).

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use super::Family;

/// Reads an address "sloppily", as kube-proxy does: leading zeros in IPv4 octets are decimal (`010.0.0.1` is
/// `10.0.0.1`), and an IPv4-mapped IPv6 address is the IPv4 one.
///
/// # Errors
/// The reason, quoting the text.
pub fn parse_ip(text: &str) -> Result<IpAddr, String> {
    let strict = || text.parse::<IpAddr>().ok().map(|address| address.to_canonical());
    parse_ipv4(text)
        .map(IpAddr::V4)
        .or_else(strict)
        .ok_or_else(|| format!("{text:?} is no IP address"))
}

/// Reads an address range such as `10.0.0.0/8`, sloppily as [`parse_ip`] does; bits behind the prefix are cleared.
///
/// # Errors
/// The reason, quoting the text.
pub fn parse_range(text: &str) -> Result<IpNet, String> {
    let wrong = || format!("{text:?} is no address range such as 10.0.0.0/8 or fd00::/64");
    let (address, length) = text.trim().split_once('/').ok_or_else(wrong)?;
    let address = parse_ip(address).map_err(|_| wrong())?;
    let length = length.parse().map_err(|_| wrong())?;
    Ok(IpNet::new(address, length).map_err(|_| wrong())?.trunc())
}

/// Reads an endpoint's or a cluster's address of one family.
///
/// # Errors
/// The reason, quoting the text.
pub(super) fn parse_ip_of(family: Family, text: &str) -> Result<IpAddr, String> {
    let address = parse_ip(text)?;
    if Family::of(address) == family {
        Ok(address)
    } else {
        Err(format!("{text:?} is no {family} address"))
    }
}

fn parse_ipv4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        // `u8::from_str` takes a sign, an address has none.
        if !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        *octet = part.parse().ok()?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_1_6_leading_zeros_are_decimal() {
        assert_eq!(parse_ip("010.0.00.001").unwrap().to_string(), "10.0.0.1");
        assert_eq!(parse_ip("::ffff:10.0.0.1").unwrap().to_string(), "10.0.0.1");
        assert_eq!(parse_ip("fd00:0::01").unwrap().to_string(), "fd00::1");
        assert_eq!(parse_range(" 010.1.2.3/8 ").unwrap().to_string(), "10.0.0.0/8");
        assert_eq!(parse_range("fd00::1/64").unwrap().to_string(), "fd00::/64");
    }

    #[test]
    fn what_is_no_address_is_quoted() {
        for text in [
            "",
            "10.0.0",
            "10.0.0.0.1",
            "10.0.0.256",
            "+1.0.0.1",
            "10.0.0.1/8",
            "fd00::g",
            "1..2.3",
        ] {
            assert_eq!(parse_ip(text), Err(format!("{text:?} is no IP address")));
        }
        for text in ["10.0.0.0", "10.0.0.0/33", "fd00::/129", "/8", "10.0.0.0/+8x"] {
            assert!(
                parse_range(text).unwrap_err().starts_with(&format!("{text:?}")),
                "{text}"
            );
        }
    }

    #[test]
    fn the_family_must_fit() {
        assert!(parse_ip_of(Family::V6, "fd00::1").is_ok());
        assert_eq!(
            parse_ip_of(Family::V6, "10.0.0.1"),
            Err("\"10.0.0.1\" is no IPv6 address".into())
        );
    }
}
