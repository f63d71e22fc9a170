//! `trace`: what becomes of the first packet of a new connection, decided by the very code that forwards it; and what to do
//! where that isn't what its sender wants.

mod advice;
mod arrival;
mod decisions;
mod explanation;
mod knowledge;
mod origin;
mod packet;
mod socket;

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use proxy_common::{
    layout::address_flags,
    packet::{Family, V4, V6},
};
use serde::Serialize;

use self::{
    advice::{Advice, Case},
    arrival::Arrival,
    explanation::{Explained, Explanation, explain},
    knowledge::Knowledge,
    origin::Origin,
    packet::{End, FirstPacket, PacketProtocol},
};
use super::{
    ask::AskArgs,
    input::InputArgs,
    listing::{ListingArgs, or_dash},
    monitor,
};
use crate::{
    config::timeouts::duration,
    dataplane::{
        self,
        address::Address,
        cgroup::Mode,
        inspect::{self, EventRow, FlowRow},
        table::{FamilyTables, TableError, Tables},
    },
};

/// Explain what becomes of the first packet of a new connection, each decision in order, and what to do if it is not forwarded:
/// by manifests, or by the tables that are pinned and the agent that runs
#[derive(Debug, Args)]
pub(crate) struct TraceArgs {
    #[command(flatten)]
    input: InputArgs,

    #[command(flatten)]
    listing: ListingArgs,

    #[command(flatten)]
    agent: AskArgs,

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

    /// Tell what the flow table has of live connections from this source to this destination, too
    #[arg(long, conflicts_with = "manifests")]
    live: bool,

    /// Wait for the next such packet that opens a connection or is refused, and explain that one: the source's port, and for
    /// a process of the host its address, may be any
    #[arg(long, value_name = "DURATION", value_parser = duration, num_args = 0..=1, default_missing_value = "30s",
        conflicts_with = "manifests")]
    wait: Option<Duration>,
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Trace {
    /// What the kernel did with the packet that was waited for, `null` if none came; absent unless asked for
    #[serde(skip_serializing_if = "Option::is_none")]
    seen: Option<Arrival>,
    #[serde(flatten)]
    explanation: Explanation,
    /// What is wrong, and what to do; `null` if nothing is
    advice: Option<Advice>,
    /// Connections that there are; absent unless asked for
    #[serde(skip_serializing_if = "Option::is_none")]
    flows: Option<Vec<FlowRow>>,
}

impl TraceArgs {
    pub(crate) fn run(self) -> Result<()> {
        let (source, destination) = (self.source.address, self.destination.address);
        ensure!(
            source.is_ipv4() == destination.is_ipv4(),
            "--source {source} and --destination {destination} are of different families"
        );
        let seen = self.wait.map(|patience| self.arrival(patience)).transpose()?;
        let (tables, knowledge) = if self.input.manifests.is_some() {
            let input = self.input.plan()?;
            let tables = origin::planned(&input, self.from, self.source.address)?;
            (tables, Knowledge::Read(Box::new(input)))
        } else {
            (self.listing.tables()?, Knowledge::Agent(self.agent))
        };
        let trace = if source.is_ipv4() {
            self.trace::<V4>(&tables, &tables.v4, &knowledge, seen)?
        } else {
            self.trace::<V6>(&tables, &tables.v6, &knowledge, seen)?
        };
        self.listing.print(&trace, text)
    }

    /// The packet as it was described.
    const fn packet(&self) -> FirstPacket {
        FirstPacket {
            protocol: self.protocol,
            source: self.source,
            destination: self.destination,
        }
    }

    fn arrival(&self, patience: Duration) -> Result<Arrival> {
        // One that can't be sent doesn't come.
        self.packet().bytes()?;
        arrival::wait(self.listing.pin(), self.from, &self.packet(), patience)
    }

    fn trace<F: Family>(
        &self,
        tables: &Tables,
        family: &FamilyTables<F::Address>,
        knowledge: &Knowledge,
        seen: Option<Arrival>,
    ) -> Result<Trace>
    where
        F::Address: Address,
    {
        let event = match &seen {
            Some(Arrival::Seen(event)) => Some(&**event),
            _ => None,
        };
        let packet = event.map_or(self.packet(), |event| as_it_came(&self.packet(), event));
        let backend = event.and_then(|event| event.backend);
        let backend = backend.map(|backend| SocketAddr::new(backend.address, backend.port));
        let rows = inspect::services(tables)?;
        let explained = explain::<F>(tables, family, self.from, &packet, &rows, backend)?;
        let Explained {
            explanation,
            reason,
            frontend,
        } = explained;
        let advice = match self.hook_missing(tables, &explanation)? {
            Some(missing) => Some(missing),
            None if explanation.verdict == "forward" => None,
            None => Case {
                reason,
                protocol: self.protocol.of_services(),
                is_from_pod: self.from == Origin::Pod,
                source: packet.source.address,
                destination: packet.destination(),
                frontend: frontend.and_then(|index| rows.get(index)),
                rows: &rows,
                fills: &inspect::table_fills(tables)?,
                own: &own_addresses(family)?,
                find: &|about| knowledge.find(about),
            }
            .advice(),
        };
        Ok(Trace {
            seen,
            explanation,
            advice,
            flows: self.live.then(|| self.flows(tables)).transpose()?,
        })
    }

    /// Where the tables would have it served, but the packet comes by where no program is attached.
    fn hook_missing(&self, tables: &Tables, explanation: &Explanation) -> Result<Option<Advice>> {
        if explanation.verdict != "forward" || self.input.manifests.is_some() {
            return Ok(None);
        }
        if self.from == Origin::Host {
            let sockets = inspect::sockets(self.listing.pin(), tables)?;
            return Ok((sockets.mode == Mode::Off).then(|| {
                Advice::new(
                    "no program is attached for the sockets of the host's processes: they are not served",
                    [
                        "run the agent without --socket-lb off, where it sees the node's cgroup2 file system"
                            .to_owned(),
                        "`proxy-agent doctor` tells whether the kernel and the mounts allow it".to_owned(),
                    ],
                )
            }));
        }
        let from = self.from.device(tables)?;
        Ok((from == 0).then(|| {
            Advice::new(
                format!("no device of this node is served as one that {} come by", self.from),
                [
                    "`proxy-agent status` lists the devices that are served, and why".to_owned(),
                    "--pod-devices and --uplink-devices name devices that are not recognized".to_owned(),
                ],
            )
        }))
    }

    /// The live connections that the described packet is of; of any source port if none is given.
    fn flows(&self, tables: &Tables) -> Result<Vec<FlowRow>> {
        ensure!(
            self.from != Origin::Host,
            "--live: connections of the host's processes have no flows, their sockets are connected to the endpoint \
             (`ss -tn` shows it)"
        );
        let protocol = self.protocol.of_services();
        let protocol = protocol.context("--live: packets of this protocol have no flows")?;
        let mut flows = inspect::flows(tables, dataplane::now())?;
        flows.retain(|flow| {
            flow.protocol == Some(protocol) && self.source.is(flow.client) && self.destination.is(flow.frontend)
        });
        Ok(flows)
    }
}

/// The described packet with the source that it had in fact, as far as that is known.
fn as_it_came(packet: &FirstPacket, event: &EventRow) -> FirstPacket {
    let source = event.source.filter(|source| source.port != 0);
    let source = source.map(|source| End {
        address: source.address,
        port: Some(source.port),
    });
    FirstPacket {
        source: source.unwrap_or(packet.source),
        ..*packet
    }
}

/// The node's own addresses of a family, and whether nodePorts are served there.
fn own_addresses<A: Address>(family: &FamilyTables<A>) -> Result<Vec<(IpAddr, bool)>, TableError> {
    let mut own: Vec<_> = family
        .addresses
        .entries()?
        .into_iter()
        .map(|(address, flags)| (address.to_ip(), flags & address_flags::NODE_PORTS != 0))
        .collect();
    own.sort_unstable();
    Ok(own)
}

fn text(trace: &Trace) -> String {
    let mut text = match &trace.seen {
        Some(Arrival::Seen(event)) => {
            let changed = event.text != trace.explanation.reason
                || event.backend.map(|backend| (backend.address, backend.port))
                    != trace.explanation.backend.map(|backend| (backend.ip(), backend.port()));
            let changed = if changed { "\nThe tables are others by now:" } else { "" };
            format!("Seen  {}{changed}\n\n", monitor::line(event, false))
        }
        Some(Arrival::Nothing) => "No such packet opened a connection or was refused meanwhile: `proxy-agent monitor` shows \
                                   others, and packets that don't come by this node are not seen. It would be explained by\n\n"
            .to_owned(),
        None => String::new(),
    };
    text += &trace.explanation.to_string();
    if let Some(flows) = &trace.flows {
        text += "\n\nConnections there are";
        for flow in flows {
            let backend = if flow.conntrack {
                "by conntrack".to_owned()
            } else {
                flow.backend.to_string()
            };
            let hidden = flow
                .masquerade
                .map_or_else(String::new, |as_what| format!(", as {as_what}"));
            write!(
                text,
                "\n  {} -> {} -> {backend}{hidden}: {}, last packet {} s ago, {}",
                flow.client,
                flow.frontend,
                flow.state,
                flow.idle_seconds,
                or_dash(flow.service.as_ref())
            )
            .expect("a string takes everything");
        }
        if flows.is_empty() {
            text += ": none";
        }
    }
    if let Some(advice) = &trace.advice {
        write!(text, "\n\nCause  {}", advice.cause).expect("a string takes everything");
        for (index, fix) in advice.fix.iter().enumerate() {
            let label = if index == 0 { "Fix  " } else { "     " };
            write!(text, "\n{label}  {fix}").expect("a string takes everything");
        }
    }
    text
}
