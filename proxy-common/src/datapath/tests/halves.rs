//! The formula of twins, and a flow's state by its halves.

use proptest::prelude::*;

use super::{segment::TestFamily, world::TIMEOUTS};
use crate::{
    datapath::flow::{State, is_expired, same_rewrite, twin_key, twin_value},
    layout::{EGRESS, FlowKey, FlowValue, INGRESS, flow_flags, history},
    packet::{SCTP, TCP, UDP, V4, V6},
};

/// Any half of a flow.
fn half<F: TestFamily>() -> impl Strategy<Value = (FlowKey<F::Address>, FlowValue<F::Address>)> {
    let endpoint = || any::<(u128, u16)>().prop_map(|(address, port)| (F::address(address), port));
    let key = (
        prop_oneof![Just(INGRESS), Just(EGRESS)],
        any::<u8>(),
        endpoint(),
        endpoint(),
    )
        .prop_map(|(direction, protocol, source, destination)| FlowKey::new(direction, protocol, source, destination));
    // Whether it carries replies, and whether it masquerades: the flags that both halves know of.
    let flags = (0..4_u8).prop_map(|flags| flags & (flow_flags::REPLY | flow_flags::MASQUERADE));
    (key, endpoint(), any::<(u16, u32, u32)>(), flags).prop_map(
        |(key, (address, port), (other_port, service, last_seen), flags)| {
            let old = if key.direction == INGRESS {
                &key.destination
            } else {
                &key.source
            };
            let value = FlowValue {
                address,
                port,
                other_port,
                service,
                last_seen,
                address_difference: F::difference(old, &address),
                history: 0,
                flags,
            };
            (key, value)
        },
    )
}

/// Fails unless the twin of a half's twin is the half.
fn assert_involution<F: TestFamily>(key: &FlowKey<F::Address>, value: &FlowValue<F::Address>) {
    let twin = (twin_key(key, value), twin_value(key, value));
    assert_eq!(twin_key(&twin.0, &twin.1), *key);
    assert_eq!(twin_value(&twin.0, &twin.1), *value);
    assert_ne!(twin.0.direction, key.direction);
    assert_ne!(twin.1.flags & flow_flags::REPLY, value.flags & flow_flags::REPLY);
    let old = if twin.0.direction == INGRESS {
        twin.0.destination
    } else {
        twin.0.source
    };
    assert_eq!(twin.1.address_difference, F::difference(&old, &twin.1.address));
}

proptest! {
    #[test]
    fn twin_of_twin_is_the_half_ipv4((key, value) in half::<V4>()) {
        assert_involution::<V4>(&key, &value);
    }

    #[test]
    fn twin_of_twin_is_the_half_ipv6((key, value) in half::<V6>()) {
        assert_involution::<V6>(&key, &value);
    }
}

#[test]
fn rewrites_differ_in_address_or_ports() {
    let value = FlowValue::<[u8; 4]>::default();
    assert!(same_rewrite(
        &value,
        &FlowValue {
            last_seen: 1,
            history: 1,
            flags: 1,
            service: 1,
            ..value
        }
    ));
    assert!(!same_rewrite(
        &value,
        &FlowValue {
            address: [1; 4],
            ..value
        }
    ));
    assert!(!same_rewrite(&value, &FlowValue { port: 1, ..value }));
    assert!(!same_rewrite(&value, &FlowValue { other_port: 1, ..value }));
}

/// Every state by what the halves saw, whichever of them is asked.
#[test]
fn state_follows_from_both_histories() {
    use history::{CONFIRMED, FIN, LASTING, RST, SEEN};
    for (protocol, forward, reply, state, timeout) in [
        (TCP, SEEN, 0, State::Opening, TIMEOUTS.tcp_opening),
        (TCP, SEEN | CONFIRMED, 0, State::Opening, TIMEOUTS.tcp_opening),
        (TCP, SEEN, SEEN | CONFIRMED, State::Answered, TIMEOUTS.tcp_answered),
        (
            TCP,
            SEEN | LASTING,
            SEEN | LASTING,
            State::Answered,
            TIMEOUTS.tcp_answered,
        ),
        (
            TCP,
            SEEN | CONFIRMED,
            SEEN,
            State::Established,
            TIMEOUTS.tcp_established,
        ),
        (
            TCP,
            SEEN | CONFIRMED | FIN,
            SEEN,
            State::HalfClosed,
            TIMEOUTS.tcp_half_closed,
        ),
        (
            TCP,
            SEEN | CONFIRMED,
            SEEN | FIN,
            State::HalfClosed,
            TIMEOUTS.tcp_half_closed,
        ),
        (TCP, SEEN | FIN, SEEN | FIN, State::Closing, TIMEOUTS.tcp_closing),
        (TCP, SEEN | RST, 0, State::Closing, TIMEOUTS.tcp_closing),
        (TCP, SEEN, SEEN | RST, State::Closing, TIMEOUTS.tcp_closing),
        (SCTP, SEEN, 0, State::Opening, TIMEOUTS.sctp_opening),
        (SCTP, SEEN, SEEN, State::Answered, TIMEOUTS.sctp_opening),
        (
            SCTP,
            SEEN | CONFIRMED,
            SEEN,
            State::Established,
            TIMEOUTS.sctp_established,
        ),
        (
            SCTP,
            SEEN | CONFIRMED,
            SEEN | FIN,
            State::HalfClosed,
            TIMEOUTS.sctp_established,
        ),
        (SCTP, SEEN, SEEN | RST, State::Closing, TIMEOUTS.sctp_closing),
        (UDP, SEEN, 0, State::Opening, TIMEOUTS.udp_opening),
        (UDP, SEEN | LASTING, 0, State::Opening, TIMEOUTS.udp_opening),
        (
            UDP,
            SEEN | CONFIRMED,
            SEEN | CONFIRMED,
            State::Answered,
            TIMEOUTS.udp_opening,
        ),
        (UDP, SEEN | LASTING, SEEN, State::Established, TIMEOUTS.udp_established),
        (UDP, SEEN, SEEN | LASTING, State::Established, TIMEOUTS.udp_established),
        (
            UDP,
            SEEN | RST | FIN,
            SEEN | FIN | LASTING,
            State::Established,
            TIMEOUTS.udp_established,
        ),
    ] {
        let forward = FlowValue::<[u8; 4]> {
            history: forward,
            last_seen: 7,
            ..FlowValue::default()
        };
        let reply = FlowValue {
            history: reply,
            flags: flow_flags::REPLY,
            last_seen: 5,
            ..FlowValue::default()
        };
        for (half, twin) in [(&forward, &reply), (&reply, &forward)] {
            assert_eq!(State::of(protocol, half, Some(twin)), state, "{half:?} {twin:?}");
            assert_eq!(state.timeout(protocol, &TIMEOUTS), timeout);
            assert!(
                !is_expired(protocol, half, Some(twin), 7 + timeout, &TIMEOUTS),
                "the later packet counts"
            );
            assert!(is_expired(protocol, half, Some(twin), 8 + timeout, &TIMEOUTS));
            assert!(
                !is_expired(protocol, half, Some(twin), 0, &TIMEOUTS),
                "the clock seems to go back"
            );
        }
    }
}

/// A half that lost its twin is judged alone: it can't be seen to be closed by both sides.
#[test]
fn lone_half_is_judged_by_itself() {
    let lone = |history, flags| FlowValue::<[u8; 4]> {
        history,
        flags,
        ..FlowValue::default()
    };
    let state = |history, flags| State::of(TCP, &lone(history, flags), None);
    assert_eq!(state(history::SEEN, 0), State::Opening);
    assert_eq!(state(history::SEEN, flow_flags::REPLY), State::Established);
    assert_eq!(
        state(history::SEEN | history::FIN, flow_flags::REPLY),
        State::HalfClosed
    );
    assert_eq!(state(history::SEEN | history::RST, 0), State::Closing);
}
