//! Which Services are asked about.

use std::net::IpAddr;

use crate::model::{ObjectName, ServiceView, parse_ip};

/// Which Services are asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum About {
    /// All of them
    All,
    /// The one of this name
    Service(ObjectName),
    /// Those with this address
    Address(IpAddr),
    /// Those with this nodePort, of any protocol
    NodePort(u16),
}

impl About {
    /// As the query of a URL.
    pub fn to_query(&self) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        match self {
            Self::All => &mut query,
            Self::Service(name) => query.append_pair("service", &name.to_string()),
            Self::Address(address) => query.append_pair("address", &address.to_string()),
            Self::NodePort(port) => query.append_pair("nodePort", &port.to_string()),
        };
        query.finish()
    }

    /// From the query of a URL; none asks about all.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_query(query: &str) -> Result<Self, String> {
        let mut pairs = form_urlencoded::parse(query.as_bytes());
        let Some((key, value)) = pairs.next() else {
            return Ok(Self::All);
        };
        match &*key {
            "service" => match value.split_once('/') {
                Some((namespace, name)) => Ok(Self::Service(ObjectName {
                    namespace: namespace.to_owned(),
                    name: name.to_owned(),
                })),
                None => Err(format!("service={value}: NAMESPACE/NAME is meant")),
            },
            "address" => parse_ip(&value).map(Self::Address),
            "nodePort" => value
                .parse()
                .map(Self::NodePort)
                .map_err(|error| format!("nodePort={value}: {error}")),
            other => Err(format!("{other}: service, address and nodePort can be asked about")),
        }
    }

    /// Whether a Service is among them.
    pub(crate) fn is(&self, view: ServiceView<'_>) -> bool {
        match self {
            Self::All => true,
            Self::Service(name) => view.name == name,
            Self::Address(address) => view.service.addresses().any(|own| own == *address),
            Self::NodePort(port) => view.service.ports.iter().any(|own| own.node_port == Some(*port)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_is_understood() {
        let name = ObjectName {
            namespace: "default".to_owned(),
            name: "web".to_owned(),
        };
        for about in [
            About::All,
            About::Service(name),
            About::Address("10.96.0.1".parse().unwrap()),
            About::Address("fd00:10:96::1".parse().unwrap()),
            About::NodePort(30080),
        ] {
            assert_eq!(About::from_query(&about.to_query()), Ok(about));
        }
        for nonsense in ["service=web", "address=web", "nodePort=70000", "name=web"] {
            assert!(About::from_query(nonsense).is_err(), "{nonsense}");
        }
    }
}
