//! Objects from a Kubernetes API server: the Services, EndpointSlices, ServiceCIDRs and the Node that concern this node.
//!
//! Each kind has a [`watch::Watch`] of its own, so one that is forbidden doesn't hold up the others. Invariant: what was
//! told last stays true until the API server itself says otherwise; a lost connection changes nothing.
//!
//! What goes wrong is told, and logged by whoever listens. The target `kube_client` logs every failed attempt as an error
//! on top of that: filter it out.

use std::{
    collections::BTreeSet,
    error::Error,
    path::{Path, PathBuf},
    time::Duration,
};

use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
    networking::v1::ServiceCIDR,
};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::{
    sync::mpsc::{self, Sender},
    time::timeout,
};

pub use self::watch::Tuning;
use self::watch::{Selectors, Watch};
use super::{Change, Event};

mod failure;
mod report;
mod watch;

/// Services of other proxies and headless ones are invisible, and so are their slices (behaviour.md 1.1).
const VISIBLE: &str = "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless";

/// How many kinds of objects there are.
const KINDS: usize = 4;

/// Events of a listing that may wait to be taken in.
const QUEUE: usize = 16;

/// Headless Services never arrive, whatever their labels (behaviour.md 1.2).
const HAS_CLUSTER_IP: &str = "spec.clusterIP!=None";

/// Why there is no way to the API server. Whether it answers is not asked: that may change at any time.
///
/// kube's errors repeat their causes in their text: the reasons are their first lines, and no sources.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The kubeconfig file is missing, unreadable or contradicts itself
    #[error("kubeconfig {}: {reason}", path.display())]
    Kubeconfig {
        /// The file
        path: PathBuf,
        /// What is wrong with it
        reason: String,
    },
    /// No file was named, and neither the usual places nor a pod's service account give one
    #[error("no kubeconfig (name one with --kubeconfig or KUBECONFIG) and not inside a cluster: {0}")]
    Infer(String),
    /// The configuration is readable but unusable, such as a certificate that is none
    #[error("no client from the configuration for {server}: {reason}")]
    Client {
        /// URL of the API server
        server: String,
        /// What is wrong
        reason: String,
    },
}

/// Why not everything could be listed.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// What is wrong, with which kind, and what to do
    #[error("{0}")]
    Failed(String),
    /// Something is missing still
    #[error("{server} has not listed everything within {} s", patience.as_secs())]
    Slow {
        /// URL of the API server
        server: String,
        /// How long it was waited for
        patience: Duration,
    },
}

/// The Kubernetes source.
pub struct Kubernetes {
    client: Client,
    server: String,
    node_name: String,
    tuning: Tuning,
}

impl Kubernetes {
    /// Reads the configuration: the kubeconfig at `kubeconfig`, else the usual places (`KUBECONFIG`, `~/.kube/config`),
    /// else the pod's service account. `node_name` is the name of this node's Node object.
    ///
    /// # Errors
    /// When there is no usable configuration. An API server that doesn't answer is no error here but an
    /// [`Event::Problems`] later.
    pub async fn new(kubeconfig: Option<&Path>, node_name: String) -> Result<Self, ConfigError> {
        let mut config = match kubeconfig {
            Some(path) => from_file(path).await.map_err(|error| ConfigError::Kubeconfig {
                path: path.to_owned(),
                reason: first_line(&error),
            })?,
            None => Config::infer()
                .await
                .map_err(|error| ConfigError::Infer(first_line(&error)))?,
        };
        // The client's own retries would hide an overloaded API server for minutes; the watches retry, and say so.
        config.default_retry = false;
        let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        match Client::try_from(config) {
            Ok(client) => Ok(Self {
                client,
                server,
                node_name,
                tuning: Tuning::DEFAULT,
            }),
            Err(error) => Err(ConfigError::Client {
                server,
                reason: first_line(&error),
            }),
        }
    }

    /// Asks as this says, in place of [`Tuning::DEFAULT`].
    #[must_use]
    pub fn with_tuning(self, tuning: Tuning) -> Self {
        Self { tuning, ..self }
    }

    /// The client, for what else is to be asked or told there.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Lists everything there is, once.
    ///
    /// # Errors
    /// The first that goes wrong with a kind, or that not all was listed within `patience`.
    pub async fn list(self, patience: Duration) -> Result<Vec<Event>, ListError> {
        let server = self.server.clone();
        let (sender, mut receiver) = mpsc::channel(QUEUE);
        let listing = async {
            let (mut events, mut listed) = (Vec::new(), BTreeSet::new());
            while let Some(event) = receiver.recv().await {
                if let Event::Problems { origin, problems, .. } = &event
                    && let Some(problem) = problems.iter().find(|problem| problem.object == *origin)
                {
                    return Err(ListError::Failed(problem.to_string()));
                }
                let kind = match &event {
                    Event::Service(Change::Replace(_)) => Some("services"),
                    Event::EndpointSlice(Change::Replace(_)) => Some("endpointslices"),
                    Event::Node(Change::Replace(_)) => Some("nodes"),
                    Event::ServiceCIDR(Change::Replace(_)) => Some("servicecidrs"),
                    _ => None,
                };
                listed.extend(kind);
                events.push(event);
                if listed.len() == KINDS {
                    break;
                }
            }
            Ok(events)
        };
        tokio::select! {
            listed = timeout(patience, listing) => listed.unwrap_or(Err(ListError::Slow { server, patience })),
            // It goes on until the receiver is dropped.
            () = Box::pin(self.run(sender)) => Ok(Vec::new()),
        }
    }

    /// Tells everything there is and all changes from then on, until the receiver is dropped. Never fails: what goes
    /// wrong is told as [`Event::Problems`] of the origins `watch services`, `watch endpointslices`, `watch nodes` and
    /// `watch servicecidrs`, tried again, and taken back when it works. An API server that doesn't know ServiceCIDRs has
    /// none.
    pub async fn run(self, events: Sender<Event>) {
        let visible = Selectors {
            labels: Some(VISIBLE.to_owned()),
            fields: None,
        };
        let services = Selectors {
            fields: Some(HAS_CLUSTER_IP.to_owned()),
            ..visible.clone()
        };
        let this_node = Selectors {
            labels: None,
            fields: Some(format!("metadata.name={}", self.node_name)),
        };
        let services = Watch::<Service>::new(&self, services, Event::Service, &events);
        let slices = Watch::<EndpointSlice>::new(&self, visible, Event::EndpointSlice, &events);
        let node = Watch::<Node>::new(&self, this_node, Event::Node, &events);
        let ranges = Watch::<ServiceCIDR>::new(&self, Selectors::default(), Event::ServiceCIDR, &events).optional();
        tokio::select! {
            _ = async { tokio::join!(services.run(), slices.run(), node.run(), ranges.run()) } => {}
            // Where nothing happens, nobody would notice otherwise.
            () = events.closed() => {}
        }
    }
}

/// The first line of an error; those that follow show the place in the file once more.
fn first_line(error: &impl Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

async fn from_file(path: &Path) -> Result<Config, kube::config::KubeconfigError> {
    Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &KubeConfigOptions::default()).await
}
