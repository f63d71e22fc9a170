//! What a packet costs in each program, by `BPF_PROG_TEST_RUN`.
//!
//! The kernel runs one frame over and over without restoring it. Here that is no trouble but the method: flows are laid
//! out in a ring, each rewriting to the address and port that is the key of another one, so that a million runs visit a
//! million flows, in an order that no cache foresees, and end where they began. In the same way each endpoint of the
//! Services for first packets is the frontend of the next one.

use std::{path::Path, thread, time::Duration};

use anyhow::{Result, bail, ensure};
use comfy_table::{CellAlignment, Table, presets};
use etherparse::PacketBuilder;
use proxy_agent::dataplane::{
    self,
    simulation::Hook,
    table::{FamilyTables, Tables},
};
use proxy_common::{
    datapath::flow,
    layout::{
        AddressBytes, Backend, EGRESS, FILTER_WORDS, FlowKey, FlowValue, INGRESS, ServiceKey, ServiceValue, SlotKey,
        TICK_SHIFT, history, service_flags,
    },
    packet::checksum,
};
use serde::Serialize;

use super::report::{Machine, median, write_json};
use crate::test_run::Kernel;

/// TCP (IANA)
const TCP: u8 = 6;
/// The client's port in the ring of flows
const CLIENT_PORT: u16 = 40_000;
/// How often everything is measured
const ROUNDS: u16 = 5;
/// Runs of a measurement; each visits another flow if there are as many
const RUNS: u32 = 200_000;
/// Services in the chain for first packets, which is also the number of flows one measurement opens
const CHAIN: u32 = 500;
/// From one flow of the ring to the next: odd and no multiple of 5, so that a ring of 2 or a power of 10 is one ring
const STRIDE: u32 = 618_033;
/// How often a measurement that a new tick spoilt is tried again, each time with a tick more for preparation
const TRIES: u32 = 20;

/// An address family to measure.
trait Family: AddressBytes {
    const NAME: &'static str;
    /// The client.
    const CLIENT: Self;
    /// Address by number, below 2^20.
    fn numbered(number: u32) -> Self;
    fn difference(old: &Self, new: &Self) -> u16;
    fn tables(tables: &mut Tables) -> &mut FamilyTables<Self>;
    /// A TCP packet with its Ethernet header; one that opens a connection if `opens`.
    fn frame(source: (Self, u16), destination: (Self, u16), opens: bool) -> Result<Vec<u8>>;
}

impl Family for [u8; 4] {
    const NAME: &'static str = "IPv4";
    const CLIENT: Self = [10, 244, 1, 10];

    fn numbered(number: u32) -> Self {
        (0x0a60_0000 + number).to_be_bytes()
    }

    fn difference(old: &Self, new: &Self) -> u16 {
        checksum::difference(old, new)
    }

    fn tables(tables: &mut Tables) -> &mut FamilyTables<Self> {
        &mut tables.v4
    }

    fn frame(source: (Self, u16), destination: (Self, u16), opens: bool) -> Result<Vec<u8>> {
        let packet = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(source.0, destination.0, 64);
        tcp(packet, source.1, destination.1, opens)
    }
}

impl Family for [u8; 16] {
    const NAME: &'static str = "IPv6";
    const CLIENT: Self = (0xfd00_0010_0244_0001_0000_0000_0000_0010_u128).to_be_bytes();

    fn numbered(number: u32) -> Self {
        (0xfd00_0010_0096_0000_0000_0000_0000_0000 + u128::from(number)).to_be_bytes()
    }

    fn difference(old: &Self, new: &Self) -> u16 {
        checksum::difference(old, new)
    }

    fn tables(tables: &mut Tables) -> &mut FamilyTables<Self> {
        &mut tables.v6
    }

    fn frame(source: (Self, u16), destination: (Self, u16), opens: bool) -> Result<Vec<u8>> {
        let packet = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv6(source.0, destination.0, 64);
        tcp(packet, source.1, destination.1, opens)
    }
}

fn tcp(
    packet: etherparse::PacketBuilderStep<etherparse::IpHeaders>,
    source_port: u16,
    destination_port: u16,
    opens: bool,
) -> Result<Vec<u8>> {
    let packet = packet.tcp(source_port, destination_port, 1, 64_240);
    let packet = if opens { packet.syn() } else { packet.ack(1) };
    let mut frame = Vec::new();
    packet.write(&mut frame, &[0; 64])?;
    Ok(frame)
}

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
struct Row {
    program: &'static str,
    family: &'static str,
    packet: &'static str,
    /// Flows in the table
    flows: u32,
    /// Nanoseconds a packet, less what a packet costs that is no IP packet
    nanoseconds: f64,
}

/// The file's content.
#[derive(Debug, Serialize)]
struct Report<'a> {
    machine: &'a Machine,
    /// Nanoseconds that a packet costs which is no IP packet
    empty_nanoseconds: f64,
    rows: &'a [Row],
}

/// Measures both programs, prints the table and writes `programs.json`.
///
/// # Errors
/// The programs can't be loaded, or don't do what is measured.
pub(super) fn run(flows: &[u32], machine: &Machine, directory: &Path) -> Result<()> {
    let mut rows = Vec::new();
    let mut empty = f64::NAN;
    for &flows in flows {
        eprintln!("programs with {flows} flows");
        empty = measure::<[u8; 4]>(flows, &mut rows)?;
        measure::<[u8; 16]>(flows, &mut rows)?;
    }
    print(&rows);
    write_json(
        directory,
        "programs.json",
        &Report {
            machine,
            empty_nanoseconds: empty,
            rows: &rows,
        },
    )
}

/// Measures one family with that many flows; returns what an empty run costs, in nanoseconds.
fn measure<F: Family>(flows: u32, rows: &mut Vec<Row>) -> Result<f64> {
    // Two entries a flow, those of first packets, and some air.
    let mut kernel = Kernel::load((3 * flows).max(1 << 16))?;
    let elsewhere = (F::numbered((1 << 20) - 1), 80);
    let unrelated = F::frame((F::CLIENT, CLIENT_PORT), elsewhere, false)?;
    let mut no_ip = unrelated.clone();
    // Ethertype of local experiments (IEEE 802).
    no_ip[12..14].copy_from_slice(&[0x88, 0xb5]);
    let empty = rounds(|_| average(&mut kernel, Hook::Ingress, &no_ip, RUNS))?;
    let mut row = |program, packet, nanoseconds: f64| {
        rows.push(Row {
            program,
            family: F::NAME,
            packet,
            flows,
            nanoseconds: nanoseconds - empty,
        });
    };
    for (program, hook) in [("ingress", Hook::Ingress), ("egress", Hook::Egress)] {
        row(
            program,
            "no service",
            rounds(|_| average(&mut kernel, hook, &unrelated, RUNS))?,
        );
    }

    fill_filters(kernel.tables())?;
    let (requests, replies): (Vec<_>, Vec<_>) = (0..ROUNDS)
        .map(|_| established::<F>(&mut kernel, flows))
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .unzip();
    row("ingress", "established", median(requests));
    row("egress", "established", median(replies));

    fill_chain(F::tables(kernel.tables()))?;
    row(
        "ingress",
        "first of a flow",
        rounds(|round| first::<F>(&mut kernel, round))?,
    );
    Ok(empty)
}

/// The median of all rounds.
fn rounds(mut measure: impl FnMut(u16) -> Result<f64>) -> Result<f64> {
    let values = (0..ROUNDS).map(&mut measure).collect::<Result<Vec<_>>>()?;
    Ok(median(values))
}

/// Nanoseconds a run.
fn average(kernel: &mut Kernel, hook: Hook, frame: &[u8], runs: u32) -> Result<f64> {
    Ok(kernel.run(hook, frame, runs)?.duration.as_secs_f64() * 1e9)
}

/// A flow's stop in the ring: the address and port that leads there.
fn stop<F: Family>(number: u32) -> (F, u16) {
    // Ports change with every step, as they do from a frontend to a backend.
    (F::numbered(number), if number.is_multiple_of(2) { 80 } else { 8080 })
}

/// The flow that so many runs lead to from flow 0.
fn step(flows: u32, runs: u32) -> u32 {
    u32::try_from(u64::from(STRIDE) * u64::from(runs) % u64::from(flows)).expect("less than `flows`")
}

/// Every address may be a frontend or a backend.
fn fill_filters(tables: &mut Tables) -> Result<()> {
    for word in 0..FILTER_WORDS {
        tables.frontend_filter.insert(&word, &u64::MAX)?;
        tables.backend_filter.insert(&word, &u64::MAX)?;
    }
    Ok(())
}

/// Nanoseconds for the next packet of a flow, at ingress and its reply at egress.
///
/// Once in a tick the packet that comes first writes the time to its flow, off the established path. The agent doesn't
/// write flows; here all are written as if they had been seen in a tick to come, and are then visited in that tick.
fn established<F: Family>(kernel: &mut Kernel, flows: u32) -> Result<(f64, f64)> {
    let client = (F::CLIENT, CLIENT_PORT);
    // Where a packet is after one run, and after all.
    let [one, all] = [1, RUNS].map(|runs| step(flows, runs));
    let request = |number| F::frame(client, stop::<F>(number), false);
    let reply = |number| F::frame(stop::<F>(number), client, false);
    for patience in 1..=TRIES {
        let tick = now() + patience;
        fill_ring(F::tables(kernel.tables()), flows, tick)?;
        thread::sleep(Duration::from_nanos(u64::from(tick) << TICK_SHIFT).saturating_sub(dataplane::now()));
        let mut visit = |hook, [start, one, all]: [Vec<u8>; 3]| -> Result<f64> {
            ensure!(
                kernel.run(hook, &start, 1)?.frame == one,
                "a packet of a known flow was not rewritten"
            );
            let ran = kernel.run(hook, &start, RUNS)?;
            ensure!(ran.frame == all, "the ring of flows led astray");
            Ok(ran.duration.as_secs_f64() * 1e9)
        };
        let there = visit(Hook::Ingress, [request(0)?, request(one)?, request(all)?])?;
        let back = visit(Hook::Egress, [reply(all)?, reply(step(flows, RUNS - 1))?, reply(0)?])?;
        if now() == tick {
            return Ok((there, back));
        }
    }
    bail!("{flows} flows can't be visited within a tick: this machine is too slow or too busy")
}

/// Writes both halves of every flow; those for the way back lead around the ring in the other direction.
fn fill_ring<F: Family>(tables: &mut FamilyTables<F>, flows: u32, last_seen: u32) -> Result<()> {
    for number in 0..flows {
        let (address, port) = stop::<F>(number);
        let (next_address, next_port) = stop::<F>((number + STRIDE % flows) % flows);
        let key = FlowKey::new(INGRESS, TCP, (F::CLIENT, CLIENT_PORT), (address, port));
        let value = FlowValue {
            address: next_address,
            port: next_port,
            other_port: CLIENT_PORT,
            service: 1,
            last_seen,
            address_difference: F::difference(&address, &next_address),
            history: history::SEEN | history::CONFIRMED,
            flags: 0,
        };
        let twin = FlowValue {
            history: history::SEEN | history::CONFIRMED,
            ..flow::twin_value(&key, &value)
        };
        tables.flows.insert(&flow::twin_key(&key, &value), &twin)?;
        tables.flows.insert(&key, &value)?;
    }
    Ok(())
}

/// The current tick.
fn now() -> u32 {
    u32::try_from(dataplane::now().as_nanos() >> TICK_SHIFT).expect("the machine has been up for less than a century")
}

/// A stop of the chain of Services, clear of the ring.
fn link<F: Family>(number: u32) -> (F, u16) {
    (F::numbered((1 << 20) - 2 - number), 443)
}

fn fill_chain<F: Family>(tables: &mut FamilyTables<F>) -> Result<()> {
    for number in 0..CHAIN {
        let (address, port) = link::<F>(number);
        let value = ServiceValue {
            service: 2 + number,
            flags: service_flags::HAS_ENDPOINTS,
            cluster_set: 1 + number,
            cluster_count: 1,
            ..ServiceValue::default()
        };
        tables.services.insert(&ServiceKey::new(address, port, TCP), &value)?;
        let (address, port) = link::<F>(number + 1);
        tables.slots.insert(
            &SlotKey {
                set: 1 + number,
                index: 0,
            },
            &Backend {
                address,
                port,
                reserved: 0,
            },
        )?;
    }
    Ok(())
}

/// Nanoseconds for a packet that opens a flow; the flows opened are removed again.
fn first<F: Family>(kernel: &mut Kernel, round: u16) -> Result<f64> {
    let client = (F::CLIENT, 50_000 + round);
    let ran = kernel.run(Hook::Ingress, &F::frame(client, link::<F>(0), true)?, CHAIN)?;
    ensure!(
        ran.frame == F::frame(client, link::<F>(CHAIN), true)?,
        "the chain of Services did not lead to its end"
    );
    let flows = &mut F::tables(kernel.tables()).flows;
    for number in 0..CHAIN {
        flows.remove(&FlowKey::new(INGRESS, TCP, client, link::<F>(number)))?;
        flows.remove(&FlowKey::new(EGRESS, TCP, link::<F>(number + 1), client))?;
    }
    Ok(ran.duration.as_secs_f64() * 1e9)
}

fn print(rows: &[Row]) {
    let mut table = Table::new();
    table
        .load_style(presets::ASCII_MARKDOWN)
        .set_header(["program", "family", "packet", "flows", "ns"]);
    for row in rows {
        let flows = row.flows.to_string();
        table.add_row([
            row.program,
            row.family,
            row.packet,
            &flows,
            &format!("{:.0}", row.nanoseconds),
        ]);
    }
    for column in table.column_iter_mut().skip(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}");
}
