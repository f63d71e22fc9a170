//! What the datapath does with a packet, and how it comes to that.

use std::{
    fmt,
    hash::{BuildHasher as _, RandomState},
    net::SocketAddr,
};

use anyhow::{Context as _, Result};
use proxy_common::{
    datapath::{self, Choice, Outcome, Reason, Verdict, socket::Socket as _},
    layout::{FlowKey, LOCAL_LIST, ServiceKey, ServiceValue, SlotKey, Timeouts, flow_flags},
    packet::Family,
};
use serde::Serialize;

use super::{
    decisions::decisions,
    origin::Origin,
    packet::{FirstPacket, PacketProtocol},
    socket::TracedSocket,
};
use crate::{
    cli::listing::or_dash,
    dataplane::{
        self,
        address::Address,
        collect,
        inspect::ServiceRow,
        service_name,
        simulation::{Hook, Lookup, Simulation, Surroundings},
        table::{FamilyTables, Tables},
    },
    plan::Protocol,
};

/// What becomes of the packet.
#[derive(Debug, Serialize)]
pub(super) struct Explanation {
    /// `forward`, `reject`, `drop`, `pass` or `hold`
    pub(super) verdict: &'static str,
    /// Service port as `namespace/name:port_name`
    pub(super) service: Option<String>,
    /// Every endpoint that the choice could fall on
    pub(super) candidates: Vec<SocketAddr>,
    /// The one that it fell on
    pub(super) backend: Option<SocketAddr>,
    /// The client is hidden from it
    pub(super) masquerade: bool,
    /// Why
    pub(super) reason: String,
    /// What decided, in order
    pub(super) decisions: Vec<String>,
}

/// An explanation, and what it is about.
pub(super) struct Explained {
    pub(super) explanation: Explanation,
    /// Why
    pub(super) reason: Reason,
    /// Which of the rows is the frontend that the packet is for
    pub(super) frontend: Option<usize>,
}

/// Runs a packet through the datapath, on these tables; `rows` are the frontends in them. `seen` is the backend that it was sent
/// to if it came in fact: then it is explained how that one came to be drawn, if it can be still.
///
/// # Errors
/// If a table can't be read, or there is no such packet.
pub(super) fn explain<F: Family>(
    tables: &Tables,
    family: &FamilyTables<F::Address>,
    from: Origin,
    packet: &FirstPacket,
    rows: &[ServiceRow],
    seen: Option<SocketAddr>,
) -> Result<Explained>
where
    F::Address: Address,
{
    let by_chance = || {
        #[expect(clippy::cast_possible_truncation, reason = "some bits are as good as others")]
        let random = RandomState::new().hash_one(0) as u32;
        random
    };
    let run = |random: &dyn Fn() -> u32| run::<F>(tables, family, from, packet, rows, (random, seen.is_some()));
    let explained = run(&by_chance)?;
    if seen.is_none() || explained.explanation.backend == seen {
        return Ok(explained);
    }
    let count = u64::try_from(explained.explanation.candidates.len()).unwrap_or(u64::MAX);
    for index in 0..count {
        // What `datapath::scale` makes this index of.
        let draw = u32::try_from((index << 32).div_ceil(count)).unwrap_or(u32::MAX);
        let drawn = run(&|| draw)?;
        if drawn.explanation.backend == seen {
            return Ok(drawn);
        }
    }
    Ok(explained)
}

/// Runs it once, with these random numbers; as the first of its connection even if that is known, if it `opens` it.
fn run<F: Family>(
    tables: &Tables,
    family: &FamilyTables<F::Address>,
    from: Origin,
    packet: &FirstPacket,
    rows: &[ServiceRow],
    (random, opens): (&dyn Fn() -> u32, bool),
) -> Result<Explained>
where
    F::Address: Address,
{
    let (mut bytes, key) = (packet.bytes()?, packet.key::<F::Address>()?);
    let surroundings = Surroundings {
        now: collect::tick(dataplane::now()),
        device: from.device(tables)?,
        timeouts: Timeouts::DEFAULT,
        random,
    };
    let simulation = Simulation::<F>::new(tables, family);
    if opens {
        simulation.forget_flow(&key);
    }
    let mut service = ServiceValue::default();
    let socket = TracedSocket::of(&key).filter(|_| from == Origin::Host);
    let (found, decided) = if let Some(mut socket) = socket {
        let found = datapath::find_for_process(&simulation, &key, &mut service).is_ok();
        simulation.take_lookups();
        let decided = Decided::by_connecting(&simulation, &mut socket, &surroundings)?;
        let packet = Decided::by_packet(&simulation, &key, &mut bytes, &surroundings)?;
        // What the socket leaves alone, its packets meet.
        let left = decided.outcome.verdict == Verdict::Continue && packet.outcome.verdict == Verdict::Drop;
        (found, if left { packet } else { decided })
    } else {
        let found = datapath::find_frontend(&simulation, &key, &mut service).is_ok();
        simulation.take_lookups();
        (found, Decided::by_packet(&simulation, &key, &mut bytes, &surroundings)?)
    };
    let name = if found {
        Some(service_name(tables, service.service)?)
    } else {
        None
    };
    let reason = match (from, packet.protocol) {
        (Origin::Host, PacketProtocol::Sctp | PacketProtocol::Icmp) => format!(
            "{}; but the host's own packets of this protocol are not served",
            decided.outcome.reason
        ),
        _ => decided.outcome.reason.to_string(),
    };
    let mut choice = Choice::default();
    // Fails where a flow was known before, whose frontend is gone.
    let chosen = found && datapath::decide(&simulation, &surroundings, &key, &service, &mut choice).is_ok();
    let mut explanation = Explanation {
        verdict: "pass",
        service: name,
        candidates: Vec::new(),
        backend: None,
        masquerade: false,
        reason,
        decisions: decisions(&decided.lookups, &key, rows, chosen.then(|| policy(&choice))),
    };
    match decided.outcome.verdict {
        Verdict::Continue => explanation.service = None,
        Verdict::Reject => explanation.verdict = "reject",
        Verdict::Drop => explanation.verdict = "drop",
        Verdict::Hold => explanation.verdict = "hold",
        Verdict::Rewrite => {
            let (address, port) = decided.backend;
            explanation.verdict = "forward";
            if chosen {
                explanation.candidates = candidates(family, &choice)?;
            }
            explanation.backend = Some(SocketAddr::new(address.to_ip(), port));
            explanation.masquerade = decided.masquerade;
            let sees = if decided.masquerade { "does not see" } else { "sees" };
            explanation
                .decisions
                .push(format!("the endpoint {sees} the client's address"));
        }
    }
    Ok(Explained {
        explanation,
        reason: decided.outcome.reason,
        frontend: found.then(|| row_of(&decided.lookups, rows)).flatten(),
    })
}

/// The row of the frontend that was found: the last one that was looked up, as there is no need to go on.
fn row_of<A: Address>(lookups: &[Lookup<A>], rows: &[ServiceRow]) -> Option<usize> {
    let found = lookups.iter().rev().find_map(|lookup| match lookup {
        Lookup::Frontend(key, Some(_)) => Some(*key),
        _ => None,
    });
    let ServiceKey {
        address,
        port,
        protocol,
        ..
    } = found?;
    let address = (address != A::default()).then(|| address.to_ip());
    let protocol = Protocol::from_number(protocol);
    rows.iter()
        .position(|row| (row.address, row.port, row.protocol) == (address, port, protocol))
}

/// What the datapath decided.
struct Decided<A> {
    outcome: Outcome,
    /// Where the connection goes, if it is rewritten
    backend: (A, u16),
    masquerade: bool,
    /// What it asked of the tables for that
    lookups: Vec<Lookup<A>>,
}

impl<A: Address> Decided<A> {
    /// On a socket that is connected. The kernel takes the source towards the backend: nobody needs to be hidden.
    fn by_connecting<F: Family<Address = A>>(
        simulation: &Simulation<'_, F>,
        socket: &mut TracedSocket<A>,
        surroundings: &Surroundings<'_>,
    ) -> Result<Self> {
        Ok(Self {
            outcome: simulation.connect(socket, surroundings)?,
            backend: socket.remote(),
            masquerade: false,
            lookups: simulation.take_lookups(),
        })
    }

    /// On a packet with this key at ingress.
    fn by_packet<F: Family<Address = A>>(
        simulation: &Simulation<'_, F>,
        key: &FlowKey<A>,
        bytes: &mut [u8],
        surroundings: &Surroundings<'_>,
    ) -> Result<Self> {
        let outcome = simulation.run(Hook::Ingress, bytes, surroundings)?;
        let lookups = simulation.take_lookups();
        if outcome.verdict != Verdict::Rewrite {
            return Ok(Self {
                outcome,
                backend: (key.destination, key.destination_port),
                masquerade: false,
                lookups,
            });
        }
        let flows = simulation.flows()?;
        let flow = flows.get(key).context("the packet left no flow behind")?;
        Ok(Self {
            outcome,
            backend: (flow.address, flow.port),
            masquerade: flow.flags & flow_flags::MASQUERADED != 0,
            lookups,
        })
    }
}

/// Name of a service port.
fn service_name(tables: &Tables, service: u32) -> Result<String> {
    let name = tables.service_names.get(&service)?;
    let name = name.as_ref().and_then(service_name::decode);
    Ok(name.map_or_else(|| format!("service {service}"), |name| name.to_string()))
}

/// Which endpoints there are to choose from, in words.
fn policy(choice: &Choice) -> String {
    let list = if choice.list == LOCAL_LIST { "Local" } else { "Cluster" };
    let count = choice.count;
    format!("the endpoints for this client are those of traffic policy {list}: {count}")
}

/// Every endpoint that the choice could fall on.
fn candidates<A: Address>(family: &FamilyTables<A>, choice: &Choice) -> Result<Vec<SocketAddr>> {
    let mut candidates = Vec::new();
    for index in 0..choice.count {
        let slot = SlotKey { set: choice.set, index };
        if let Some(backend) = family.slots.get(&slot)? {
            candidates.push(SocketAddr::new(backend.address.to_ip(), backend.port));
        }
    }
    candidates.sort_unstable();
    Ok(candidates)
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let candidates: Vec<String> = self.candidates.iter().map(ToString::to_string).collect();
        write!(
            f,
            "verdict     {}\nreason      {}\nservice     {}\nbackend     {}\ncandidates  {}\nmasquerade  {}\n\nDecisions",
            self.verdict,
            self.reason,
            or_dash(self.service.as_ref()),
            or_dash(self.backend),
            candidates.join(", "),
            if self.masquerade { "yes" } else { "no" },
        )?;
        for (index, decision) in self.decisions.iter().enumerate() {
            write!(f, "\n  {}. {decision}", index + 1)?;
        }
        Ok(())
    }
}
