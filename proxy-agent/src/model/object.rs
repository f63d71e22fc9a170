//! Names of objects, and what is wrong with them.

use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// Namespace and name of an object; the namespace is empty for a Node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName {
    /// Namespace
    pub namespace: String,
    /// Name
    pub name: String,
}

impl ObjectName {
    /// The name that an object's metadata gives it; missing parts are empty.
    pub fn of(metadata: &ObjectMeta) -> Self {
        Self {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
        }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// Something wrong with an input: the object, the field and the reason. It never stops the rest.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub struct Problem {
    /// Kind and name, such as `Service default/web`, or a file's path
    pub object: String,
    /// Path of the field, such as `spec.clusterIPs[0]`; empty when the whole object is meant
    pub field: String,
    /// What is wrong, and what to do where that isn't obvious
    pub reason: String,
}

impl Problem {
    /// The Service that it is about, if it is about one.
    pub fn service(&self) -> Option<ObjectName> {
        let (namespace, name) = self.object.strip_prefix("Service ")?.split_once('/')?;
        Some(ObjectName {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            write!(f, "{}: {}", self.object, self.reason)
        } else {
            write!(f, "{}: {}: {}", self.object, self.field, self.reason)
        }
    }
}

/// Collects what is wrong with one object while it is read.
#[derive(Debug)]
pub(super) struct Complaints {
    object: String,
    problems: Vec<Problem>,
}

impl Complaints {
    /// For the object of this kind and name.
    pub(super) fn about(kind: &str, name: &ObjectName) -> Self {
        Self {
            object: format!("{kind} {name}"),
            problems: Vec::new(),
        }
    }

    /// Notes that a field is wrong.
    pub(super) fn add(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        self.problems.push(Problem {
            object: self.object.clone(),
            field: field.into(),
            reason: reason.into(),
        });
    }

    /// All that was noted.
    pub(super) fn into_problems(self) -> Vec<Problem> {
        self.problems
    }
}
