//! Where objects come from. Invariant: a source knows nothing of the dataplane; it only tells the model what is.
//!
//! Both sources speak the same language: [`Event`]s over a channel. A source never stops at bad input: it reports a
//! [`crate::model::Problem`] and goes on with the rest.

pub mod manifests;

use ipnet::IpNet;

use crate::model::{Kind, Node, ObjectName, OwnedSlice, Reading, Service};

pub mod kubernetes;

/// What a source tells the model.
#[derive(Clone, Debug)]
pub enum Event {
    /// Services changed
    Service(Change<Reading<Service>>),
    /// EndpointSlices changed
    EndpointSlice(Change<Reading<OwnedSlice>>),
    /// This node's Node object changed
    Node(Change<Reading<Node>>),
    /// The ranges that addresses of Services come from changed
    ServiceCIDR(Change<Reading<Vec<IpNet>>>),
    /// What is wrong with the input of this origin now (a file, a watch); an empty list takes back what was said before
    Problems {
        /// The file or watch
        origin: String,
        /// All that is wrong with it
        problems: Vec<crate::model::Problem>,
        /// Whether it may hold objects that were never told, because they could not be read: a listing that leaves them
        /// out doesn't mean that they are gone
        has_unread: bool,
    },
}

/// How the objects of one kind changed.
#[derive(Clone, Debug)]
pub enum Change<T> {
    /// These are all objects there are: what is not among them is gone. The first of these says that the kind has been
    /// listed.
    Replace(Vec<T>),
    /// One object is new or changed
    Apply(Box<T>),
    /// One object is gone
    Delete(ObjectName),
}

impl<K: Kind> Change<K> {
    /// Its objects, read for the node of this name.
    pub fn read(self, node_name: &str) -> Change<Reading<K::Content>> {
        match self {
            Self::Replace(objects) => {
                Change::Replace(objects.into_iter().map(|object| object.read(node_name)).collect())
            }
            Self::Apply(object) => Change::Apply(Box::new(object.read(node_name))),
            Self::Delete(name) => Change::Delete(name),
        }
    }
}
