//! Any sequence of events ends where a fresh start with the final objects ends, and names every Service whose plan
//! changed on the way.

use std::collections::BTreeMap;

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use proptest::prelude::*;
use proxy_agent::source::{Change, Event};
use serde_json::json;

use crate::world::{World, name, node, service_object, slice_object};

/// Few names and addresses, so that they clash.
const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const ADDRESSES: [&str; 4] = ["10.96.0.1", "10.96.0.2", "None", "nowhere"];

#[derive(Clone, Debug)]
enum Step {
    Service(Box<Service>),
    ServiceGone(&'static str),
    Services(Vec<Service>),
    Slice(Box<EndpointSlice>),
    SliceGone(&'static str),
    Slices(Vec<EndpointSlice>),
    Zone(&'static str),
    Settle,
}

prop_compose! {
    fn any_service()(
        index in 0..NAMES.len(),
        address in prop::sample::select(&ADDRESSES[..]),
        port in 80..82,
        local in any::<bool>(),
        year in prop::option::of(2020..2023),
        headless in prop::bool::weighted(0.1),
    ) -> Service {
        let policy = if local { "Local" } else { "Cluster" };
        let spec = json!({"clusterIPs": [address], "internalTrafficPolicy": policy, "ports": [{"port": port}]});
        let mut service = service_object(NAMES[index], &spec);
        let time = year.map(|year| serde_json::from_value(json!(format!("{year}-01-01T00:00:00Z"))).expect("a time"));
        service.metadata.creation_timestamp = time;
        service.metadata.labels =
            headless.then(|| [("service.kubernetes.io/headless".to_owned(), String::new())].into());
        service
    }
}

prop_compose! {
    fn any_slice()(
        index in 0..NAMES.len(),
        owner in 0..NAMES.len(),
        endpoints in prop::collection::vec((1..5, any::<bool>(), any::<bool>(), 0..3), 0..4),
    ) -> EndpointSlice {
        let endpoints: Vec<_> = endpoints.into_iter().map(|(octet, local, ready, zone)| json!({
            "addresses": [format!("10.0.0.{octet}")],
            "nodeName": if local { crate::world::NODE } else { "elsewhere" },
            "conditions": {"ready": ready, "terminating": !ready},
            "hints": {"forZones": [{"name": format!("zone-{zone}")}]},
        })).collect();
        slice_object(NAMES[index], NAMES[owner], "IPv4", &json!([{"name": "", "port": 8080}]), &json!(endpoints))
    }
}

fn any_step() -> impl Strategy<Value = Step> {
    let any_name = || prop::sample::select(&NAMES[..]);
    prop_oneof![
        6 => any_service().prop_map(|service| Step::Service(Box::new(service))),
        2 => any_name().prop_map(Step::ServiceGone),
        1 => prop::collection::vec(any_service(), 0..4).prop_map(Step::Services),
        6 => any_slice().prop_map(|slice| Step::Slice(Box::new(slice))),
        2 => any_name().prop_map(Step::SliceGone),
        1 => prop::collection::vec(any_slice(), 0..4).prop_map(Step::Slices),
        1 => prop::sample::select(&["zone-0", "zone-1", ""][..]).prop_map(Step::Zone),
        6 => Just(Step::Settle),
    ]
}

/// The objects that there are at the end.
#[derive(Default)]
struct Objects {
    services: BTreeMap<String, Service>,
    slices: BTreeMap<String, EndpointSlice>,
    zone: &'static str,
}

impl Objects {
    fn follow(&mut self, step: &Step) -> Option<Event> {
        let service_name = |service: &Service| service.metadata.name.clone().expect("a name");
        let slice_name = |slice: &EndpointSlice| slice.metadata.name.clone().expect("a name");
        Some(match step.clone() {
            Step::Service(service) => {
                self.services.insert(service_name(&service), (*service).clone());
                Event::Service(Change::Apply(service))
            }
            Step::ServiceGone(gone) => {
                self.services.remove(gone);
                Event::Service(Change::Delete(name(gone)))
            }
            Step::Services(services) => {
                self.services = services
                    .iter()
                    .map(|service| (service_name(service), service.clone()))
                    .collect();
                Event::Service(Change::Replace(services))
            }
            Step::Slice(slice) => {
                self.slices.insert(slice_name(&slice), (*slice).clone());
                Event::EndpointSlice(Change::Apply(slice))
            }
            Step::SliceGone(gone) => {
                self.slices.remove(gone);
                Event::EndpointSlice(Change::Delete(name(gone)))
            }
            Step::Slices(slices) => {
                self.slices = slices.iter().map(|slice| (slice_name(slice), slice.clone())).collect();
                Event::EndpointSlice(Change::Replace(slices))
            }
            Step::Zone(zone) => {
                self.zone = zone;
                node(&json!({"topology.kubernetes.io/zone": zone}))
            }
            Step::Settle => return None,
        })
    }

    fn fresh(self) -> World {
        let mut world = World::unlisted();
        world.apply([
            node(&json!({"topology.kubernetes.io/zone": self.zone})),
            Event::Service(Change::Replace(self.services.into_values().collect())),
            Event::EndpointSlice(Change::Replace(self.slices.into_values().collect())),
        ]);
        world
    }
}

proptest! {
    #[test]
    fn any_way_leads_to_the_plan_of_a_fresh_start(steps in prop::collection::vec(any_step(), 0..60)) {
        let mut world = World::empty();
        let mut objects = Objects::default();
        for step in &steps {
            match objects.follow(step) {
                Some(event) => world.model.apply(event),
                None => { world.settle(); }
            }
        }
        world.settle();
        let fresh = objects.fresh();
        prop_assert_eq!(&world.frontends, &fresh.frontends);
        prop_assert_eq!(world.problems(), fresh.problems());
    }
}
