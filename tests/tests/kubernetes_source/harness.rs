//! The source under test, at work: its events one by one, with a deadline.

use std::{
    collections::{BTreeSet, VecDeque},
    path::Path,
    time::Duration,
};

use ipnet::IpNet;
use proxy_agent::{
    model::{Node, OwnedSlice, Problem, Reading, Service},
    source::{Change, Event, kubernetes::Kubernetes},
};
use proxy_tests::api_server::{ApiServer, Resource};
use tempfile::TempDir;
use tokio::{runtime::Runtime, sync::mpsc, time::timeout};

pub(super) const NODE_NAME: &str = "worker-1";

/// How long an event may take. Only a failing test waits that long.
const PATIENCE: Duration = Duration::from_secs(20);

/// The source under test, at work.
pub(super) struct Source {
    pub(super) runtime: Runtime,
    pub(super) events: mpsc::Receiver<Event>,
    /// Events of other kinds that arrived meanwhile
    others: VecDeque<Event>,
    _directory: TempDir,
}

impl Source {
    pub(super) fn start(server: &ApiServer) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let kubeconfig = server.kubeconfig(directory.path()).expect("a kubeconfig");
        Self::start_with(directory, &kubeconfig)
    }

    pub(super) fn start_with(directory: TempDir, kubeconfig: &Path) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let source = runtime
            .block_on(Kubernetes::new(Some(kubeconfig), NODE_NAME.to_owned()))
            .expect("the kubeconfig is usable");
        let (sender, events) = mpsc::channel(16);
        runtime.spawn(source.run(sender));
        Self {
            runtime,
            events,
            others: VecDeque::new(),
            _directory: directory,
        }
    }

    /// Starts, and waits until all kinds are listed and watched.
    pub(super) fn start_watching(server: &ApiServer) -> Self {
        let mut source = Self::start(server);
        source.service();
        source.slice();
        source.node();
        source.service_range();
        server.wait_for_watches(Resource::ALL.len());
        source
    }

    /// The next event that is wanted; the others stay.
    fn next<T>(&mut self, what: &str, wanted: impl Fn(&Event) -> Option<T>) -> T {
        if let Some((index, found)) = self
            .others
            .iter()
            .enumerate()
            .find_map(|(index, event)| Some((index, wanted(event)?)))
        {
            self.others.remove(index);
            return found;
        }
        loop {
            let event = self
                .runtime
                .block_on(async { timeout(PATIENCE, self.events.recv()).await });
            let event = event.unwrap_or_else(|_| panic!("no {what} within {PATIENCE:?}; but {:?}", self.others));
            let event = event.expect("the source never ends by itself");
            match wanted(&event) {
                Some(found) => return found,
                None => self.others.push_back(event),
            }
        }
    }

    pub(super) fn service(&mut self) -> Change<Reading<Service>> {
        self.next("Service event", |event| match event {
            Event::Service(change) => Some(change.clone()),
            _ => None,
        })
    }

    pub(super) fn slice(&mut self) -> Change<Reading<OwnedSlice>> {
        self.next("EndpointSlice event", |event| match event {
            Event::EndpointSlice(change) => Some(change.clone()),
            _ => None,
        })
    }

    pub(super) fn node(&mut self) -> Change<Reading<Node>> {
        self.next("Node event", |event| match event {
            Event::Node(change) => Some(change.clone()),
            _ => None,
        })
    }

    pub(super) fn service_range(&mut self) -> Change<Reading<Vec<IpNet>>> {
        self.next("ServiceCIDR event", |event| match event {
            Event::ServiceCIDR(change) => Some(change.clone()),
            _ => None,
        })
    }

    /// Whether no problem was told so far.
    pub(super) fn problem_free(&self) -> bool {
        !self.others.iter().any(|event| matches!(event, Event::Problems { .. }))
    }

    pub(super) fn problems(&mut self, of: &str) -> Vec<Problem> {
        self.next(&format!("problems of {of}"), |event| match event {
            Event::Problems { origin, problems, .. } if origin == of => Some(problems.clone()),
            _ => None,
        })
    }
}

/// A change in short: `= a b` for a replacement, `+ a` and `- a` for single objects.
pub(super) fn short<T>(change: &Change<Reading<T>>) -> String {
    let name = |object: &Reading<T>| object.name.name.clone();
    match change {
        Change::Replace(objects) => {
            let names: BTreeSet<_> = objects.iter().map(name).collect();
            assert_eq!(names.len(), objects.len(), "an object is listed twice");
            names.into_iter().fold("=".to_owned(), |text, name| text + " " + &name)
        }
        Change::Apply(object) => format!("+ {}", name(object)),
        Change::Delete(object) => format!("- {}", object.name),
    }
}
