//! From a changed EndpointSlice at the API to the changed table.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use proxy_agent::dataplane::table::{FamilyTables, Tables};
use proxy_common::{
    layout::{Backend, ServiceKey, SlotKey},
    packet::TCP,
};
use serde::Serialize;

use super::cluster::{self, PORT, Size, TARGET};
use crate::api_server::ApiServer;

/// How often the tables are looked at: a change is seen so much too late at most.
const LOOK: Duration = Duration::from_micros(100);
/// How long a change may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long changes took, in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Latency {
    pub(super) changes: usize,
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) longest: f64,
}

/// A change that isn't in the tables yet.
struct Change {
    service: u32,
    edition: u32,
    /// The set that the frontend named before
    before: u32,
    since: Instant,
}

/// Makes so many changes, one each `interval`, to one Service after the other.
pub(super) fn measure(
    server: &ApiServer,
    tables: &Tables,
    node: &str,
    size: Size,
    (changes, interval): (u32, Duration),
    editions: &mut u32,
) -> Result<Latency> {
    let mut under_way: Vec<Change> = Vec::new();
    let mut took = Vec::new();
    let mut next = Instant::now();
    let mut made = 0;
    while made < changes || !under_way.is_empty() {
        if made < changes && Instant::now() >= next {
            *editions += 1;
            // 7919 is prime: no Service comes twice for a long time.
            let service = made * 7919 % size.services;
            let object = cluster::slice(size, service, *editions, node);
            let before = set_of(&tables.v4, service)?.0;
            under_way.push(Change {
                service,
                edition: *editions,
                before,
                since: Instant::now(),
            });
            server.apply(object);
            made += 1;
            next += interval;
        }
        let mut left = Vec::new();
        for change in under_way {
            let (set, count) = set_of(&tables.v4, change.service)?;
            if set == change.before {
                ensure!(
                    change.since.elapsed() < PATIENCE,
                    "service {} doesn't change",
                    change.service
                );
                left.push(change);
            } else {
                took.push(change.since.elapsed().as_secs_f64() * 1e3);
                expect(&tables.v4, size, &change, (set, count))?;
            }
        }
        under_way = left;
        thread::sleep(LOOK);
    }
    took.sort_unstable_by(f64::total_cmp);
    let at = |part: usize| took[(took.len() * part / 100).min(took.len() - 1)];
    Ok(Latency {
        changes: took.len(),
        p50: at(50),
        p99: at(99),
        longest: at(100),
    })
}

/// The set of a Service's endpoints and how many are in it.
fn set_of(tables: &FamilyTables<[u8; 4]>, service: u32) -> Result<(u32, u32)> {
    let key = ServiceKey::new(cluster::frontend(service).octets(), PORT, TCP);
    let value = tables
        .services
        .get(&key)?
        .with_context(|| format!("service {service} is not served"))?;
    Ok((value.cluster_set, value.cluster_count))
}

/// The set holds just the endpoints of the change.
fn expect(tables: &FamilyTables<[u8; 4]>, size: Size, change: &Change, (set, count): (u32, u32)) -> Result<()> {
    let slot = |index| tables.slots.get(&SlotKey { set, index });
    let mut found = (0..count)
        .map(slot)
        .collect::<Result<Option<Vec<_>>, _>>()?
        .context("a hole in a set")?;
    let backend = |address: std::net::Ipv4Addr| Backend {
        address: address.octets(),
        port: TARGET,
        ..Backend::default()
    };
    let mut wanted: Vec<_> = size.backends(change.service, change.edition).map(backend).collect();
    found.sort_unstable_by_key(|backend| backend.address);
    wanted.sort_unstable_by_key(|backend| backend.address);
    ensure!(found == wanted, "service {} has {found:?}", change.service);
    Ok(())
}
