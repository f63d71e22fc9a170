//! How large new tables are.

use std::{collections::BTreeMap, fs};

use proxy_common::layout::{
    TableSpec, opening_slots,
    tables::{self, FLOWS_V4, FLOWS_V6, OPENINGS_V4, OPENINGS_V6},
};

/// The part of the machine's memory that the flow table of one family may take.
const SHARE: u64 = 128;
/// Fewest entries of a flow table unless a flag says otherwise: 2^16 connections.
const LEAST: u64 = 131_072;
/// Most entries of a flow table unless a flag says otherwise: 2^20 connections.
const MOST: u64 = 2_097_152;
/// What the kernel adds to key and value of an entry of a hash table (`struct htab_elem`), and a place in its list of buckets.
const ENTRY_OVERHEAD: u64 = 48 + 16;

/// Bytes that an entry of a table of flows takes, with its share of the openings.
const fn flow_entry_bytes(spec: &TableSpec) -> u64 {
    let (key, value) = (spec.key_size as u64, spec.value_size as u64);
    ENTRY_OVERHEAD + key.next_multiple_of(8) + value.next_multiple_of(8) + key.div_ceil(2)
}

/// Entries of a flow table on a machine with so many bytes of memory: a power of two.
fn flow_entries(spec: &TableSpec, memory: u64) -> u32 {
    let entries = (memory / SHARE / flow_entry_bytes(spec)).clamp(LEAST, MOST);
    // At most MOST.
    u32::try_from(1_u64 << entries.ilog2()).unwrap_or(spec.max_entries)
}

/// The machine's memory in bytes, if the kernel tells (`MemTotal` of proc_meminfo(5)).
fn memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes * 1024)
}

/// The sizes of new tables, by name: those that are `given`, and what follows from the machine's memory and from the size of
/// another table. All other tables have their usual size.
pub fn complete(given: &BTreeMap<String, u32>) -> BTreeMap<String, u32> {
    with_memory(given, memory())
}

fn with_memory(given: &BTreeMap<String, u32>, memory: Option<u64>) -> BTreeMap<String, u32> {
    let mut sizes = given.clone();
    for (flows, openings) in [(FLOWS_V4, OPENINGS_V4), (FLOWS_V6, OPENINGS_V6)] {
        let usual = memory.map_or(flows.max_entries, |memory| flow_entries(&flows, memory));
        let entries = *sizes.entry(flows.name.to_owned()).or_insert(usual);
        sizes
            .entry(openings.name.to_owned())
            .or_insert_with(|| opening_slots(entries));
    }
    sizes
}

/// Tables whose size may be chosen: the others are as large as the programs know them to be.
pub fn sizable() -> impl Iterator<Item = TableSpec> {
    let fixed = [
        tables::FRONTEND_FILTER.name,
        tables::BACKEND_FILTER.name,
        tables::REASON_COUNTS.name,
        tables::WATCHERS.name,
        tables::EVENT_RINGS.name,
        tables::EVENTS_LOST.name,
    ];
    let follows = [OPENINGS_V4.name, OPENINGS_V6.name];
    tables::ALL
        .into_iter()
        .filter(move |spec| spec.max_entries > 1 && !fixed.contains(&spec.name) && !follows.contains(&spec.name))
}

/// A table's size as given on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableSize {
    /// Names of the table for IPv4 and IPv6, or of the one for both
    pub tables: Vec<String>,
    /// Entries
    pub entries: u32,
}

impl std::str::FromStr for TableSize {
    type Err = String;

    /// `NAME=ENTRIES`; without its family a name means the tables of both.
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, entries) = text.split_once('=').ok_or("this is no NAME=ENTRIES")?;
        let is_meant = |spec: &TableSpec| {
            let family = spec.name.strip_suffix("_v4").or(spec.name.strip_suffix("_v6"));
            spec.name == name || family == Some(name)
        };
        let tables: Vec<_> = sizable().filter(is_meant).map(|spec| spec.name.to_owned()).collect();
        if tables.is_empty() {
            let names: Vec<_> = sizable().map(|spec| spec.name).collect();
            return Err(format!("no table is called {name}; there are {}", names.join(", ")));
        }
        match entries.parse() {
            Ok(entries) if entries > 0 => Ok(Self { tables, entries }),
            _ => Err(format!("{entries:?} is no number of entries")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flow_tables_follow_from_memory() {
        let entries = |gibibytes: u64| {
            let sizes = with_memory(&BTreeMap::new(), Some(gibibytes << 30));
            (sizes["flows_v4"], sizes["flows_v6"], sizes["openings_v4"])
        };
        assert_eq!(entries(1), (131_072, 131_072, 65_536));
        assert_eq!(entries(8), (524_288, 262_144, 262_144));
        assert_eq!(entries(1024), (2_097_152, 2_097_152, 1_048_576));
    }

    #[test]
    fn a_flag_has_the_last_word() {
        let given = BTreeMap::from([("flows_v4".to_owned(), 1000)]);
        let sizes = with_memory(&given, Some(1 << 40));
        assert_eq!((sizes["flows_v4"], sizes["openings_v4"]), (1000, 256));
    }

    #[test]
    fn sizes_name_a_table_or_both_of_its_families() {
        let parse = |text: &str| text.parse::<TableSize>();
        let both = parse("slots=64").expect("a size");
        assert_eq!(
            (both.tables, both.entries),
            (vec!["slots_v4".to_owned(), "slots_v6".to_owned()], 64)
        );
        assert_eq!(parse("devices=8").expect("a size").tables, ["devices"]);
        for wrong in ["slots", "slots=0", "slots=many", "nowhere=5", "frontend_filter=5"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        assert!(parse("nowhere=5").expect_err("no table").contains("services_v4"));
    }
}
