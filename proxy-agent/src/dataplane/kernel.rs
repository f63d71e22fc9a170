//! The tables as pinned BPF maps.

use std::{
    hash::Hash,
    io,
    iter::Sum,
    marker::PhantomData,
    os::fd::{AsFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, PerCpuValues, lpm_trie::Key};
use proxy_common::layout::{AddressBytes, Plain, Source, SourceKey, TableKind, TableSpec, tables};

use super::{
    counted::Counted,
    observer::{self, SharedObserver},
    pin::PinDirectory,
    raw::{self, Raw},
    shape,
    table::{BoxedTable, FamilyTables, Table, TableError, Tables},
};

/// Opens every pinned table, to read it; what is refused is nobody's concern.
///
/// # Errors
/// If one is missing or of another shape.
pub fn open(pin: &PinDirectory) -> Result<Tables> {
    open_observed(pin, &observer::nobody())
}

/// [`open`], for one who writes; `observer` is told of what is refused.
///
/// # Errors
/// As there.
pub fn open_observed(pin: &PinDirectory, observer: &SharedObserver) -> Result<Tables> {
    pin.check_pinned()?;
    let place = &Place { pin, observer };
    Ok(Tables {
        v4: FamilyTables {
            services: hash(place, tables::SERVICES_V4)?,
            slots: hash(place, tables::SLOTS_V4)?,
            flows: hash(place, tables::FLOWS_V4)?,
            openings: array(place, tables::OPENINGS_V4)?,
            opening_ends: array(place, tables::OPENING_ENDS_V4)?,
            affinity: hash(place, tables::AFFINITY_V4)?,
            sockets: hash(place, tables::SOCKETS_V4)?,
            fragments: hash(place, tables::FRAGMENTS_V4)?,
            members: hash(place, tables::MEMBERS_V4)?,
            sources: trie(place, tables::SOURCES_V4)?,
            addresses: hash(place, tables::ADDRESSES_V4)?,
        },
        v6: FamilyTables {
            services: hash(place, tables::SERVICES_V6)?,
            slots: hash(place, tables::SLOTS_V6)?,
            flows: hash(place, tables::FLOWS_V6)?,
            openings: array(place, tables::OPENINGS_V6)?,
            opening_ends: array(place, tables::OPENING_ENDS_V6)?,
            affinity: hash(place, tables::AFFINITY_V6)?,
            sockets: hash(place, tables::SOCKETS_V6)?,
            fragments: hash(place, tables::FRAGMENTS_V6)?,
            members: hash(place, tables::MEMBERS_V6)?,
            sources: trie(place, tables::SOURCES_V6)?,
            addresses: hash(place, tables::ADDRESSES_V6)?,
        },
        held_fragments: hash(place, tables::HELD_FRAGMENTS)?,
        service_ranges: array(place, tables::SERVICE_RANGES)?,
        service_names: hash(place, tables::SERVICE_NAMES)?,
        devices: hash(place, tables::DEVICES)?,
        frontend_filter: array(place, tables::FRONTEND_FILTER)?,
        backend_filter: array(place, tables::BACKEND_FILTER)?,
        reason_counts: per_cpu(place, tables::REASON_COUNTS, array(place, tables::REASONS_BEFORE)?)?,
        refusals: counted(place, tables::REFUSALS, tables::REFUSALS_BEFORE)?,
        endpoint_counts: counted(place, tables::ENDPOINT_COUNTS, tables::ENDPOINTS_BEFORE)?,
        service_counts: per_cpu(place, tables::SERVICE_COUNTS, hash(place, tables::SERVICES_BEFORE)?)?,
    })
}

/// Where the tables are, and who is told of writes that they refuse.
struct Place<'a> {
    pin: &'a PinDirectory,
    observer: &'a SharedObserver,
}

fn hash<K: Plain + Send, V: Plain + Send>(place: &Place<'_>, spec: TableSpec) -> Result<BoxedTable<K, V>> {
    Ok(Box::new(KernelHash(KernelMap::open(place, spec)?, PhantomData)))
}

fn trie<A>(place: &Place<'_>, spec: TableSpec) -> Result<BoxedTable<SourceKey<A>, u32>>
where
    A: AddressBytes + Send,
    Source<A>: Plain,
    SourceKey<A>: Plain,
{
    Ok(Box::new(KernelTrie(KernelMap::open(place, spec)?, PhantomData)))
}

fn array<V: Plain + Send>(place: &Place<'_>, spec: TableSpec) -> Result<BoxedTable<u32, V>> {
    Ok(Box::new(KernelArray(KernelMap::open(place, spec)?, PhantomData)))
}

fn per_cpu<V>(place: &Place<'_>, spec: TableSpec, before: BoxedTable<u32, V>) -> Result<BoxedTable<u32, V>>
where
    V: Plain + Default + Send + Sum,
{
    let map = KernelMap::open(place, spec)?;
    Ok(Box::new(KernelPerCpu { map, before }))
}

fn counted<K, V>(place: &Place<'_>, spec: TableSpec, before: TableSpec) -> Result<BoxedTable<K, V>>
where
    K: Plain + Eq + Hash + Send,
    V: Plain + Send + Sum,
{
    Ok(Box::new(Counted {
        now: hash(place, spec)?,
        before: hash(place, before)?,
    }))
}

/// A pinned map that has been compared with its table.
struct KernelMap {
    /// The table, with the number of entries that the map really has
    spec: TableSpec,
    map: Map,
    /// The map again, for what aya can't do
    fd: OwnedFd,
    observer: SharedObserver,
}

impl KernelMap {
    fn open(place: &Place<'_>, spec: TableSpec) -> Result<Self> {
        let path = place.pin.map(spec.name);
        let max_entries = shape::check(&path, &spec)?.with_context(|| {
            format!(
                "table {} is not pinned at {}: start an agent",
                spec.name,
                path.display()
            )
        })?;
        let cannot_open = || format!("cannot open the map pinned at {}", path.display());
        let data = MapData::from_pin(&path).with_context(cannot_open)?;
        let fd = data.fd().as_fd().try_clone_to_owned().with_context(cannot_open)?;
        let map = match spec.kind {
            TableKind::Hash | TableKind::SparseHash => Map::HashMap(data),
            TableKind::LruHash => Map::LruHashMap(data),
            TableKind::LpmTrie => Map::LpmTrie(data),
            TableKind::Array => Map::Array(data),
            TableKind::PerCpuArray => Map::PerCpuArray(data),
            TableKind::ArrayOfRings => Map::ArrayOfMaps(data),
        };
        Ok(Self {
            spec: TableSpec { max_entries, ..spec },
            map,
            fd,
            observer: place.observer.clone(),
        })
    }

    fn error(&self, error: MapError) -> TableError {
        let source = match error {
            MapError::SyscallError(error) => error.io_error,
            MapError::OutOfBounds { .. } => return self.full(),
            other => io::Error::other(other),
        };
        if raw::is_full(&source) {
            return self.full();
        }
        self.kernel_error(source)
    }

    /// The error of a write.
    fn refusal(&self, error: MapError) -> TableError {
        self.observer.write_refused(self.spec.name);
        self.error(error)
    }

    const fn full(&self) -> TableError {
        TableError::Full {
            table: self.spec.name,
            limit: self.spec.max_entries,
        }
    }

    const fn kernel_error(&self, source: io::Error) -> TableError {
        TableError::Kernel {
            table: self.spec.name,
            source,
        }
    }

    fn no_removal(&self) -> TableError {
        self.kernel_error(io::Error::other("entries of an array can't be removed"))
    }
}

/// `bpf_map_update_elem`: only where there is no entry (include/uapi/linux/bpf.h).
const BPF_NOEXIST: u64 = 1;

struct KernelHash<K, V>(KernelMap, PhantomData<(K, V)>);

impl<K: Plain + Send, V: Plain + Send> Table<K, V> for KernelHash<K, V> {
    fn max_entries(&self) -> u32 {
        self.0.spec.max_entries
    }

    fn get(&self, key: &K) -> Result<Option<V>, TableError> {
        let map = HashMap::<_, Raw<K>, Raw<V>>::try_from(&self.0.map).map_err(|error| self.0.error(error))?;
        match map.get(&Raw(*key), 0) {
            Ok(Raw(value)) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(self.0.error(error)),
        }
    }

    fn insert(&mut self, key: &K, value: &V) -> Result<(), TableError> {
        HashMap::<_, Raw<K>, Raw<V>>::try_from(&mut self.0.map)
            .and_then(|mut map| map.insert(Raw(*key), Raw(*value), 0))
            .map_err(|error| self.0.refusal(error))
    }

    fn remove(&mut self, key: &K) -> Result<bool, TableError> {
        let removed =
            HashMap::<_, Raw<K>, Raw<V>>::try_from(&mut self.0.map).and_then(|mut map| map.remove(&Raw(*key)));
        match removed {
            Ok(()) => Ok(true),
            Err(MapError::KeyNotFound) => Ok(false),
            Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(self.0.refusal(error)),
        }
    }

    /// No command compares and removes: what was removed wrongly is put back, unless the datapath has made it anew already.
    fn remove_if(&mut self, key: &K, is_removed: &dyn Fn(&V) -> bool) -> Result<bool, TableError> {
        let taken = raw::take(self.0.fd.as_fd(), key).map_err(|error| self.0.kernel_error(error))?;
        let Some(value) = taken.filter(|value| !is_removed(value)) else {
            return Ok(taken.is_some());
        };
        let put_back = HashMap::<_, Raw<K>, Raw<V>>::try_from(&mut self.0.map)
            .and_then(|mut map| map.insert(Raw(*key), Raw(value), BPF_NOEXIST));
        match put_back {
            Ok(()) => Ok(false),
            Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(self.0.error(error)),
        }
    }

    fn scan(&self, each: &mut dyn FnMut(K, V)) -> Result<(), TableError> {
        raw::scan(self.0.fd.as_fd(), each).map_err(|error| self.0.kernel_error(error))
    }
}

struct KernelTrie<A>(KernelMap, PhantomData<A>);

/// A key in aya's words.
fn prefix<A: AddressBytes>(key: &SourceKey<A>) -> Key<Raw<Source<A>>>
where
    Source<A>: Plain,
{
    Key::new(key.prefix_length, Raw(key.source))
}

impl<A: AddressBytes + Send> Table<SourceKey<A>, u32> for KernelTrie<A>
where
    Source<A>: Plain,
    SourceKey<A>: Plain,
{
    fn max_entries(&self) -> u32 {
        self.0.spec.max_entries
    }

    fn get(&self, key: &SourceKey<A>) -> Result<Option<u32>, TableError> {
        let map = LpmTrie::<_, Raw<Source<A>>, u32>::try_from(&self.0.map).map_err(|error| self.0.error(error))?;
        match map.get(&prefix(key), 0) {
            Ok(value) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(self.0.error(error)),
        }
    }

    fn insert(&mut self, key: &SourceKey<A>, value: &u32) -> Result<(), TableError> {
        let inserted = LpmTrie::<_, Raw<Source<A>>, u32>::try_from(&mut self.0.map)
            .and_then(|mut map| map.insert(&prefix(key), value, 0));
        inserted.map_err(|error| match error {
            // The kernel's word for a full trie.
            MapError::SyscallError(error) if raw::is_full(&error.io_error) => {
                self.0.observer.write_refused(self.0.spec.name);
                self.0.full()
            }
            error => self.0.refusal(error),
        })
    }

    fn remove(&mut self, key: &SourceKey<A>) -> Result<bool, TableError> {
        let removed =
            LpmTrie::<_, Raw<Source<A>>, u32>::try_from(&mut self.0.map).and_then(|mut map| map.remove(&prefix(key)));
        match removed {
            Ok(()) => Ok(true),
            Err(MapError::KeyNotFound) => Ok(false),
            Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(self.0.refusal(error)),
        }
    }

    fn scan(&self, each: &mut dyn FnMut(SourceKey<A>, u32)) -> Result<(), TableError> {
        raw::scan(self.0.fd.as_fd(), each).map_err(|error| self.0.kernel_error(error))
    }
}

struct KernelArray<V>(KernelMap, PhantomData<V>);

impl<V: Plain + Send> Table<u32, V> for KernelArray<V> {
    fn max_entries(&self) -> u32 {
        self.0.spec.max_entries
    }

    fn get(&self, key: &u32) -> Result<Option<V>, TableError> {
        let map = Array::<_, Raw<V>>::try_from(&self.0.map).map_err(|error| self.0.error(error))?;
        match map.get(key, 0) {
            Ok(Raw(value)) => Ok(Some(value)),
            Err(MapError::OutOfBounds { .. }) => Ok(None),
            Err(error) => Err(self.0.error(error)),
        }
    }

    fn insert(&mut self, key: &u32, value: &V) -> Result<(), TableError> {
        Array::<_, Raw<V>>::try_from(&mut self.0.map)
            .and_then(|mut map| map.set(*key, Raw(*value), 0))
            .map_err(|error| self.0.refusal(error))
    }

    fn remove(&mut self, _key: &u32) -> Result<bool, TableError> {
        Err(self.0.no_removal())
    }

    fn scan(&self, each: &mut dyn FnMut(u32, V)) -> Result<(), TableError> {
        raw::scan(self.0.fd.as_fd(), each).map_err(|error| self.0.kernel_error(error))
    }
}

/// Counters, and what previous generations counted: the programs write the one, and the agent the other.
struct KernelPerCpu<V> {
    map: KernelMap,
    before: BoxedTable<u32, V>,
}

impl<V: Plain + Default + Send + Sum> Table<u32, V> for KernelPerCpu<V> {
    fn max_entries(&self) -> u32 {
        self.map.spec.max_entries
    }

    fn get(&self, key: &u32) -> Result<Option<V>, TableError> {
        let map = PerCpuArray::<_, Raw<V>>::try_from(&self.map.map).map_err(|error| self.map.error(error))?;
        match map.get(key, 0) {
            Ok(values) => {
                let before = self.before.get(key)?;
                Ok(Some(values.iter().map(|Raw(value)| *value).chain(before).sum()))
            }
            Err(MapError::OutOfBounds { .. }) => Ok(None),
            Err(error) => Err(self.map.error(error)),
        }
    }

    fn insert(&mut self, key: &u32, value: &V) -> Result<(), TableError> {
        let cpus = aya::util::nr_cpus().map_err(|(path, error)| {
            self.map
                .kernel_error(io::Error::new(error.kind(), format!("{path}: {error}")))
        })?;
        let mut values = vec![Raw(V::default()); cpus];
        if let Some(first) = values.first_mut() {
            *first = Raw(*value);
        }
        let values = PerCpuValues::try_from(values).map_err(|error| self.map.kernel_error(error))?;
        PerCpuArray::<_, Raw<V>>::try_from(&mut self.map.map)
            .and_then(|mut map| map.set(*key, values, 0))
            .map_err(|error| self.map.refusal(error))?;
        if self.before.get(key)?.is_some() {
            self.before.insert(key, &V::default())?;
        }
        Ok(())
    }

    fn remove(&mut self, _key: &u32) -> Result<bool, TableError> {
        Err(self.map.no_removal())
    }

    fn scan(&self, each: &mut dyn FnMut(u32, V)) -> Result<(), TableError> {
        for key in 0..self.max_entries() {
            if let Some(value) = self.get(&key)? {
                each(key, value);
            }
        }
        Ok(())
    }
}
