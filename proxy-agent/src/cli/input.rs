//! The arguments that say what is planned, and for which node.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    config::ProxyConfig,
    model::{Model, Node, ObjectName, parse_ip},
    plan::{Frontend, NodePlan, PlanContext, Planner},
    source::{kubernetes::Kubernetes, manifests},
};

/// What is planned, and for which node.
#[derive(Clone, Debug, Args)]
pub struct InputArgs {
    /// Directory of manifests (*.yaml, *.yml, *.json at its top level) to take Services, EndpointSlices and Nodes from
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,

    /// Name of this node [default: hostnameOverride of the configuration, or the host's name]
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    pub node_name: Option<String>,

    /// A KubeProxyConfiguration file, as kube-proxy takes it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// An address of this node, the primary one first, instead of those of its Node object; may be repeated
    #[arg(long = "node-address", value_name = "ADDR", value_parser = parse_ip)]
    pub node_addresses: Vec<IpAddr>,
}

/// What the arguments lead to.
#[derive(Debug)]
pub struct Input {
    /// The configuration
    pub config: ProxyConfig,
    /// The objects
    pub model: Model,
    /// What they share
    pub node: NodePlan,
    /// The frontends of every Service
    pub frontends: BTreeMap<ObjectName, Vec<Frontend>>,
}

impl InputArgs {
    /// Reads the configuration, the default without one; what means nothing here, or more than it seems, is told.
    ///
    /// # Errors
    /// Those of [`ProxyConfig::read`].
    pub fn config(&self, mut warn: impl FnMut(String)) -> Result<ProxyConfig> {
        let Some(file) = &self.config else {
            return Ok(ProxyConfig::default());
        };
        let config = ProxyConfig::read(file)?;
        if !config.without_meaning.is_empty() {
            warn(format!(
                "configuration {}: these fields are set, but mean nothing to this proxy: {}",
                file.display(),
                config.without_meaning.join(", ")
            ));
        }
        for family in config.node_port_addresses.open_families() {
            warn(format!(
                "configuration {}: nodePortAddresses: no range of {family}: nodePorts are served on all {family} addresses of \
                 the node",
                file.display()
            ));
        }
        Ok(config)
    }

    /// Name of this node: the argument, the configuration's, or the host's (behaviour.md 8.9).
    ///
    /// # Errors
    /// None is given and the host has none.
    pub fn node_name(&self, config: &ProxyConfig) -> Result<String> {
        if let Some(name) = self.node_name.clone().or_else(|| config.hostname_override.clone()) {
            return Ok(name);
        }
        let name = nix::unistd::gethostname().context("the host's name, as no --node-name is given")?;
        match name.to_str().map(str::trim) {
            Some(name) if !name.is_empty() => Ok(name.to_lowercase()),
            _ => bail!("the host has no usable name: give --node-name"),
        }
    }

    /// Addresses of this node, the primary one first (behaviour.md 8.12): the arguments, or the configuration's in front
    /// of those of the Node object.
    pub fn node_addresses(&self, config: &ProxyConfig, node: &Node) -> Vec<IpAddr> {
        if !self.node_addresses.is_empty() {
            return self.node_addresses.clone();
        }
        let mut addresses: Vec<IpAddr> = config.bind_address.into_iter().collect();
        for address in &node.addresses {
            if addresses.iter().all(|known| known.is_ipv4() != address.is_ipv4()) {
                addresses.push(*address);
            }
        }
        addresses
    }

    /// Reads the manifests once and plans them. There are no devices to ask: the node has its own addresses and the loopback
    /// ones. What is wrong with single objects, and what means nothing here, goes to stderr.
    ///
    /// # Errors
    /// The directory or the configuration can't be read.
    pub fn plan(&self) -> Result<Input> {
        let config = self.config(|warning| eprintln!("{warning}"))?;
        let directory = self.manifests.as_ref().context("--manifests DIR is missing")?;
        let node_name = self.node_name(&config)?;
        let mut model = Model::new(node_name.clone());
        let events = manifests::read(directory, &node_name)
            .with_context(|| format!("manifests {}: can't be read", directory.display()))?;
        for event in events {
            model.apply(event);
        }
        let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
        let local_addresses = [&self.node_addresses(&config, model.node())[..], &loopback].concat();
        Ok(self.plan_of(config, model, &local_addresses))
    }

    /// Lists the objects once, from the manifests or else from the API server, and plans them for a node with these addresses
    /// on its devices.
    ///
    /// # Errors
    /// Something can't be read, or the API server doesn't answer within `patience`.
    pub async fn plan_once(
        &self,
        kubeconfig: Option<&Path>,
        local_addresses: &[IpAddr],
        patience: Duration,
    ) -> Result<Input> {
        let config = self.config(|warning| eprintln!("{warning}"))?;
        let node_name = self.node_name(&config)?;
        let mut model = Model::new(node_name.clone());
        if let Some(directory) = &self.manifests {
            let events = manifests::read(directory, &node_name)
                .with_context(|| format!("manifests {}: can't be read", directory.display()))?;
            for event in events {
                model.apply(event);
            }
        } else {
            let kubeconfig = kubeconfig.or(config.kubeconfig.as_deref());
            let events = Kubernetes::new(kubeconfig, node_name).await?.list(patience).await?;
            for event in events {
                model.apply(event);
            }
        }
        Ok(self.plan_of(config, model, local_addresses))
    }

    fn plan_of(&self, config: ProxyConfig, model: Model, local_addresses: &[IpAddr]) -> Input {
        let node_addresses = self.node_addresses(&config, model.node());
        let mut planner = Planner::new(PlanContext::new(&config, model.node(), &node_addresses));
        let frontends = planner.plan_everything(&model);
        for problem in model.problems().into_iter().chain(planner.problems()) {
            eprintln!("{problem}");
        }
        Input {
            node: NodePlan::new(&config, &model, &node_addresses, local_addresses),
            config,
            model,
            frontends,
        }
    }
}
