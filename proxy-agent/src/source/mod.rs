//! Where objects come from. Invariant: a source knows nothing of the dataplane; it only tells the model what is.
//!
//! Both sources speak the same language: [`Event`]s over a channel. A source never stops at bad input: it reports a
//! [`crate::model::Problem`] and goes on with the rest.

pub mod manifests;

use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
    networking::v1::ServiceCIDR,
};

use crate::model::ObjectName;

pub mod kubernetes;

/// What a source tells the model.
#[derive(Clone, Debug)]
pub enum Event {
    /// Services changed
    Service(Change<Service>),
    /// EndpointSlices changed
    EndpointSlice(Change<EndpointSlice>),
    /// This node's Node object changed
    Node(Change<Node>),
    /// The ranges that addresses of Services come from changed
    ServiceCIDR(Change<ServiceCIDR>),
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
