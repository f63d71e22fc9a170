//! What the datapath tells those who watch, in the words of people.

use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::{Duration, SystemTime},
};

use k8s_openapi::jiff::Timestamp;
use proxy_common::{
    datapath::{Reason, Verdict},
    layout::{AT_SOCKET, Event, INGRESS, flow_flags},
};
use serde::{Serialize, Serializer};

use super::names;
use crate::{
    dataplane::{
        edge,
        table::{TableError, Tables},
    },
    plan::{Protocol, ServicePort},
};

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Happening {
    /// A flow was opened
    New,
    /// A packet was refused, and its sender is to be told
    Reject,
    /// A packet was refused silently
    Drop,
}

impl Happening {
    /// What a reason stands for.
    pub fn of(reason: Reason) -> Self {
        match reason.verdict() {
            Verdict::Reject => Self::Reject,
            Verdict::Drop => Self::Drop,
            Verdict::Continue | Verdict::Rewrite | Verdict::Hold => Self::New,
        }
    }
}

/// An address, and a port where there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The address
    pub address: IpAddr,
    /// The port; 0 if there is none
    pub port: u16,
}

impl Place {
    /// `None` for the address that stands for none.
    fn of(address: [u8; 16], port: u16) -> Option<Self> {
        let address = Ipv6Addr::from(address);
        (!address.is_unspecified()).then(|| Self {
            address: address.to_canonical(),
            port,
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            0 => self.address.fmt(f),
            port => SocketAddr::new(self.address, port).fmt(f),
        }
    }
}

impl Serialize for Place {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// An event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EventRow {
    /// When, RFC 3339; some milliseconds coarse
    pub time: String,
    /// What happened
    pub event: Happening,
    /// Protocol; `None` for one without ports
    pub protocol: Option<Protocol>,
    /// Source of the packet; `None` of a socket that has none yet
    pub source: Option<Place>,
    /// Its destination as it came to the hook: the frontend, but for packets that are refused on their way to a backend
    pub destination: Option<Place>,
    /// The backend that a flow was opened to
    pub backend: Option<Place>,
    /// Service port as `namespace/name:port_name`; `None` if the packet is for none, or its name is lost
    pub service: Option<String>,
    /// `ingress`, `egress` or `socket`
    pub hook: &'static str,
    /// The edge
    pub device: Option<String>,
    /// Bytes from the network header on; 0 at a socket
    pub bytes: u32,
    /// The client is hidden from the backend
    pub masqueraded: bool,
    /// The flow is forwarded by XDP
    pub express: bool,
    /// The reason's name
    pub reason: String,
    /// What it means
    pub text: String,
    /// Why a packet that is rejected was not answered
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unanswered: Option<String>,
}

/// What it takes to tell events in words.
pub struct EventWords {
    /// The wall clock when `CLOCK_MONOTONIC` was zero
    origin: SystemTime,
    services: HashMap<u32, ServicePort>,
    devices: HashMap<u32, String>,
}

impl EventWords {
    /// By the names in the tables; `now` is the time since boot.
    ///
    /// # Errors
    /// If a table can't be read.
    pub fn read(tables: &Tables, now: Duration) -> Result<Self, TableError> {
        let mut devices = HashMap::new();
        tables.devices.scan(&mut |index, device| {
            devices.insert(index, edge::name_of(&device));
        })?;
        Ok(Self {
            origin: SystemTime::now() - now,
            services: names(tables)?,
            devices,
        })
    }

    /// Whether it knows the names that an event is told with: otherwise they are to be read anew.
    pub fn know(&self, event: &Event) -> bool {
        let service = event.service == proxy_common::layout::NO_SERVICE || self.services.contains_key(&event.service);
        service && (event.hook == AT_SOCKET || self.devices.contains_key(&event.device))
    }

    /// An event in words; `None` if its reason is not known to this build.
    pub fn tell(&self, event: &Event) -> Option<EventRow> {
        let reason = |number: u8| Reason::ALL.get(usize::from(number)).copied();
        let (reason, outcome) = (reason(event.reason)?, reason(event.outcome)?);
        let time = Timestamp::try_from(self.origin + Duration::from_nanos(event.nanoseconds)).ok()?;
        Some(EventRow {
            time: format!("{time:.3}"),
            event: Happening::of(reason),
            protocol: Protocol::from_number(event.protocol),
            source: Place::of(event.source, event.source_port),
            destination: Place::of(event.destination, event.destination_port),
            backend: Place::of(event.backend, event.backend_port),
            service: self.services.get(&event.service).map(ToString::to_string),
            hook: match event.hook {
                AT_SOCKET => "socket",
                INGRESS => "ingress",
                _ => "egress",
            },
            device: self
                .devices
                .get(&event.device)
                .filter(|_| event.hook != AT_SOCKET)
                .cloned(),
            bytes: event.length,
            masqueraded: event.flags & flow_flags::MASQUERADED != 0,
            express: event.flags & flow_flags::EXPRESS != 0,
            reason: format!("{reason:?}"),
            text: reason.to_string(),
            unanswered: (outcome != reason).then(|| outcome.to_string()),
        })
    }
}

#[cfg(test)]
mod tests {
    use proxy_common::layout::{AddressBytes as _, NO_SERVICE};

    use super::*;
    use crate::dataplane::{inspect::fixture::publish_web, memory::Memory};

    fn number(reason: Reason) -> u8 {
        u8::try_from(reason as u32).expect("small")
    }

    fn event(reason: Reason) -> Event {
        Event {
            nanoseconds: 3_000_000_000,
            source: [10, 244, 0, 5].mapped(),
            destination: [10, 96, 0, 1].mapped(),
            source_port: 40_000,
            destination_port: 80,
            protocol: 6,
            service: 3,
            device: 9,
            length: 60,
            reason: number(reason),
            outcome: number(reason),
            ..Event::default()
        }
    }

    fn words() -> EventWords {
        let memory = Memory::default();
        publish_web(&memory, 3);
        let mut words = EventWords::read(&memory.tables(), Duration::ZERO).expect("readable");
        words.origin = SystemTime::UNIX_EPOCH;
        words.devices.insert(9, "veth-a".to_owned());
        words
    }

    #[test]
    fn a_new_flow_is_told_with_its_backend() {
        let new = Event {
            backend: [10, 244, 1, 7].mapped(),
            backend_port: 8080,
            flags: flow_flags::MASQUERADED,
            ..event(Reason::NewFlow)
        };
        let row = words().tell(&new).expect("a known reason");
        let json = serde_json::to_value(&row).expect("plain");
        let expected = serde_json::json!({
            "time": "1970-01-01T00:00:03.000Z",
            "event": "new",
            "protocol": "TCP",
            "source": "10.244.0.5:40000",
            "destination": "10.96.0.1:80",
            "backend": "10.244.1.7:8080",
            "service": "default/web:http",
            "hook": "ingress",
            "device": "veth-a",
            "bytes": 60,
            "masqueraded": true,
            "express": false,
            "reason": "NewFlow",
            "text": Reason::NewFlow.to_string(),
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn a_reject_without_an_answer_says_why() {
        let limited = Event {
            outcome: number(Reason::AnswerLimited),
            ..event(Reason::NoEndpoints)
        };
        let row = words().tell(&limited).expect("a known reason");
        assert_eq!((row.event, row.backend), (Happening::Reject, None));
        assert_eq!(row.unanswered, Some(Reason::AnswerLimited.to_string()));
        assert_eq!(Happening::of(Reason::SourceRefused), Happening::Drop);
    }

    #[test]
    fn what_is_not_there_is_not_told() {
        let ping = Event {
            source: [0; 16],
            source_port: 0,
            destination_port: 0,
            protocol: 0,
            service: NO_SERVICE,
            hook: AT_SOCKET,
            device: 0,
            ..event(Reason::NoPort)
        };
        let words = words();
        assert!(words.know(&ping) && !words.know(&Event { service: 4, ..ping }));
        let row = words.tell(&ping).expect("a known reason");
        assert_eq!(
            (row.source, row.protocol, row.service, row.device),
            (None, None, None, None)
        );
        assert_eq!(
            row.destination.map(|place| place.to_string()).as_deref(),
            Some("10.96.0.1")
        );
        let unknown = Event { reason: 200, ..ping };
        assert_eq!(words.tell(&unknown), None);
    }
}
