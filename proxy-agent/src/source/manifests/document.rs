//! Reads the objects that a file holds.

use std::{fmt, path::Path};

use k8s_openapi::{
    Metadata,
    api::{
        core::v1::{Node, Service},
        discovery::v1::EndpointSlice,
        networking::v1::ServiceCIDR,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::fields::{path_text, steps, suggestion};
use crate::model::{ObjectName, Problem};

/// An object of a kind that this proxy reads.
#[derive(Clone, Debug)]
pub(super) enum Object {
    Service(Box<Service>),
    EndpointSlice(Box<EndpointSlice>),
    ServiceCIDR(Box<ServiceCIDR>),
    Node(Box<Node>),
}

/// Kind of an [`Object`]; each needs those after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum ObjectKind {
    Service,
    EndpointSlice,
    ServiceCIDR,
    Node,
}

/// Kind and name of an [`Object`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) kind: ObjectKind,
    pub(super) name: ObjectName,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.kind, self.name)
    }
}

impl Object {
    pub(super) const fn kind(&self) -> ObjectKind {
        match self {
            Self::Service(_) => ObjectKind::Service,
            Self::EndpointSlice(_) => ObjectKind::EndpointSlice,
            Self::ServiceCIDR(_) => ObjectKind::ServiceCIDR,
            Self::Node(_) => ObjectKind::Node,
        }
    }

    pub(super) fn key(&self) -> Key {
        let metadata = match self {
            Self::Service(object) => object.metadata(),
            Self::EndpointSlice(object) => object.metadata(),
            Self::ServiceCIDR(object) => object.metadata(),
            Self::Node(object) => object.metadata(),
        };
        Key {
            kind: self.kind(),
            name: ObjectName::of(metadata),
        }
    }
}

/// What a file holds.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// The objects that could be read
    pub(super) objects: Vec<Object>,
    /// What is wrong
    pub(super) problems: Vec<Problem>,
    /// Whether there may be objects in the file that could not be read
    pub(super) has_unread: bool,
}

impl Contents {
    /// Reads a file's text: JSON if it is called so, YAML otherwise.
    pub(super) fn parse(file: &Path, text: &str) -> Self {
        let mut contents = Self::default();
        let is_json = file.extension().is_some_and(|extension| extension == "json");
        let documents: Box<dyn Iterator<Item = Result<Value, String>>> = if is_json {
            let documents = serde_json::Deserializer::from_str(text).into_iter();
            Box::new(documents.map(|document| document.map_err(|error| error.to_string())))
        } else {
            Box::new(serde_yaml_ng::Deserializer::from_str(text).map(read_yaml))
        };
        for (index, document) in documents.enumerate() {
            let place = format!("{} document {}", file.display(), index + 1);
            match document {
                Ok(value) => contents.add(&place, value, None),
                Err(reason) => {
                    contents.reject(place, "", reason);
                    // The reader has lost its place: what follows would be noise.
                    break;
                }
            }
        }
        contents
    }

    /// Adds the objects of a document; `default` is the type of those that don't name theirs.
    fn add(&mut self, place: &str, mut document: Value, default: Option<(&str, &str)>) {
        if document.is_null() {
            return;
        }
        if !document.is_object() {
            self.reject(place.to_owned(), "", "is no object: it has no fields");
            return;
        }
        let text = |field: &str| document.get(field).and_then(Value::as_str).map(str::to_owned);
        let Some(kind) = text("kind").or(default.map(|(_, kind)| kind.to_owned())) else {
            self.reject(place.to_owned(), "kind", "missing");
            return;
        };
        let Some(version) = text("apiVersion").or(default.map(|(version, _)| version.to_owned())) else {
            self.reject(place.to_owned(), "apiVersion", "missing");
            return;
        };
        match (version.as_str(), kind.as_str()) {
            ("v1", "Service") => self.read(place, "Service", document, Object::Service),
            ("v1", "Node") => self.read(place, "Node", document, Object::Node),
            ("networking.k8s.io/v1", "ServiceCIDR") => self.read(place, "ServiceCIDR", document, Object::ServiceCIDR),
            ("discovery.k8s.io/v1", "EndpointSlice") => {
                self.read(place, "EndpointSlice", document, Object::EndpointSlice);
            }
            (other, "EndpointSlice") if other.starts_with("discovery.k8s.io/") => {
                let reason = format!("{other} is no longer served by Kubernetes: write discovery.k8s.io/v1");
                self.reject(place.to_owned(), "apiVersion", reason);
            }
            (version, list) if list.ends_with("List") && document.get("items").is_some_and(Value::is_array) => {
                let item = list.trim_end_matches("List");
                let default = (!item.is_empty()).then_some((version, item));
                if let Some(Value::Array(items)) = document.get_mut("items").map(Value::take) {
                    for (index, item) in items.into_iter().enumerate() {
                        self.add(&format!("{place} items[{index}]"), item, default);
                    }
                }
            }
            // Files hold Deployments and much else beside what concerns a proxy.
            _ => {}
        }
    }

    fn read<T>(&mut self, place: &str, kind: &str, mut document: Value, wrap: fn(Box<T>) -> Object)
    where
        T: DeserializeOwned + Metadata<Ty = ObjectMeta>,
    {
        // In a list of one kind the items need not name it, but the type wants to see it.
        if let Value::Object(fields) = &mut document {
            fields.insert("kind".to_owned(), T::KIND.into());
            fields.insert("apiVersion".to_owned(), T::API_VERSION.into());
        }
        let name = document
            .pointer("/metadata/name")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let namespace = document.pointer("/metadata/namespace").and_then(Value::as_str);
        let place = match namespace {
            _ if name.is_empty() => format!("{place} ({kind})"),
            Some(namespace) => format!("{place} ({kind} {namespace}/{name})"),
            None => format!("{place} ({kind} {name})"),
        };
        if name.is_empty() {
            self.reject(place, "metadata.name", "missing");
            return;
        }
        let mut unknown = Vec::new();
        let mut note = |path: serde_ignored::Path<'_>| unknown.push(steps(&path));
        let watched = serde_ignored::Deserializer::new(&document, &mut note);
        match serde_path_to_error::deserialize::<_, T>(watched) {
            Ok(mut object) => {
                let namespace = &mut object.metadata_mut().namespace;
                let is_namespaced = !matches!(kind, "Node" | "ServiceCIDR");
                if is_namespaced && namespace.as_ref().is_none_or(String::is_empty) {
                    *namespace = Some("default".to_owned());
                }
                self.objects.push(wrap(Box::new(object)));
            }
            Err(error) => {
                let field = error.path().to_string();
                let field = if field == "." { "" } else { &field };
                self.reject(place.clone(), field, error.inner().to_string());
            }
        }
        for path in unknown {
            let reason = match suggestion::<T>(&path) {
                Some(known) => format!("unknown field; did you mean {known}?"),
                None => "unknown field".to_owned(),
            };
            self.complain(place.clone(), &path_text(&path), reason);
        }
    }

    fn reject(&mut self, object: String, field: &str, reason: impl Into<String>) {
        self.has_unread = true;
        self.complain(object, field, reason);
    }

    fn complain(&mut self, object: String, field: &str, reason: impl Into<String>) {
        self.problems.push(Problem {
            object,
            field: field.to_owned(),
            reason: reason.into(),
        });
    }
}

/// Reads a YAML document as kubectl does: as JSON that is written differently.
fn read_yaml(document: serde_yaml_ng::Deserializer<'_>) -> Result<Value, String> {
    let mut value = serde_yaml_ng::Value::deserialize(document).map_err(|error| error.to_string())?;
    value.apply_merge().map_err(|error| error.to_string())?;
    serde_json::to_value(value).map_err(|error| error.to_string())
}
