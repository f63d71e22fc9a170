//! What the tests of this module have in common.

use super::ServicePort;
use crate::{
    dataplane::{memory::Memory, service_name, table::Table as _},
    plan::Protocol,
};

/// Gives a service port its name in the tables: `default/web:http`, TCP.
pub(super) fn publish_web(memory: &Memory, id: u32) -> ServicePort {
    let port = ServicePort {
        namespace: "default".to_owned(),
        service: "web".to_owned(),
        port_name: "http".to_owned(),
        protocol: Protocol::Tcp,
    };
    let name = service_name::encode(&port).expect("short");
    memory.service_names.clone().insert(&id, &name).expect("room");
    port
}
