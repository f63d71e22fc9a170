//! Health check node ports: load balancers of Services with external policy Local ask here whether this node has an endpoint
//! (behaviour.md 8.1-8.3).

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use hyper::{
    StatusCode,
    header::{HeaderName, HeaderValue},
};
use tokio::task::JoinSet;

use super::{Moment, ProxyHealth};
use crate::{
    http::{self, Answer},
    model::ObjectName,
};

/// Header with the number of endpoints, which load balancers may weigh nodes by.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// What a Service asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// Where it is asked for, host byte order
    pub port: u16,
    /// Its ready endpoints on this node
    pub endpoints: usize,
}

/// The ports that are open now; dropped, they are closed.
#[derive(Debug)]
pub struct HealthCheckPorts {
    health: ProxyHealth,
    open: BTreeMap<ObjectName, Open>,
}

/// The port of one Service.
#[derive(Debug)]
struct Open {
    port: u16,
    endpoints: Arc<AtomicUsize>,
    /// One for each address; they end with this value, and all connections with them
    _servers: JoinSet<()>,
}

impl HealthCheckPorts {
    /// No ports; what is told of the proxy is `health`.
    pub const fn new(health: ProxyHealth) -> Self {
        let open = BTreeMap::new();
        Self { health, open }
    }

    /// Opens, closes and updates ports, so that they are these, at these addresses. A port that can't be opened is given to
    /// `refused` with the reason, and tried again with the next call. Needs a tokio runtime.
    pub fn sync(
        &mut self,
        wanted: &BTreeMap<ObjectName, HealthCheck>,
        addresses: &[IpAddr],
        mut refused: impl FnMut(&ObjectName, String),
    ) {
        // First, as a port may go from one Service to another.
        self.open
            .retain(|service, open| wanted.get(service).is_some_and(|check| check.port == open.port));
        for (service, check) in wanted {
            if let Some(open) = self.open.get(service) {
                open.endpoints.store(check.endpoints, Ordering::Relaxed);
                continue;
            }
            match Open::listen(service, *check, addresses, &self.health) {
                Ok(open) => _ = self.open.insert(service.clone(), open),
                Err(error) => refused(
                    service,
                    format!(
                        "cannot serve the health check of {service} at port {}: {error}",
                        check.port
                    ),
                ),
            }
        }
    }
}

impl Open {
    fn listen(
        service: &ObjectName,
        check: HealthCheck,
        addresses: &[IpAddr],
        health: &ProxyHealth,
    ) -> io::Result<Self> {
        let endpoints = Arc::new(AtomicUsize::new(check.endpoints));
        // All of them or none.
        let listeners = addresses
            .iter()
            .map(|address| http::listen(SocketAddr::new(*address, check.port)))
            .collect::<io::Result<Vec<_>>>()?;
        let mut servers = JoinSet::new();
        for listener in listeners {
            let (service, endpoints, health) = (service.clone(), endpoints.clone(), health.clone());
            // Whatever is asked for, this is what is answered.
            servers.spawn(http::serve(listener, move |_request| {
                let healthy = health.is_healthy(Moment::now());
                let answer = answer(&service, endpoints.load(Ordering::Relaxed), healthy);
                async move { answer }
            }));
        }
        Ok(Self {
            port: check.port,
            endpoints,
            _servers: servers,
        })
    }
}

fn answer(service: &ObjectName, endpoints: usize, healthy: bool) -> Answer {
    let status = if endpoints > 0 && healthy {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let mut answer = http::answer(status, "application/json", body(service, endpoints, healthy));
    answer.headers_mut().insert(WEIGHT, HeaderValue::from(endpoints));
    answer
}

/// Indented by tabs, without a newline at the end, as scripts may compare it; names of objects need no escaping.
fn body(ObjectName { namespace, name }: &ObjectName, endpoints: usize, healthy: bool) -> String {
    format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{namespace}\",\n\t\t\"name\": \"{name}\"\n\t}},\n\t\"localEndpoints\": \
         {endpoints},\n\t\"serviceProxyHealthy\": {healthy}\n}}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service() -> ObjectName {
        ObjectName {
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
        }
    }

    /// behaviour.md 8.2: what is said, to the byte.
    #[test]
    fn rule_8_2_the_body_is_that_of_kube_proxy() {
        let expected = "{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": 2,\n\t\
                        \"serviceProxyHealthy\": true\n}";
        assert_eq!(body(&service(), 2, true), expected);
    }

    /// behaviour.md 8.2: 200 only with an endpoint and a healthy proxy; the weight is told either way.
    #[test]
    fn rule_8_2_status_and_headers() {
        for (endpoints, healthy, status) in [(2, true, 200), (2, false, 503), (0, true, 503), (0, false, 503)] {
            let answer = answer(&service(), endpoints, healthy);
            assert_eq!(answer.status().as_u16(), status);
            let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
            assert_eq!(header("x-load-balancing-endpoint-weight"), endpoints.to_string());
            assert_eq!(header("content-type"), "application/json");
            assert_eq!(header("x-content-type-options"), "nosniff");
        }
    }
}
