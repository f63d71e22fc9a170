//! Classification, on nodes of every kind.

use std::collections::BTreeSet;

use super::*;

fn link(index: u32, name: &str, kind: LinkKind) -> Link {
    Link {
        index,
        name: name.to_owned(),
        kind,
        framing: Framing::Ethernet,
        up: true,
        master: None,
        peer_elsewhere: false,
    }
}

/// A device without Ethernet headers.
fn bare(index: u32, name: &str, kind: LinkKind) -> Link {
    Link {
        framing: Framing::Bare,
        ..link(index, name, kind)
    }
}

fn pair(index: u32, name: &str) -> Link {
    Link {
        peer_elsewhere: true,
        ..link(index, name, LinkKind::Pair)
    }
}

fn port(master: u32, link: Link) -> Link {
    Link {
        master: Some(master),
        ..link
    }
}

fn address(index: u32, text: &str) -> LinkAddress {
    let network: ipnet::IpNet = text.parse().expect("an address with prefix");
    LinkAddress {
        index,
        address: network.addr(),
        prefix: network.prefix_len(),
        global: true,
        preferred: true,
    }
}

fn network(links: Vec<Link>, addresses: &[(u32, &str)], default_routes: &[u32]) -> Network {
    let addresses = addresses.iter().map(|(index, text)| address(*index, text));
    Network {
        links,
        addresses: addresses.collect(),
        default_routes: default_routes.iter().copied().collect(),
        ..Network::default()
    }
}

fn node_at(addresses: &[&str]) -> EdgePolicy {
    EdgePolicy {
        node_addresses: addresses.iter().map(|text| text.parse().expect("an address")).collect(),
        ..EdgePolicy::default()
    }
}

fn patterns(texts: &[&str]) -> Vec<glob::Pattern> {
    let pattern = |text: &&str| glob::Pattern::new(text).expect("a pattern");
    texts.iter().map(pattern).collect()
}

#[track_caller]
fn expect(network: &Network, policy: &EdgePolicy, expected: &[(&str, Class)]) {
    let expected: BTreeMap<_, _> = expected
        .iter()
        .map(|(name, class)| ((*name).to_owned(), *class))
        .collect();
    assert_eq!(classes(network, policy), expected);
    let edges: BTreeSet<_> = edges(network, policy).into_values().map(|edge| edge.name).collect();
    let expected = expected.into_iter().filter(|(_, class)| class.is_ok());
    assert_eq!(edges, expected.map(|(name, _)| name).collect());
}

const DEFAULT_ROUTE: Class = Ok((Role::Uplink, Why::DefaultRoute));
const NODE_ADDRESS: Class = Ok((Role::Uplink, Why::NodeAddress));
const ADDRESS: Class = Ok((Role::Uplink, Why::Address));
const POD: Class = Ok((Role::Pod, Why::Pair));
const TUNNEL: Class = Ok((Role::Overlay, Why::Tunnel));

/// A node with a network card, a pod bridge, pods on it, an overlay (flannel).
fn bridged() -> Network {
    network(
        vec![
            link(1, "lo", LinkKind::Loopback),
            link(2, "eth0", LinkKind::Other),
            link(3, "cni0", LinkKind::Bridge),
            port(3, pair(4, "veth1")),
            link(5, "flannel.1", LinkKind::Tunnel),
            link(6, "kube-ipvs0", LinkKind::Dummy),
            link(7, "local", LinkKind::Pair),
        ],
        &[
            (2, "192.0.2.10/24"),
            (2, "2001:db8::10/64"),
            (3, "10.244.1.1/24"),
            (5, "10.244.1.0/32"),
            (6, "10.96.0.1/32"),
        ],
        &[2],
    )
}

#[test]
fn a_node_with_a_pod_bridge_and_an_overlay() {
    let expected = [
        ("lo", Err(WhyNot::Internal)),
        ("eth0", DEFAULT_ROUTE),
        ("cni0", Err(WhyNot::Bridge)),
        ("veth1", POD),
        ("flannel.1", TUNNEL),
        ("kube-ipvs0", Err(WhyNot::Internal)),
        ("local", Err(WhyNot::PairHere)),
    ];
    expect(&bridged(), &EdgePolicy::default(), &expected);
}

/// A packet to a pod leaves through the bridge, with its address; IPv6 has none there, so the uplink's is taken
/// (behaviour.md 5.1).
#[test]
fn masquerade_address_is_that_of_the_bridge_else_of_the_uplink() {
    let edges = edges(&bridged(), &EdgePolicy::default());
    assert_eq!(edges[&4].masquerade_v4, Some([10, 244, 1, 1].into()));
    assert_eq!(edges[&4].masquerade_v6, "2001:db8::10".parse().ok());
    assert_eq!(edges[&2].masquerade_v4, Some([192, 0, 2, 10].into()));
}

/// behaviour.md 5.1: of several addresses that of the node, if the device holds it; else what the kernel would take.
#[test]
fn masquerade_address_is_what_the_kernel_would_take() {
    let links = vec![link(2, "eth0", LinkKind::Other), bare(3, "wg0", LinkKind::Tunnel)];
    let held = [
        (2, "2001:db8::dead/64"),
        (2, "192.0.2.10/24"),
        (2, "192.0.2.11/24"),
        (2, "2001:db8::10/64"),
        (3, "fe80::1/64"),
    ];
    let mut network = network(links, &held, &[2]);
    network.addresses[0].preferred = false;
    network.addresses[4].global = false;
    let of = |network: &Network, policy: &EdgePolicy, device: u32| {
        let edge = edges(network, policy).remove(&device).expect("an edge");
        let v4 = edge.masquerade_v4.map(|address| address.to_string());
        let v6 = edge.masquerade_v6.map(|address| address.to_string());
        (v4.unwrap_or_default(), v6.unwrap_or_default())
    };
    let (first, second) = ("192.0.2.10".to_owned(), "192.0.2.11".to_owned());
    let (temporary, permanent) = ("2001:db8::dead".to_owned(), "2001:db8::10".to_owned());
    for device in [2, 3] {
        let policy = EdgePolicy::default();
        assert_eq!(of(&network, &policy, device), (first.clone(), permanent.clone()));
        let policy = node_at(&["192.0.2.11", "2001:db8::dead"]);
        assert_eq!(of(&network, &policy, device), (second.clone(), temporary.clone()));
        // An address of the node that no device has, as a cloud's public one: nobody would bring the replies here.
        assert_eq!(of(&network, &node_at(&["203.0.113.1"]), device).0, first);
    }
    network.addresses[3].preferred = false;
    assert_eq!(of(&network, &EdgePolicy::default(), 2).1, temporary, "better than none");
}

/// kind: the node is a container, its uplink a veth like those of its pods.
#[test]
fn a_pair_with_the_default_route_is_the_uplink() {
    let held = [(3, "10.244.0.1/32"), (2, "172.18.0.2/16")];
    let network = network(vec![pair(2, "eth0"), pair(3, "veth1")], &held, &[2]);
    expect(
        &network,
        &EdgePolicy::default(),
        &[("eth0", DEFAULT_ROUTE), ("veth1", POD)],
    );
}

/// Nodes on one wire without a router; the pods' pairs have addresses, but alone in their networks.
#[test]
fn without_default_route_the_uplink_is_where_the_node_address_is() {
    let links = vec![pair(2, "veth1"), pair(3, "wire"), pair(4, "veth2")];
    let mut network = network(links, &[(2, "10.244.0.1/32"), (3, "192.0.2.1/24")], &[]);
    let guessed = Ok((Role::Uplink, Why::FirstAddress));
    expect(
        &network,
        &EdgePolicy::default(),
        &[("veth1", POD), ("wire", guessed), ("veth2", POD)],
    );
    let policy = node_at(&["192.0.2.1"]);
    network.addresses[1].prefix = 32;
    expect(
        &network,
        &policy,
        &[("veth1", POD), ("wire", NODE_ADDRESS), ("veth2", POD)],
    );
}

/// Some CNIs give the pods' pairs the node's own address.
#[test]
fn a_pods_pair_that_borrows_the_node_address_is_no_uplink() {
    let held = [(2, "192.0.2.1/24"), (3, "192.0.2.1/32")];
    let network = network(vec![link(2, "eth0", LinkKind::Other), pair(3, "veth1")], &held, &[]);
    expect(
        &network,
        &node_at(&["192.0.2.1"]),
        &[("eth0", NODE_ADDRESS), ("veth1", POD)],
    );
}

/// Clients come in by the second network card, too, though no default route leads there; the third is not in use.
#[test]
fn every_network_card_with_an_address_is_an_uplink() {
    let cards = (2..6).map(|index| link(index, &format!("eth{}", index - 2), LinkKind::Other));
    let held = [(2, "192.0.2.1/24"), (3, "198.51.100.1/24"), (4, "fe80::1/64")];
    let mut network = network(cards.collect(), &held, &[2, 5]);
    network.addresses[2].global = false;
    let expected = [
        ("eth0", DEFAULT_ROUTE),
        ("eth1", ADDRESS),
        ("eth2", Err(WhyNot::NoAddress)),
        // One hop of several of a default route, without an address (unnumbered).
        ("eth3", DEFAULT_ROUTE),
    ];
    expect(&network, &EdgePolicy::default(), &expected);
}

/// A VLAN on a bond of two cards: the hooks are where the addresses are.
#[test]
fn of_a_bond_with_a_vlan_what_has_addresses_is_an_uplink() {
    let links = vec![
        port(4, link(2, "eth0", LinkKind::Other)),
        port(4, link(3, "eth1", LinkKind::Other)),
        link(4, "bond0", LinkKind::Bond),
        link(5, "bond0.7", LinkKind::Other),
    ];
    let held = [(5, "192.0.2.1/24")];
    let mut network = network(links, &held, &[5]);
    let mut expected = [
        ("eth0", Err(WhyNot::BondPort)),
        ("eth1", Err(WhyNot::BondPort)),
        ("bond0", Err(WhyNot::NoAddress)),
        ("bond0.7", DEFAULT_ROUTE),
    ];
    expect(&network, &EdgePolicy::default(), &expected);
    network.addresses.push(address(4, "198.51.100.1/24"));
    expected[2].1 = ADDRESS;
    expect(&network, &EdgePolicy::default(), &expected);
}

/// The node's network card is a port of a bridge that has its address; virtual machines are beside it.
#[test]
fn a_bridge_with_the_node_address_is_the_uplink_and_its_ports_are_not() {
    let links = vec![
        port(3, link(2, "eth0", LinkKind::Other)),
        link(3, "br0", LinkKind::Bridge),
        port(3, link(4, "tap0", LinkKind::Tun)),
        pair(5, "veth1"),
    ];
    let network = network(links, &[(3, "192.0.2.1/24")], &[]);
    let expected = [
        ("eth0", Err(WhyNot::UplinkPort)),
        ("br0", NODE_ADDRESS),
        ("tap0", Err(WhyNot::UplinkPort)),
        ("veth1", POD),
    ];
    expect(&network, &node_at(&["192.0.2.1"]), &expected);
}

/// Pods of all nodes in one Ethernet: the pod bridge is connected by a card, or a tunnel.
#[test]
fn what_connects_a_pod_bridge_with_other_nodes_is_an_edge() {
    let links = vec![
        link(2, "eth0", LinkKind::Other),
        link(3, "cni0", LinkKind::Bridge),
        port(3, link(4, "eth1", LinkKind::Other)),
        port(3, link(5, "vxlan0", LinkKind::Tunnel)),
        port(3, pair(6, "veth1")),
        port(3, link(7, "tap0", LinkKind::Tun)),
    ];
    let network = network(links, &[(2, "192.0.2.1/24"), (3, "10.244.0.1/16")], &[2]);
    let expected = [
        ("eth0", DEFAULT_ROUTE),
        ("cni0", Err(WhyNot::Bridge)),
        ("eth1", Ok((Role::Uplink, Why::BridgePort))),
        ("vxlan0", Ok((Role::Overlay, Why::BridgePort))),
        ("veth1", POD),
        ("tap0", Ok((Role::Pod, Why::Tap))),
    ];
    expect(&network, &EdgePolicy::default(), &expected);
    let edges = edges(&network, &EdgePolicy::default());
    assert_eq!(edges[&4].masquerade_v4, Some([10, 244, 0, 1].into()), "the bridge's");
}

#[test]
fn tunnels_and_tun_devices_are_overlays_while_they_are_up() {
    let links = vec![
        link(2, "eth0", LinkKind::Other),
        bare(3, "tunl0", LinkKind::Tunnel),
        Link {
            up: false,
            ..bare(4, "sit0", LinkKind::Tunnel)
        },
        bare(5, "wg0", LinkKind::Tunnel),
        bare(6, "tun0", LinkKind::Tun),
        link(7, "vpn0", LinkKind::Tun),
        link(8, "cali1", LinkKind::Tun),
    ];
    let held = [(2, "192.0.2.1/24"), (3, "10.244.0.1/32"), (7, "10.8.0.1/24")];
    let network = network(links, &held, &[2]);
    let expected = [
        ("eth0", DEFAULT_ROUTE),
        ("tunl0", TUNNEL),
        ("sit0", Err(WhyNot::Down)),
        ("wg0", TUNNEL),
        ("tun0", Ok((Role::Overlay, Why::Tun))),
        ("vpn0", Ok((Role::Overlay, Why::Tun))),
        ("cali1", Ok((Role::Pod, Why::Tap))),
    ];
    expect(&network, &EdgePolicy::default(), &expected);
    let framing = |index: u32| edges(&network, &EdgePolicy::default())[&index].framing;
    assert_eq!((framing(3), framing(7)), (Framing::Bare, Framing::Ethernet));
}

#[test]
fn devices_that_programs_cannot_read_are_no_edges() {
    let ib0 = Link {
        framing: Framing::Unknown,
        ..link(2, "ib0", LinkKind::Other)
    };
    let network = network(vec![ib0], &[(2, "192.0.2.1/24")], &[2]);
    expect(&network, &EdgePolicy::default(), &[("ib0", Err(WhyNot::Framing))]);
}

#[test]
fn flags_overrule_what_devices_look_like() {
    let policy = EdgePolicy {
        ignored: patterns(&["docker*", "veth4"]),
        pods: patterns(&["pod*", "veth4"]),
        uplinks: patterns(&["veth1"]),
        overlays: patterns(&["mesh?"]),
        ..EdgePolicy::default()
    };
    let links = vec![
        link(2, "pod0", LinkKind::Other),
        pair(3, "veth1"),
        pair(4, "veth2"),
        link(5, "mesh0", LinkKind::Dummy),
        link(6, "docker0", LinkKind::Other),
        pair(7, "veth4"),
    ];
    let expected = [
        ("pod0", Ok((Role::Pod, Why::PodFlag))),
        ("veth1", Ok((Role::Uplink, Why::UplinkFlag))),
        ("veth2", POD),
        ("mesh0", Ok((Role::Overlay, Why::OverlayFlag))),
        ("docker0", Err(WhyNot::IgnoreFlag)),
        ("veth4", Err(WhyNot::IgnoreFlag)),
    ];
    expect(&network(links, &[], &[6]), &policy, &expected);
}

/// behaviour.md 5.8: what counts is the interface that kube-proxy sees, for a port that of its bridge.
#[test]
fn rule_5_8_local_traffic_goes_by_the_name_of_the_device_or_its_bridge() {
    let mut network = bridged();
    network.links.push(pair(8, "cali8"));
    let local = |wanted: InterfaceMatch| -> Vec<String> {
        let policy = EdgePolicy {
            local_traffic: Some(wanted),
            ..EdgePolicy::default()
        };
        let edges = edges(&network, &policy).into_values();
        let local = edges.filter(|edge| edge.device().flags & device_flags::LOCAL_TRAFFIC != 0);
        local.map(|edge| edge.name).collect()
    };
    assert_eq!(local(InterfaceMatch::Name("cni0".to_owned())), ["veth1"]);
    assert_eq!(local(InterfaceMatch::Name("cni".to_owned())), [""; 0]);
    assert_eq!(local(InterfaceMatch::Name("veth1".to_owned())), [""; 0]);
    assert_eq!(local(InterfaceMatch::Prefix("cali".to_owned())), ["cali8"]);
    assert_eq!(local(InterfaceMatch::Prefix("cni".to_owned())), ["veth1"]);
    let unasked = edges(&network, &EdgePolicy::default()).into_values();
    assert_eq!(unasked.filter(|edge| edge.local_traffic).count(), 0);
}

/// What `fib daddr type local` matches (behaviour.md 3.6, 3.7).
#[test]
fn rule_3_6_local_addresses_are_all_but_loopback_ones() {
    let held = [
        (1, "127.0.0.1/8"),
        (1, "::1/128"),
        (1, "203.0.113.9/32"),
        (2, "192.0.2.1/24"),
        (2, "fe80::2/64"),
    ];
    let mut network = network(vec![], &held, &[]);
    network.addresses[4].global = false;
    let expected = ["192.0.2.1", "203.0.113.9", "fe80::2"].map(|text| text.parse().expect("an address"));
    assert_eq!(network.local_addresses(), BTreeSet::from(expected));
}

/// A pod on macvlan shares the network card's network; others have devices, bridges or a switch between.
#[test]
fn pods_behind_an_uplink_are_told_of() {
    let links = vec![
        link(2, "eth0", LinkKind::Other),
        pair(3, "veth1"),
        link(4, "cni0", LinkKind::Bridge),
        link(5, "ovn-k8s-mp0", LinkKind::Switch),
        bare(6, "wg0", LinkKind::Tunnel),
    ];
    let network = network(links, &[(5, "10.244.1.2/24")], &[2]);
    let edges = edges(&network, &EdgePolicy::default());
    assert_eq!(edges[&5].role, Role::Uplink);
    let ways = (2..=6).map(|index: u8| (IpAddr::from([10, 244, 1, 10 + index]), u32::from(index)));
    let problems = unserved(&network, &edges, &ways.collect());
    let [problem] = &problems[..] else {
        panic!("{problems:?}")
    };
    let text = problem.to_string();
    assert!(
        text.starts_with("pod 10.244.1.12: ") && text.contains("the uplink eth0"),
        "{text}"
    );
}

/// `status` must find what the agent wrote.
#[test]
fn reasons_and_roles_survive_the_table() {
    for number in 1..=12 {
        let why = Why::from_number(number).expect("a reason");
        assert_eq!(why.number(), number);
    }
    assert_eq!((Why::from_number(0), Why::from_number(13)), (None, None));
    for role in [Role::Pod, Role::Uplink, Role::Overlay] {
        assert_eq!(Role::from_number(role.number()), Some(role));
    }
}
