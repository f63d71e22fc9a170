//! The name of a service port in the table `service_names`.

use proxy_common::layout::ServiceName;

use crate::plan::{Protocol, ServicePort};

/// The table's form of a name; `None` if a part is longer than Kubernetes allows (63 bytes).
pub fn encode(port: &ServicePort) -> Option<ServiceName> {
    Some(ServiceName {
        namespace: padded(&port.namespace)?,
        name: padded(&port.service)?,
        port_name: padded(&port.port_name)?,
        protocol: port.protocol.number(),
    })
}

/// The name that stands in the table; `None` if it is none that [`encode`] makes.
pub fn decode(name: &ServiceName) -> Option<ServicePort> {
    Some(ServicePort {
        namespace: unpadded(&name.namespace)?,
        service: unpadded(&name.name)?,
        port_name: unpadded(&name.port_name)?,
        protocol: Protocol::from_number(name.protocol)?,
    })
}

fn padded<const N: usize>(text: &str) -> Option<[u8; N]> {
    const LONGEST: usize = 63;
    let mut bytes = [0; N];
    bytes
        .get_mut(..text.len())
        .filter(|_| text.len() <= LONGEST)?
        .copy_from_slice(text.as_bytes());
    Some(bytes)
}

fn unpadded(bytes: &[u8]) -> Option<String> {
    let text = bytes.split(|&byte| byte == 0).next()?;
    std::str::from_utf8(text).ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_the_table() {
        let port = ServicePort {
            namespace: "n".repeat(63),
            service: "web".to_owned(),
            port_name: String::new(),
            protocol: Protocol::Udp,
        };
        assert_eq!(encode(&port).as_ref().and_then(decode), Some(port.clone()));
        let too_long = ServicePort {
            service: "s".repeat(64),
            ..port
        };
        assert_eq!(encode(&too_long), None);
    }
}
