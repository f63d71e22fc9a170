//! The node's view of Services, EndpointSlices and its Node, and which Services changed. Knows no BPF.

use std::fmt;

/// Namespace and name of an object; the namespace is empty for a Node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName {
    /// Namespace
    pub namespace: String,
    /// Name
    pub name: String,
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

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            write!(f, "{}: {}", self.object, self.reason)
        } else {
            write!(f, "{}: {}: {}", self.object, self.field, self.reason)
        }
    }
}
