//! What the fields of keys and values are, and where: each generation pins the type information (BTF) of its object, so that
//! the next one can read its tables. (The kernel has that, too, but gives it to nobody without `CAP_SYS_ADMIN`.)

use std::collections::BTreeMap;

use btfparse::{Error, ErrorKind, Offset, Readable, TypeInformation, TypeVariant};

use anyhow::{Context as _, Result};
use object::{Object as _, ObjectSection as _};

use super::Generation;
use crate::dataplane::raw::{BytesMap, Update};

/// A field: an integer, or an array of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Field {
    offset: usize,
    size: usize,
    /// May become longer: the tables are in the byte order of the machine, of which eBPF has little-endian ones only
    /// (`bpfel`)
    integer: bool,
}

/// The fields of a key or value by name; those of a structure in it by both names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) size: usize,
    fields: BTreeMap<String, Field>,
}

struct Bytes(Vec<u8>);

impl Readable for Bytes {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> btfparse::Result<()> {
        let end = || Error::new(ErrorKind::IOError, "the end of the type information");
        let start = usize::try_from(offset).map_err(|_| end())?;
        let bytes = self.0.get(start..).and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(bytes.ok_or_else(end)?);
        Ok(())
    }
}

/// The types of a build's tables.
pub(in crate::dataplane) struct Types(TypeInformation);

impl Types {
    /// Those that a generation has pinned; `None` if there are none that can be read.
    pub(super) fn of(generation: &Generation) -> Option<Self> {
        let bytes = BytesMap::open(&generation.layout())
            .ok()?
            .get(&0_u32.to_ne_bytes())
            .ok()??;
        TypeInformation::new(&Bytes(bytes)).ok().map(Self)
    }

    /// Pins those of an object, if a generation has none yet.
    ///
    /// # Errors
    /// If the object has none, or the kernel refuses.
    pub(in crate::dataplane) fn pin(object: &[u8], generation: &Generation) -> Result<()> {
        let path = generation.layout();
        if path.exists() {
            return Ok(());
        }
        let section = object::File::parse(object)?;
        let section = section.section_by_name(".BTF").context("the eBPF object has no BTF")?;
        let types = section.data()?;
        let map = BytesMap::of_one_value(u32::try_from(types.len())?).context("cannot make a map for the layout")?;
        map.set(&0_u32.to_ne_bytes(), types, Update::Any)?;
        map.pin(&path).with_context(|| format!("cannot pin {}", path.display()))
    }

    /// Key and value of a table; `None` if it is unknown.
    pub(super) fn table(&self, spec_name: &str, map: &BytesMap) -> Option<(Record, Record)> {
        let variable = self.0.get().values().find_map(|kind| match kind {
            TypeVariant::Var(variable) if variable.name().as_deref() == Some(spec_name) => Some(*variable.tid()),
            _ => None,
        })?;
        let TypeVariant::Struct(definition) = self.0.from_id(variable)? else {
            return None;
        };
        let record = |name: &str, size: u32| {
            let member = definition
                .member_list()
                .iter()
                .find(|member| member.name().as_deref() == Some(name))?;
            let TypeVariant::Ptr(pointer) = self.0.from_id(member.tid())? else {
                return None;
            };
            let mut record = Record {
                size: size as usize,
                ..Record::default()
            };
            record.read(&self.0, *pointer.tid(), String::new(), 0)?;
            (self.0.size_of(*pointer.tid()).ok()? == record.size).then_some(record)
        };
        let info = map.info();
        Some((record("key", info.key_size)?, record("value", info.value_size)?))
    }
}

impl Record {
    fn read(&mut self, types: &TypeInformation, id: u32, name: String, offset: usize) -> Option<()> {
        match types.from_id(id)? {
            TypeVariant::Struct(structure) => {
                for member in structure.member_list() {
                    let Offset::ByteOffset(at) = member.offset() else {
                        return None;
                    };
                    let member_name = format!("{name}.{}", member.name().unwrap_or_default());
                    self.read(types, member.tid(), member_name, offset + usize::try_from(at).ok()?)?;
                }
            }
            TypeVariant::Typedef(other) => self.read(types, *other.tid(), name, offset)?,
            kind @ (TypeVariant::Int(_) | TypeVariant::Array(_)) => {
                let field = Field {
                    offset,
                    size: types.size_of(id).ok()?,
                    integer: matches!(kind, TypeVariant::Int(_)),
                };
                self.fields.insert(name, field);
            }
            _ => return None,
        }
        Some(())
    }
}

/// How the fields of one record become those of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Conversion {
    size: usize,
    /// From, to, and how many bytes
    parts: Vec<(usize, usize, usize)>,
}

impl Conversion {
    /// Between records that have the same fields, wherever they stand: keys. `None` if they haven't.
    pub(super) fn exact(from: &Record, to: &Record) -> Option<Self> {
        let same = |(name, field): (&String, &Field)| to.fields.get(name).is_some_and(|other| other.size == field.size);
        (from.fields.len() == to.fields.len() && from.fields.iter().all(same)).then(|| Self::of_common(from, to))
    }

    /// Of the fields that both have: values. The others are 0. `None` if none is common.
    pub(super) fn between(from: &Record, to: &Record) -> Option<Self> {
        let conversion = Self::of_common(from, to);
        (!conversion.parts.is_empty()).then_some(conversion)
    }

    fn of_common(from: &Record, to: &Record) -> Self {
        let part = |(name, field): (&String, &Field)| {
            let old = from.fields.get(name)?;
            let fits = old.size == field.size || old.integer && field.integer && old.size < field.size;
            fits.then_some((old.offset, field.offset, old.size))
        };
        Self {
            size: to.size,
            parts: to.fields.iter().filter_map(part).collect(),
        }
    }

    /// The bytes in the other layout.
    pub(super) fn apply(&self, bytes: &[u8]) -> Vec<u8> {
        let mut converted = vec![0; self.size];
        for &(from, to, size) in &self.parts {
            converted[to..to + size].copy_from_slice(&bytes[from..from + size]);
        }
        converted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(size: usize, fields: &[(&str, usize, usize, bool)]) -> Record {
        let field = |&(name, offset, size, integer): &(&str, usize, usize, bool)| {
            (name.to_owned(), Field { offset, size, integer })
        };
        Record {
            size,
            fields: fields.iter().map(field).collect(),
        }
    }

    #[test]
    fn fields_move_widen_and_begin_with_zero() {
        let old = record(
            8,
            &[("port", 0, 2, true), ("address", 2, 4, false), ("gone", 6, 2, true)],
        );
        let new = record(
            12,
            &[("address", 0, 4, false), ("port", 4, 4, true), ("new", 8, 4, true)],
        );
        let conversion = Conversion::between(&old, &new).expect("common fields");
        assert_eq!(
            conversion.apply(&[0x50, 0, 10, 0, 0, 7, 1, 1]),
            [10, 0, 0, 7, 0x50, 0, 0, 0, 0, 0, 0, 0]
        );
    }

    #[test]
    fn keys_need_the_same_fields() {
        let old = record(8, &[("a", 0, 4, true), ("b", 4, 4, true)]);
        let moved = record(8, &[("b", 0, 4, true), ("a", 4, 4, true)]);
        let longer = record(12, &[("a", 0, 8, true), ("b", 8, 4, true)]);
        let conversion = Conversion::exact(&old, &moved).expect("the same fields");
        assert_eq!(conversion.apply(&[1, 0, 0, 0, 2, 0, 0, 0]), [2, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(Conversion::exact(&old, &longer), None);
        assert_eq!(Conversion::between(&old, &record(4, &[("c", 0, 4, true)])), None);
    }
}
