//! Devices of every kind that this kernel has.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    time::Duration,
};

use aya::programs::TcAttachType;
use nix::{
    ifaddrs::getifaddrs,
    sched::{CloneFlags, setns},
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, sendto, socket},
};
use proxy_agent::dataplane::{
    self, collect,
    edge::{Class, EdgePolicy, Network, Role, Why, WhyNot, classes},
    kernel,
    network::NetworkWatch,
};
use proxy_common::{
    datapath::Reason,
    layout::{EGRESS, FlowKey, FlowValue, filter_bit, flow_flags},
    packet::{TCP, UDP},
};
use proxy_tests::fixtures::Packet;

use super::{
    plan,
    sandbox::{attached, ip, look, runtime, wait_for},
};

fn network() -> Network {
    runtime().block_on(async {
        let mut watch = NetworkWatch::open().expect("netlink");
        watch.network().await.expect("the network")
    })
}

/// The classifier on devices that the kernel made: what netlink tells of each is read as it should be.
#[test]
fn real_devices_are_classified() {
    let sandbox = sandbox!();
    sandbox.add_pod("eth0");
    sandbox.add_pod("veth1");
    sandbox.add_pod("veth2");
    sandbox.add_pod("hop1");
    sandbox.add_pod("hop2");
    for command in [
        "addr add 192.0.2.1/24 dev eth0",
        "link add cni0 type bridge",
        "link set veth1 master cni0",
        "link add vxlan0 type vxlan id 7 dev eth0 dstport 4789",
        "link set vxlan0 up",
        "link add vxlan1 type vxlan id 8 dev eth0 dstport 4789",
        "link add ifb0 type ifb",
        "tuntap add tun0 mode tun",
        "link set tun0 up",
        "tuntap add tap0 mode tap",
        "link set tap0 up",
        "link add one type veth peer name other",
        "route add default nexthop via inet6 fe80::1 dev hop1 nexthop via inet6 fe80::1 dev hop2",
    ] {
        ip(command);
    }
    let policy = EdgePolicy {
        node_addresses: vec!["192.0.2.1".parse().expect("an address")],
        ..EdgePolicy::default()
    };
    let pod = Ok((Role::Pod, Why::Pair));
    let default_route = Ok((Role::Uplink, Why::DefaultRoute));
    let expected: [(&str, Class); 14] = [
        ("lo", Err(WhyNot::Internal)),
        ("eth0", Ok((Role::Uplink, Why::NodeAddress))),
        ("hop1", default_route),
        ("hop2", default_route),
        ("veth1", pod),
        ("veth2", pod),
        ("cni0", Err(WhyNot::Bridge)),
        ("vxlan0", Ok((Role::Overlay, Why::Tunnel))),
        ("vxlan1", Err(WhyNot::Down)),
        ("ifb0", Err(WhyNot::Internal)),
        ("tun0", Ok((Role::Overlay, Why::Tun))),
        ("tap0", Ok((Role::Pod, Why::Tap))),
        ("one", Err(WhyNot::PairHere)),
        ("other", Err(WhyNot::PairHere)),
    ];
    let expected: BTreeMap<_, _> = expected.map(|(name, class)| (name.to_owned(), class)).into();
    assert_eq!(classes(&network(), &policy), expected);
}

/// A device that hands over packets without an Ethernet header has the programs for such: one that expects a header
/// would not find the flow.
#[test]
fn a_tun_device_is_served_by_programs_for_bare_packets() {
    let sandbox = sandbox!();
    for command in [
        "tuntap add tun0 mode tun",
        "addr add 10.8.0.1/24 dev tun0",
        "link set tun0 up",
    ] {
        ip(command);
    }
    let mut dataplane = sandbox.open().expect("a dataplane");
    dataplane.set_edges(&look(), dataplane::now());
    assert_eq!(dataplane.problems(), []);
    for hook in [TcAttachType::Ingress, TcAttachType::Egress] {
        assert_eq!(attached("tun0", hook).len(), 1);
    }
    let mut tables = kernel::open(&sandbox.pin()).expect("tables");
    let key = FlowKey::new(EGRESS, UDP, ([10, 8, 0, 1], 8080), ([10, 8, 0, 2], 40_000));
    let reply = FlowValue {
        address: [10, 96, 0, 1],
        port: 80,
        last_seen: collect::tick(dataplane::now()),
        flags: flow_flags::REPLY,
        ..FlowValue::default()
    };
    tables.v4.flows.insert(&key, &reply).expect("room");
    let (word, bit) = filter_bit(&[10, 8, 0, 1]);
    tables.backend_filter.insert(&word, &bit).expect("an array");
    let socket = UdpSocket::bind("10.8.0.1:8080").expect("a socket");
    let counted = |reason: Reason| {
        let counter = tables.reason_counts.get(&(reason as u32)).expect("readable");
        counter.unwrap_or_default().packets
    };
    wait_for("a packet to be rewritten", || {
        socket.send_to(b"answer", "10.8.0.2:40000").expect("sent");
        counted(Reason::Established) > 0
    });
    assert_eq!(counted(Reason::Malformed), 0);
}

/// What carries a VLAN tag is left to the VLAN's own device; tag number 0 is only a priority.
#[test]
fn packets_of_a_vlan_pass_the_parent_untouched() {
    let sandbox = sandbox!();
    sandbox.add_pod("pod1");
    let mut dataplane = sandbox.open().expect("a dataplane");
    dataplane.set_edges(&look(), dataplane::now());
    dataplane.replace(plan(), dataplane::now());
    let frame = |port: u16| {
        let client = SocketAddr::new(IpAddr::from([10, 244, 0, 9]), port);
        Packet::first(TCP, client, "10.96.0.1:80".parse().expect("a frontend")).frame()
    };
    let tagged = |port: u16, tag: u16| {
        let mut frame = frame(port);
        let [high, low] = tag.to_be_bytes();
        frame.splice(12..12, [0x81, 0x00, high, low]);
        frame
    };
    let frames = [tagged(1, 5), tagged(2, 0xe005), tagged(3, 0xe000), frame(4)];
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            setns(&sandbox.pod, CloneFlags::CLONE_NEWNET).expect("the pod's namespace");
            ip("link set p-pod1 up");
            let device = getifaddrs()
                .expect("devices")
                .find(|entry| entry.interface_name == "p-pod1")
                .and_then(|entry| entry.address?.as_link_addr().copied())
                .expect("its link-layer address");
            let raw = socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), None).expect("a raw socket");
            for frame in &frames {
                sendto(raw.as_raw_fd(), frame, &device, MsgFlags::empty()).expect("sent");
            }
        });
        sender.join().expect("the sender");
    });
    let tables = kernel::open(&sandbox.pin()).expect("tables");
    let clients = || {
        let flows = tables.v4.flows.entries().expect("flows").into_iter();
        let forward = flows.filter(|(key, _)| key.direction != EGRESS);
        let mut ports: Vec<_> = forward.map(|(key, _)| key.source_port).collect();
        ports.sort_unstable();
        ports
    };
    // Frames arrive in order: the last is not of a VLAN.
    wait_for("the last frame", || clients().contains(&4));
    assert_eq!(clients(), [3, 4]);
}

/// Addresses come and go without a device's changing, of either family.
#[test]
fn addresses_are_noticed_at_once() {
    let sandbox = sandbox!();
    sandbox.add_pod("eth0");
    runtime().block_on(async {
        let mut watch = NetworkWatch::open().expect("netlink");
        for (text, suffix) in [("192.0.2.7", "/24"), ("2001:db8::7", "/64 nodad")] {
            let address: IpAddr = text.parse().expect("an address");
            for (verb, there) in [("add", true), ("del", false)] {
                ip(&format!("addr {verb} dev eth0 {text}{suffix}"));
                loop {
                    let changed = tokio::time::timeout(Duration::from_secs(5), watch.changed()).await;
                    changed.expect("an event in time").expect("an event");
                    let network = watch.network().await.expect("the network");
                    if network.local_addresses().contains(&address) == there {
                        break;
                    }
                }
            }
        }
        assert!(
            !watch
                .network()
                .await
                .expect("the network")
                .local_addresses()
                .contains(&IpAddr::from([127, 0, 0, 1]))
        );
    });
}
