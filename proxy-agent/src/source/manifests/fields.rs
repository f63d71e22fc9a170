//! Names the field that the writer of an unknown one may have meant.

use std::cell::Cell;

use serde::{
    Deserialize, Deserializer, de,
    de::{
        IntoDeserializer, Visitor,
        value::{Error, MapDeserializer, SeqDeserializer},
    },
    forward_to_deserialize_any,
};

/// One step from an object to a field in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Into an element of a list
    Index(usize),
    /// Into a field of a structure or an entry of a map
    Field(String),
}

/// Steps as objects' field paths are written: `spec.ports[0].port`.
pub(super) fn path_text(steps: &[Step]) -> String {
    let texts = steps.iter().enumerate().map(|(index, step)| match step {
        Step::Index(index) => format!("[{index}]"),
        Step::Field(name) if index == 0 => name.clone(),
        Step::Field(name) => format!(".{name}"),
    });
    texts.collect()
}

/// The steps of a path that serde_ignored reports.
pub(super) fn steps(path: &serde_ignored::Path<'_>) -> Vec<Step> {
    use serde_ignored::Path;
    match path {
        Path::Root => Vec::new(),
        Path::Seq { parent, index } => with(parent, Step::Index(*index)),
        Path::Map { parent, key } => with(parent, Step::Field(key.clone())),
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => steps(parent),
    }
}

fn with(parent: &serde_ignored::Path<'_>, step: Step) -> Vec<Step> {
    let mut steps = steps(parent);
    steps.push(step);
    steps
}

/// The known field of `T` that is most like the unknown one at `path`, if one is like it.
pub(super) fn suggestion<T: for<'de> Deserialize<'de>>(path: &[Step]) -> Option<&'static str> {
    let (Step::Field(unknown), parent) = path.split_last()? else {
        return None;
    };
    let found = Cell::new(&[] as &'static [&'static str]);
    // Always an error: the probe has no values, it only follows the types.
    let _ = T::deserialize(Probe {
        path: parent,
        found: &found,
    });
    let distance = |known: &str| strsim::damerau_levenshtein(&known.to_lowercase(), &unknown.to_lowercase());
    let nearest = found.get().iter().copied().min_by_key(|known| distance(known))?;
    (distance(nearest) <= 1 + unknown.len() / 6).then_some(nearest)
}

/// A deserializer without input: it leads a type's own `Deserialize` along a path, and notes the field names of the
/// structure at its end.
#[derive(Clone, Copy)]
struct Probe<'a> {
    path: &'a [Step],
    found: &'a Cell<&'static [&'static str]>,
}

impl Probe<'_> {
    fn end<T>() -> Result<T, Error> {
        Err(de::Error::custom("the path ends here"))
    }

    fn enter<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let Some((step, path)) = self.path.split_first() else {
            return Self::end();
        };
        let inner = Self { path, ..self };
        match step {
            Step::Field(name) => visitor.visit_map(MapDeserializer::new([(name.as_str(), inner)].into_iter())),
            Step::Index(_) => visitor.visit_seq(SeqDeserializer::new([inner].into_iter())),
        }
    }
}

impl IntoDeserializer<'_, Error> for Probe<'_> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Self::end()
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        if self.path.is_empty() {
            self.found.set(fields);
        }
        self.enter(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.enter(visitor)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.enter(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct tuple
        tuple_struct enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service;

    use super::*;

    fn field(name: &str) -> Step {
        Step::Field(name.to_owned())
    }

    #[test]
    fn the_nearest_field_is_found_at_any_depth() {
        let cluster_ip = [field("spec"), field("clusterIp")];
        assert_eq!(suggestion::<Service>(&cluster_ip), Some("clusterIP"));
        let target_port = [field("spec"), field("ports"), Step::Index(3), field("targetport")];
        assert_eq!(suggestion::<Service>(&target_port), Some("targetPort"));
        assert_eq!(suggestion::<Service>(&[field("sepc")]), Some("spec"));
        assert_eq!(suggestion::<Service>(&[field("spec"), field("colour")]), None);
    }

    #[test]
    fn a_path_reads_as_in_the_api() {
        let path = [field("spec"), field("ports"), Step::Index(3), field("port")];
        assert_eq!(path_text(&path), "spec.ports[3].port");
    }
}
