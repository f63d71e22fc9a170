//! Waiting for a live packet like the described one, and what the kernel did with it.

use std::{
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;

use super::{
    origin::Origin,
    packet::{End, FirstPacket},
};
use crate::{
    cli::watching::Watching,
    dataplane::{
        inspect::{EventRow, Place},
        kernel,
        pin::PinDirectory,
        watch::{self, RING_BYTES, Watch},
    },
};

/// What came of waiting.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Arrival {
    /// It opened a flow, or was refused
    Seen(Box<EventRow>),
    /// None came in time
    Nothing,
}

/// Waits until the first packet of a connection like this opens a flow or is refused, but no longer than `patience`.
///
/// # Errors
/// If nothing is pinned there, or there is no place for another one who watches.
pub(super) fn wait(pin: &PinDirectory, from: Origin, packet: &FirstPacket, patience: Duration) -> Result<Arrival> {
    let watch = Watch::open(pin, watch::bits(watch::reasons()), RING_BYTES)?;
    let mut watching = Watching::new(watch, kernel::open(pin)?)?;
    eprintln!("waiting for the packet, {} s at most", patience.as_secs_f64());
    let began = Instant::now();
    while let Some(left) = patience.checked_sub(began.elapsed()) {
        while let Some(row) = watching.next_row()? {
            if is_like(&row, from, packet) {
                return Ok(Arrival::Seen(Box::new(row)));
            }
        }
        let pause = left.min(watching.due_in());
        let mut events = [PollFd::new(watching.as_fd(), PollFlags::POLLIN)];
        poll(&mut events, PollTimeout::try_from(pause).unwrap_or(PollTimeout::ZERO))
            .context("cannot wait for events")?;
        watching.renew_when_due()?;
    }
    Ok(Arrival::Nothing)
}

/// Whether an event is of a packet like this. A socket may have neither address nor port yet.
fn is_like(row: &EventRow, from: Origin, packet: &FirstPacket) -> bool {
    let is_at = |end: End, place: Option<Place>| {
        place.is_some_and(|place| {
            place.address == end.address && (place.port == 0 || end.port.is_none_or(|port| port == place.port))
        })
    };
    (row.hook != "ingress") == (from == Origin::Host)
        && row.protocol == packet.protocol.of_services()
        && (is_at(packet.source, row.source) || row.hook == "socket" && row.source.is_none())
        && is_at(packet.destination, row.destination)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cli::trace::packet::PacketProtocol, dataplane::inspect::Happening, plan::Protocol};

    fn end(text: &str) -> End {
        text.parse().expect("an end")
    }

    fn place(text: &str) -> Place {
        let End { address, port } = end(text);
        Place {
            address,
            port: port.unwrap_or(0),
        }
    }

    fn row() -> EventRow {
        EventRow {
            time: String::new(),
            event: Happening::New,
            protocol: Some(Protocol::Tcp),
            source: Some(place("10.244.0.5:40000")),
            destination: Some(place("10.96.0.1:80")),
            backend: Some(place("10.244.1.7:8080")),
            service: None,
            hook: "ingress",
            device: None,
            bytes: 60,
            masqueraded: false,
            express: false,
            reason: String::new(),
            text: String::new(),
            unanswered: None,
        }
    }

    #[test]
    fn a_packet_is_known_by_what_was_described() {
        let packet = |source: &str, destination: &str| FirstPacket {
            protocol: PacketProtocol::Tcp,
            source: end(source),
            destination: end(destination),
        };
        let is = |source, destination| is_like(&row(), Origin::Pod, &packet(source, destination));
        assert!(is("10.244.0.5", "10.96.0.1:80") && is("10.244.0.5:40000", "10.96.0.1:80"));
        assert!(!is("10.244.0.5:40001", "10.96.0.1:80") && !is("10.244.0.6", "10.96.0.1:80"));
        assert!(!is("10.244.0.5", "10.96.0.1:81") && !is("10.244.0.5", "10.96.0.2:80"));
        let described = packet("10.244.0.5", "10.96.0.1:80");
        assert!(!is_like(&row(), Origin::Host, &described));
        let udp = EventRow {
            protocol: Some(Protocol::Udp),
            ..row()
        };
        assert!(!is_like(&udp, Origin::Pod, &described));
        let socket = EventRow {
            hook: "socket",
            source: None,
            ..row()
        };
        assert!(is_like(&socket, Origin::Host, &described) && !is_like(&socket, Origin::Pod, &described));
        let bound = EventRow {
            source: Some(place("10.244.0.6")),
            ..socket
        };
        assert!(!is_like(&bound, Origin::Host, &described));
    }

    #[test]
    fn what_came_of_it_is_an_event_or_null() {
        let seen = serde_json::to_value(Arrival::Seen(Box::new(row()))).expect("plain");
        assert_eq!(seen["source"], "10.244.0.5:40000");
        assert!(serde_json::to_value(Arrival::Nothing).expect("plain").is_null());
    }
}
