//! `trace`: what becomes of the first packet of a new connection, decided by the very code that forwards it.

mod origin;
mod packet;
mod socket;

use std::{
    hash::{BuildHasher as _, RandomState},
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use proxy_common::{
    datapath::{self, Choice, Outcome, Verdict, socket::Socket as _},
    layout::{FlowKey, ServiceValue, SlotKey, Timeouts, flow_flags},
    packet::{Family, V4, V6},
};
use serde::Serialize;

use self::{
    origin::Origin,
    packet::{End, FirstPacket, PacketProtocol},
    socket::TracedSocket,
};
use super::{
    input::InputArgs,
    listing::{ListingArgs, or_dash},
};
use crate::dataplane::{
    self,
    address::Address,
    collect, service_name,
    simulation::{Hook, Simulation, Surroundings},
    table::{FamilyTables, Tables},
};

/// Explain what becomes of the first packet of a new connection: by manifests, or by the tables that are pinned
#[derive(Debug, Args)]
pub(crate) struct TraceArgs {
    #[command(flatten)]
    input: InputArgs,

    #[command(flatten)]
    listing: ListingArgs,

    /// Where the packet comes from
    #[arg(long, value_enum)]
    from: Origin,

    /// Its protocol
    #[arg(long, value_enum)]
    protocol: PacketProtocol,

    /// Its source: ADDR, ADDR:PORT or [ADDR]:PORT
    #[arg(long, value_name = "ADDR[:PORT]")]
    source: End,

    /// Its destination: ADDR, ADDR:PORT or [ADDR]:PORT
    #[arg(long, value_name = "ADDR[:PORT]")]
    destination: End,
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Explanation {
    verdict: &'static str,
    service: Option<String>,
    candidates: Vec<SocketAddr>,
    backend: Option<SocketAddr>,
    masquerade: bool,
    reason: String,
}

impl TraceArgs {
    pub(crate) fn run(self) -> Result<()> {
        let tables = if self.input.manifests.is_some() {
            origin::planned(self.input.plan()?, self.from, self.source.address)?
        } else {
            self.listing.tables()?
        };
        let explanation = match (self.source.address, self.destination.address) {
            (IpAddr::V4(_), IpAddr::V4(_)) => self.explain::<V4>(&tables, &tables.v4)?,
            (IpAddr::V6(_), IpAddr::V6(_)) => self.explain::<V6>(&tables, &tables.v6)?,
            (source, destination) => {
                bail!("--source {source} and --destination {destination} are of different families")
            }
        };
        self.listing.print(&explanation, text)
    }

    fn explain<F: Family>(&self, tables: &Tables, family: &FamilyTables<F::Address>) -> Result<Explanation>
    where
        F::Address: Address,
    {
        let packet = FirstPacket {
            protocol: self.protocol,
            source: self.source,
            destination: self.destination,
        };
        let (mut bytes, key) = (packet.bytes()?, packet.key::<F::Address>()?);
        let random = || {
            #[expect(clippy::cast_possible_truncation, reason = "some bits are as good as others")]
            let random = RandomState::new().hash_one(0) as u32;
            random
        };
        let surroundings = Surroundings {
            now: collect::tick(dataplane::now()),
            device: self.from.device(tables)?,
            timeouts: Timeouts::DEFAULT,
            random: &random,
        };
        let simulation = Simulation::<F>::new(tables, family);
        let mut service = ServiceValue::default();
        let socket = TracedSocket::of(&key).filter(|_| self.from == Origin::Host);
        let (found, decided) = if let Some(mut socket) = socket {
            let found = datapath::find_for_process(&simulation, &key, &mut service).is_ok();
            let decided = Decided::by_connecting(&simulation, &mut socket, &surroundings)?;
            let packet = Decided::by_packet(&simulation, &key, &mut bytes, &surroundings)?;
            // What the socket leaves alone, its packets meet.
            let left = decided.outcome.verdict == Verdict::Continue && packet.outcome.verdict == Verdict::Drop;
            (found, if left { packet } else { decided })
        } else {
            let found = datapath::find_frontend(&simulation, &key, &mut service).is_ok();
            (found, Decided::by_packet(&simulation, &key, &mut bytes, &surroundings)?)
        };
        let name = if found {
            Some(service_name(tables, service.service)?)
        } else {
            None
        };
        let reason = match (self.from, self.protocol) {
            (Origin::Host, PacketProtocol::Sctp | PacketProtocol::Icmp) => format!(
                "{}; but the host's own packets of this protocol are not served",
                decided.outcome.reason
            ),
            _ => decided.outcome.reason.to_string(),
        };
        let unforwarded = |verdict, service| Explanation {
            verdict,
            service,
            candidates: Vec::new(),
            backend: None,
            masquerade: false,
            reason: reason.clone(),
        };
        Ok(match decided.outcome.verdict {
            Verdict::Continue => unforwarded("pass", None),
            Verdict::Reject => unforwarded("reject", name),
            Verdict::Drop => unforwarded("drop", name),
            Verdict::Hold => unforwarded("hold", name),
            Verdict::Rewrite => {
                let mut choice = Choice::default();
                // Fails where a flow was known before, whose frontend is gone.
                let chosen = datapath::decide(&simulation, &surroundings, &key, &service, &mut choice);
                let (address, port) = decided.backend;
                Explanation {
                    verdict: "forward",
                    service: name,
                    candidates: chosen.map_or_else(|_| Ok(Vec::new()), |()| candidates(family, &choice))?,
                    backend: Some(SocketAddr::new(address.to_ip(), port)),
                    masquerade: decided.masquerade,
                    reason,
                }
            }
        })
    }
}

/// What the datapath decided.
struct Decided<A> {
    outcome: Outcome,
    /// Where the connection goes, if it is rewritten
    backend: (A, u16),
    masquerade: bool,
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
        if outcome.verdict != Verdict::Rewrite {
            return Ok(Self {
                outcome,
                backend: (key.destination, key.destination_port),
                masquerade: false,
            });
        }
        let flows = simulation.flows()?;
        let flow = flows.get(key).context("the packet left no flow behind")?;
        Ok(Self {
            outcome,
            backend: (flow.address, flow.port),
            masquerade: flow.flags & flow_flags::MASQUERADED != 0,
        })
    }
}

/// Name of a service port.
fn service_name(tables: &Tables, service: u32) -> Result<String> {
    let name = tables.service_names.get(&service)?;
    let name = name.as_ref().and_then(service_name::decode);
    Ok(name.map_or_else(|| format!("service {service}"), |name| name.to_string()))
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

fn text(explanation: &Explanation) -> String {
    let list = |list: &[SocketAddr]| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    format!(
        "verdict     {}\nreason      {}\nservice     {}\nbackend     {}\ncandidates  {}\nmasquerade  {}",
        explanation.verdict,
        explanation.reason,
        or_dash(explanation.service.as_ref()),
        or_dash(explanation.backend),
        list(&explanation.candidates),
        if explanation.masquerade { "yes" } else { "no" },
    )
}
