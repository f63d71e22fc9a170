//! `trace`: what becomes of the first packet of a new connection, decided by the very code that forwards it.

use std::{
    hash::{BuildHasher as _, RandomState},
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use etherparse::{IpNumber, PacketBuilder};
use proxy_common::{
    datapath::Verdict,
    layout::{FlowKey, INGRESS, ServiceKey, ServiceValue, SlotKey, Timeouts, flow_flags},
    packet::{Family, V4, V6},
};
use serde::Serialize;

use super::{
    input::InputArgs,
    listing::{ListingArgs, or_dash},
};
use crate::{
    dataplane::{
        self,
        address::Address,
        collect,
        memory::Memory,
        programmer::Programmer,
        service_name,
        simulation::{Hook, Simulation, Surroundings},
        table::{FamilyTables, Tables},
    },
    model::parse_ip,
};

/// Source port of the packet where none is given: the first of the usual ephemeral ones.
const SOURCE_PORT: u16 = 32_768;

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

/// Where a packet comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Origin {
    /// A pod of this node
    Pod,
    /// Another machine
    Uplink,
    /// A process in the host's network
    Host,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PacketProtocol {
    Tcp,
    Udp,
    Sctp,
    Icmp,
}

/// Address and port of one end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct End {
    address: IpAddr,
    port: Option<u16>,
}

impl FromStr for End {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(end) = text.parse::<SocketAddr>() {
            return Ok(Self {
                address: end.ip(),
                port: Some(end.port()),
            });
        }
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        let address = parse_ip(bare.unwrap_or(text))?;
        Ok(Self { address, port: None })
    }
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

impl Explanation {
    fn pass(reason: &str) -> Self {
        Self {
            verdict: "pass",
            service: None,
            candidates: Vec::new(),
            backend: None,
            masquerade: false,
            reason: reason.to_owned(),
        }
    }
}

impl TraceArgs {
    pub(crate) fn run(self) -> Result<()> {
        let tables = if self.input.manifests.is_some() {
            let memory = Memory::default();
            let mut programmer = Programmer::load(memory.tables(), dataplane::now())?;
            programmer.replace(self.input.plan()?.frontends, dataplane::now());
            for problem in programmer.problems() {
                eprintln!("{problem}");
            }
            memory.tables()
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
        match self.from {
            Origin::Pod => {}
            Origin::Uplink => return Ok(Explanation::pass("no program is attached to uplinks")),
            Origin::Host => return Ok(Explanation::pass("sockets of host processes are not translated")),
        }
        let mut packet = self.packet()?;
        let random = || {
            #[expect(clippy::cast_possible_truncation, reason = "some bits are as good as others")]
            let random = RandomState::new().hash_one(0) as u32;
            random
        };
        let surroundings = Surroundings {
            now: collect::tick(dataplane::now()),
            device: 0,
            timeouts: Timeouts::DEFAULT,
            random: &random,
        };
        let simulation = Simulation::<F>::new(tables, family);
        let outcome = simulation.run(Hook::Ingress, &mut packet, &surroundings)?;
        let service = self.service(tables, family)?;
        let name = service.as_ref().map(|(name, _)| name.clone());
        let refused = |verdict| Explanation {
            verdict,
            service: name.clone(),
            ..Explanation::pass(&outcome.reason.to_string())
        };
        Ok(match outcome.verdict {
            Verdict::Continue => Explanation::pass(&outcome.reason.to_string()),
            Verdict::Reject => refused("reject"),
            Verdict::Drop => refused("drop"),
            Verdict::Rewrite => {
                let key = self.key::<F::Address>()?;
                let flows = simulation.flows()?;
                let flow = flows.get(&key).context("the packet left no flow behind")?;
                let candidates = service.map(|(_, value)| candidates(family, &value)).transpose()?;
                Explanation {
                    verdict: "forward",
                    service: name,
                    candidates: candidates.unwrap_or_default(),
                    backend: Some(SocketAddr::new(flow.address.to_ip(), flow.port)),
                    masquerade: flow.flags & flow_flags::MASQUERADED != 0,
                    reason: outcome.reason.to_string(),
                }
            }
        })
    }

    /// The frontend that the packet is for, and the name of its service port.
    fn service<A: Address>(&self, tables: &Tables, family: &FamilyTables<A>) -> Result<Option<(String, ServiceValue)>> {
        let key = self.key::<A>()?;
        let frontend = ServiceKey::new(key.destination, key.destination_port, key.protocol);
        let Some(value) = family.services.get(&frontend)? else {
            return Ok(None);
        };
        let name = tables.service_names.get(&value.service)?;
        let name = name.as_ref().and_then(service_name::decode);
        let name = name.map_or_else(|| format!("service {}", value.service), |name| name.to_string());
        Ok(Some((name, value)))
    }

    /// The packet's key at the ingress hook.
    fn key<A: Address>(&self) -> Result<FlowKey<A>> {
        let end = |end: End, port: u16| {
            let address = A::from_ip(end.address).context("an address of the other family")?;
            anyhow::Ok((address, end.port.unwrap_or(port)))
        };
        let (source, destination) = (end(self.source, SOURCE_PORT)?, end(self.destination, 0)?);
        Ok(FlowKey::new(INGRESS, self.protocol.number(), source, destination))
    }

    /// The first packet of the connection, from its network header on.
    fn packet(&self) -> Result<Vec<u8>> {
        let builder = match (self.source.address, self.destination.address) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                PacketBuilder::ipv4(source.octets(), destination.octets(), 64)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                PacketBuilder::ipv6(source.octets(), destination.octets(), 64)
            }
            _ => bail!("--source and --destination are of different families"),
        };
        let source = self.source.port.unwrap_or(SOURCE_PORT);
        let destination = match (self.protocol, self.destination.port) {
            (PacketProtocol::Icmp, _) => 0,
            (_, Some(port)) => port,
            (_, None) => bail!("--destination {}: the port is missing", self.destination.address),
        };
        let mut packet = Vec::new();
        match self.protocol {
            PacketProtocol::Tcp => builder
                .tcp(source, destination, 1, 65_535)
                .syn()
                .write(&mut packet, &[])?,
            PacketProtocol::Udp => builder.udp(source, destination).write(&mut packet, &[])?,
            PacketProtocol::Icmp if self.source.address.is_ipv4() => {
                builder.icmpv4_echo_request(1, 1).write(&mut packet, &[])?;
            }
            PacketProtocol::Icmp => builder.icmpv6_echo_request(1, 1).write(&mut packet, &[])?,
            PacketProtocol::Sctp => {
                // The common header: ports, verification tag, checksum; then the chunk INIT (RFC 9260, 3.1 and 3.3.2).
                let mut header = [0; 12 + 20];
                header[..2].copy_from_slice(&source.to_be_bytes());
                header[2..4].copy_from_slice(&destination.to_be_bytes());
                (header[12], header[15]) = (1, 20);
                builder.write(&mut packet, IpNumber::SCTP, &header)?;
            }
        }
        Ok(packet)
    }
}

impl PacketProtocol {
    /// IP protocol number (IANA).
    const fn number(self) -> u8 {
        match self {
            Self::Icmp => 1,
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// Every endpoint that the choice could fall on.
fn candidates<A: Address>(family: &FamilyTables<A>, service: &ServiceValue) -> Result<Vec<SocketAddr>> {
    let mut candidates = Vec::new();
    for index in 0..service.cluster_count {
        let slot = SlotKey {
            set: service.cluster_set,
            index,
        };
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
