//! What is served while traffic is measured: numbered Services, each with one TCP port and two endpoints. Real endpoints
//! stand behind the one in the middle only; it is the one that is measured, so that a list of rules is walked halfway.

use std::net::{Ipv4Addr, SocketAddrV4};

/// The port of every Service.
const PORT: u16 = 80;

/// Services for one measurement.
#[derive(Clone, Copy, Debug)]
pub(super) struct Workload {
    /// How many Services
    pub(super) services: u32,
    /// The endpoints of the measured one
    pub(super) endpoints: [SocketAddrV4; 2],
}

/// One Service of a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Service {
    /// Name, unique in the namespace `bench`
    pub(super) name: String,
    /// ClusterIP and port
    pub(super) frontend: SocketAddrV4,
    /// Endpoints
    pub(super) endpoints: [SocketAddrV4; 2],
}

impl Workload {
    /// All Services.
    pub(super) fn services(self) -> impl Iterator<Item = Service> {
        (0..self.services).map(move |number| Service {
            name: format!("service-{number}"),
            frontend: frontend(number),
            endpoints: if number == self.measured() {
                self.endpoints
            } else {
                others(number)
            },
        })
    }

    /// The address and port to measure.
    pub(super) fn frontend(self) -> SocketAddrV4 {
        frontend(self.measured())
    }

    const fn measured(self) -> u32 {
        self.services / 2
    }
}

/// From 10.96.0.0/12, the range that kubeadm gives Services.
fn frontend(number: u32) -> SocketAddrV4 {
    SocketAddrV4::new(
        Ipv4Addr::from_bits(Ipv4Addr::new(10, 96, 0, 1).to_bits() + number),
        PORT,
    )
}

/// Endpoints of nobody, on other nodes of the lab's pod network.
fn others(number: u32) -> [SocketAddrV4; 2] {
    let first = Ipv4Addr::new(10, 244, 16, 0).to_bits() + 2 * number;
    [first, first + 1].map(|address| SocketAddrV4::new(Ipv4Addr::from_bits(address), 8080))
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Three Services; the one in the middle has two endpoints in one pod.
    pub(in crate::bench) fn small() -> Workload {
        let pod = Ipv4Addr::new(10, 244, 1, 11);
        Workload {
            services: 3,
            endpoints: [SocketAddrV4::new(pod, 8080), SocketAddrV4::new(pod, 8081)],
        }
    }

    #[test]
    fn only_the_measured_service_has_real_endpoints() {
        let workload = small();
        let real: Vec<_> = workload
            .services()
            .filter(|service| service.endpoints == workload.endpoints)
            .map(|s| s.frontend)
            .collect();
        assert_eq!(real, [workload.frontend()]);
    }

    #[test]
    fn no_two_services_share_anything() {
        let workload = Workload {
            services: 10_000,
            ..small()
        };
        let frontends: HashSet<_> = workload.services().map(|service| service.frontend).collect();
        let endpoints: HashSet<_> = workload.services().flat_map(|service| service.endpoints).collect();
        assert_eq!((frontends.len(), endpoints.len()), (10_000, 20_000));
    }
}
