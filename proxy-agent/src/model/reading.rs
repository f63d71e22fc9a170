//! Objects as the model takes them: what this node needs to know of each, and what is wrong with it.
//!
//! A source reads each object into this as soon as it has it, and drops the object: of a large cluster's objects, which say a
//! hundred times as much, only a few are held at any time.

use ipnet::IpNet;
use k8s_openapi::{
    Metadata,
    api::{core::v1 as core, discovery::v1 as discovery, networking::v1 as networking},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::{Node, ObjectName, Problem, Service, object::Complaints, service_range, slice::OwnedSlice};

/// A kind of object that the model knows.
pub trait Kind: Metadata<Ty = ObjectMeta> {
    /// What the model keeps of one
    type Content;

    /// Reads an object for the node of this name; `content` is `None` if it is no concern of this proxy.
    fn read(&self, node_name: &str) -> Reading<Self::Content>;
}

/// An object that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading<T> {
    /// Its name
    pub name: ObjectName,
    /// What it says, if it is this proxy's
    pub content: Option<T>,
    /// What is wrong with it
    pub problems: Vec<Problem>,
}

impl<T> Reading<T> {
    fn new(metadata: &ObjectMeta, kind: &str, parse: impl FnOnce(&mut Complaints) -> Option<T>) -> Self {
        let name = ObjectName::of(metadata);
        let mut complaints = Complaints::about(kind, &name);
        let content = parse(&mut complaints);
        Self {
            name,
            content,
            problems: complaints.into_problems(),
        }
    }
}

impl Kind for core::Service {
    type Content = Service;

    fn read(&self, _node_name: &str) -> Reading<Service> {
        Reading::new(&self.metadata, "Service", |complaints| Service::parse(self, complaints))
    }
}

impl Kind for discovery::EndpointSlice {
    type Content = OwnedSlice;

    fn read(&self, node_name: &str) -> Reading<OwnedSlice> {
        Reading::new(&self.metadata, "EndpointSlice", |complaints| {
            OwnedSlice::parse(self, node_name, complaints)
        })
    }
}

impl Kind for core::Node {
    type Content = Node;

    fn read(&self, _node_name: &str) -> Reading<Node> {
        Reading::new(&self.metadata, "Node", |complaints| Some(Node::parse(self, complaints)))
    }
}

impl Kind for networking::ServiceCIDR {
    type Content = Vec<IpNet>;

    fn read(&self, _node_name: &str) -> Reading<Vec<IpNet>> {
        Reading::new(&self.metadata, "ServiceCIDR", |complaints| {
            Some(service_range::parse(self, complaints))
        })
    }
}
