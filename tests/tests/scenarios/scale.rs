//! Many endpoints behind one Service, and many Services. What it takes is printed; a test machine is no place for limits.

use std::{
    fmt::Write as _,
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use proxy_tests::{
    lab::{Addresses, AgentOptions, Builder, Connection, Family, Lab, Load, Protocol, Service, address, wait_until},
    require_root,
};

use super::{POD_PORT, PORT, device::first_answer, service};

fn cluster() -> Builder {
    Lab::builder().node("node-a", &["client", "web", "other"]).real_tables()
}

const SLICES: u16 = 10;
const IN_A_SLICE: u16 = 100;

/// Addresses by number, in networks of their own.
fn numbered(v4: [u8; 2], v6: [u16; 3], number: u16) -> Addresses {
    let [high, low] = number.to_be_bytes();
    Addresses {
        v4: Ipv4Addr::new(v4[0], v4[1], high, low),
        v6: Ipv6Addr::new(v6[0], v6[1], v6[2], 0, 0, 0, 0, number),
    }
}

/// The networks of the pod that stands for all endpoints.
const ENDPOINTS_V4: &str = "10.245.0.0/16";
const ENDPOINTS_V6: &str = "fd00:10:245::/48";

fn endpoint(number: u16) -> Addresses {
    numbered([10, 245], [0xfd00, 0x10, 0x245], number)
}

/// 1,000 endpoints in ten slices; each edit of a slice gives it other endpoints.
fn many(editions: [u16; SLICES as usize]) -> Service {
    let mut service = Service::new("default", "web", address::cluster(1)).port("tcp", Protocol::Tcp, PORT, POD_PORT);
    // Endpoints are dealt to the slices in turns.
    for place in 0..IN_A_SLICE {
        for (slice, edition) in (0..SLICES).zip(editions) {
            let number = 1 + (edition * SLICES + slice) * IN_A_SLICE + place;
            service = service.member(&format!("pod-{number}"), "node-a", endpoint(number));
        }
    }
    service.slices(SLICES.into())
}

/// After each edit exactly the endpoints that are written are used; connections under way notice nothing of any.
#[test]
fn a_thousand_endpoints_in_ten_slices_are_edited_slice_by_slice() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        lab.serve_networks("web", POD_PORT, &[ENDPOINTS_V4, ENDPOINTS_V6])?;
        let mut editions = [0; SLICES as usize];
        let mut current = many(editions);
        lab.apply(&current)?;
        let _agents = lab.start_agents()?;
        let targets = Family::ALL.map(|family| (Protocol::Tcp, current.frontend(family, PORT)));
        let mut open = lab.namespace("client").run(|| Connection::open(targets[0].1))?;
        let first = open.reached()?;
        let load = Load::start(lab.namespace("client"), 1, &targets);
        let mut took = Vec::new();
        for slice in (0..editions.len()).rev() {
            editions[slice] += 1;
            current = many(editions);
            let start = Instant::now();
            lab.apply(&current)?;
            lab.wait_for_service_everywhere(&current)?;
            took.push(start.elapsed());
            let endpoints = lab.served_endpoints("node-a", &current)?;
            ensure!(
                endpoints.len() == 2 * usize::from(SLICES * IN_A_SLICE),
                "{}",
                endpoints.len()
            );
            for (_, to) in targets {
                let reached = lab.namespace("client").run(|| Connection::open(to)?.reached())?;
                ensure!(endpoints.contains(&reached), "{reached} is no endpoint any more");
            }
            load.wait_for(20)?;
        }
        load.stop().expect_no_loss()?;
        ensure!(open.reached()? == first && open.push(100_000).is_ok());
        lab.namespace("client").expect_no_loss()?;
        took.sort_unstable();
        println!("from the edit of one slice of ten to the table, with looking: {took:?}");
        Ok(())
    })
}

const SERVICES: u16 = 5000;

fn numbered_service(number: u16, pod: &str, lab: &Lab) -> Service {
    let cluster = numbered([10, 97], [0xfd00, 0x10, 0x97], number);
    service(&format!("service-{number}"), cluster).pods(&[lab.pod(pod)])
}

/// Many Services in files of some hundred objects each.
fn write_services(lab: &Lab, numbers: impl IntoIterator<Item = u16>) -> Result<()> {
    let numbers: Vec<u16> = numbers.into_iter().collect();
    for (file, chunk) in numbers.chunks(250).enumerate() {
        let mut text = String::new();
        for &number in chunk {
            let service = numbered_service(number, "web", lab);
            writeln!(text, "{}\n---", serde_json::to_string(&service.service())?)?;
            for slice in Family::ALL.into_iter().flat_map(|family| service.family_slices(family)) {
                writeln!(text, "{}\n---", serde_json::to_string(&slice)?)?;
            }
        }
        lab.write_manifest(&format!("services-{file}.yaml"), &text)?;
    }
    Ok(())
}

/// Entries of a table, from `status`.
fn entries(lab: &Lab, table: &str) -> Result<u64> {
    let status = lab.listing("node-a", "status", &[])?;
    let tables = status["tables"].as_array().context("status has tables")?;
    let found = tables.iter().find(|found| found["name"] == table);
    found
        .and_then(|found| found["entries"].as_u64())
        .context("such a table")
}

/// Resident memory of a process, as proc(5) has it.
fn memory(pid: u32) -> Result<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    Ok(line.context("VmRSS")?.trim().to_owned())
}

#[test]
fn five_thousand_services_are_served_and_one_more() -> Result<()> {
    const PATIENCE: Duration = Duration::from_mins(1);
    require_root!();
    cluster().run(|lab| {
        lab.serve("web", POD_PORT)?;
        lab.serve("other", POD_PORT)?;
        write_services(lab, 1..=SERVICES)?;
        let start = Instant::now();
        let agent = lab.spawn_agent("node-a", AgentOptions::default())?;
        // Looking at the tables would take the time that it measures.
        wait_until("the agent is ready", PATIENCE, || {
            let log = fs::read_to_string(lab.agent_log("node-a")).ok()?;
            log.lines().any(|line| line.ends_with(" ready")).then_some(())
        })?;
        println!("{SERVICES} Services in {:?}, {}", start.elapsed(), memory(agent.pid())?);
        // A frontend for each port, and one for all other ports of the ClusterIP (behaviour.md 4.6).
        for table in ["services_v4", "services_v6"] {
            let found = entries(lab, table)?;
            ensure!(found == 3 * u64::from(SERVICES), "{table} has {found} entries");
        }
        let ask = |number, backend: &str| -> Result<()> {
            let service = numbered_service(number, "web", lab);
            for family in Family::ALL {
                for protocol in Protocol::ALL {
                    let answer = lab.request("client", protocol, service.frontend(family, PORT))?;
                    ensure!(answer.backend == backend, "{protocol} {family}: {answer:?}");
                }
            }
            Ok(())
        };
        for number in [1, SERVICES / 2, SERVICES] {
            ask(number, "web")?;
        }
        let more = numbered_service(SERVICES + 1, "other", lab);
        let start = Instant::now();
        lab.apply(&more)?;
        let served = first_answer(lab, "client", more.frontend(Family::V6, PORT))?;
        println!("one more in {:?}, {}", served - start, memory(agent.pid())?);
        ask(SERVICES + 1, "other")
    })
}
