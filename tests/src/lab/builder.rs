//! Builds a lab from its description.

use std::{
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    Lab, Namespace, Node, Outside, Pod, Shape, address,
    cgroup::Cgroups,
    cni::{self, Attachment},
    fabric::Fabric,
    owner::Estate,
    strict,
    xdp::{self, Xdp, XdpWires},
};

/// Description of a lab.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    nodes: Vec<Description>,
    shape: Shape,
    outside: Option<Outside>,
    second_wire: bool,
    strict: bool,
    xdp: Option<Xdp>,
    standing: Option<String>,
    real_tables: bool,
}

/// Description of a node.
#[derive(Clone, Debug)]
struct Description {
    name: String,
    pods: Vec<(String, Attachment)>,
}

impl Builder {
    pub(super) fn new() -> Self {
        Self {
            xdp: xdp::asked(),
            ..Self::default()
        }
    }

    /// A node with pods.
    #[must_use]
    pub fn node(mut self, name: &str, pods: &[&str]) -> Self {
        self.nodes.push(Description {
            name: name.to_owned(),
            pods: pods.iter().map(|&pod| (pod.to_owned(), Attachment::Shape)).collect(),
        });
        self
    }

    /// One more pod on the node described last, with a macvlan device on its uplink: its packets pass no device of the node.
    ///
    /// # Panics
    /// There is no node yet.
    #[must_use]
    pub fn macvlan_pod(mut self, name: &str) -> Self {
        let node = self.nodes.last_mut().expect("a macvlan pod needs a node");
        node.pods.push((name.to_owned(), Attachment::Macvlan));
        self
    }

    /// How pods are joined to nodes and nodes to each other, in place of point-to-point veths and native routes.
    #[must_use]
    pub const fn shape(mut self, shape: Shape) -> Self {
        self.shape = shape;
        self
    }

    /// A client outside the cluster, in the namespace `outside`, behind the nodes' default gateway.
    #[must_use]
    pub const fn outside(mut self) -> Self {
        self.outside = Some(Outside::Near);
        self
    }

    /// The client `outside` behind one more router, `border`.
    #[must_use]
    pub const fn far_outside(mut self) -> Self {
        self.outside = Some(Outside::Far);
        self
    }

    /// A second wire, and a second uplink `eth1` on every node. The default routes lead through the first one: an answer to a
    /// client outside leaves there, whichever way the request came. (A strict node drops such a request by its reverse
    /// path filter.)
    #[must_use]
    pub const fn second_uplink(mut self) -> Self {
        self.second_wire = true;
        self
    }

    /// Nodes that let nothing doubtful through: see [`strict`].
    #[must_use]
    pub const fn strict(mut self) -> Self {
        self.strict = true;
        self
    }

    /// A lab that goes on when this process ends, until `proxy-lab down` removes it by this name.
    #[must_use]
    pub fn standing(mut self, name: &str) -> Self {
        self.standing = Some(name.to_owned());
        self
    }

    /// Agents make their tables as large as on a real node, though the lab is that of a scenario.
    #[must_use]
    pub const fn real_tables(mut self) -> Self {
        self.real_tables = true;
        self
    }

    /// Builds it; agents make their tables as large as on a real node.
    ///
    /// # Errors
    /// A tool is missing or failed, a name is too long, or a standing lab of that name is there already.
    pub fn build(self) -> Result<Lab> {
        self.build_with(false)
    }

    fn build_with(self, small_tables: bool) -> Result<Lab> {
        let estate = match &self.standing {
            Some(name) => Estate::detached(name)?,
            None => Estate::for_this_process()?,
        };
        // In a lab that goes on, processes are nobody's threads.
        let mut cgroups = if self.standing.is_some() {
            None
        } else {
            Cgroups::found()
        };
        // From here on a failure removes what was made: the estate's names are all a lab owns, and its cgroups.
        self.raise(&estate, cgroups.as_mut())
            .inspect_err(|_| drop(estate.remove()))
            .map(|(nodes, pods, fabric)| Lab {
                servers: Mutex::default(),
                shape: self.shape,
                xdp: self.xdp,
                small_tables,
                nodes,
                pods,
                fabric,
                applied: Mutex::default(),
                round: Mutex::default(),
                binaries: Mutex::default(),
                last_failure: Mutex::default(),
                findings: Arc::default(),
                estate,
                _cgroups: cgroups,
                keep: false,
            })
    }

    /// Builds the lab, runs a scenario in it and removes it; when the scenario fails, prints what the lab can tell. Agents make
    /// small tables, unless [`Self::real_tables`] or their arguments say otherwise.
    ///
    /// # Errors
    /// Those of [`Self::build`] and of the scenario; or an agent that was at work until the end left tables that differ from
    /// the plan.
    ///
    /// # Panics
    /// When the scenario does.
    pub fn run(self, scenario: impl FnOnce(&mut Lab) -> Result<()>) -> Result<()> {
        let small_tables = !self.real_tables;
        let mut lab = self.build_with(small_tables)?;
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
            scenario(&mut lab)?;
            lab.expect_no_findings()
        }));
        if !matches!(outcome, Ok(Ok(()))) {
            eprintln!("{}", lab.report());
        }
        drop(lab);
        outcome.unwrap_or_else(|cause| panic::resume_unwind(cause))
    }

    fn raise(&self, estate: &Estate, mut cgroups: Option<&mut Cgroups>) -> Result<(Vec<Node>, Vec<Pod>, Fabric)> {
        let prefix = estate.prefix();
        let mut fabric = Fabric::raise(prefix, self.outside, self.second_wire)?;
        let mut nodes = Vec::new();
        let mut pods = Vec::new();
        for (description, number) in self.nodes.iter().zip(1..) {
            let cgroup = cgroups
                .as_mut()
                .map(|cgroups| cgroups.make(&description.name))
                .transpose()?;
            let mut node = self.raise_node(prefix, &description.name, number, cgroup, &fabric)?;
            for (name, attachment) in &description.pods {
                let pod = create_pod(prefix, &mut node, name, *attachment)?;
                cni::plug(&node.namespace, &pod, self.shape)?;
                pods.push(pod);
            }
            nodes.push(node);
        }
        if self.xdp.is_some() {
            fabric.xdp = Some(XdpWires::prepare(&nodes, &fabric.router)?);
        }
        Ok((nodes, pods, fabric))
    }

    fn raise_node(
        &self,
        prefix: &str,
        name: &str,
        number: u8,
        cgroup: Option<PathBuf>,
        fabric: &Fabric,
    ) -> Result<Node> {
        let node = Node {
            name: name.to_owned(),
            number,
            namespace: Namespace::create(&format!("{prefix}-{name}"))?.in_cgroup(cgroup),
            shape: self.shape,
            second_uplink: self.second_wire,
            pods: 0,
        };
        let namespace = &node.namespace;
        namespace.sysctl(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])?;
        if self.strict {
            strict::apply(&node, self.shape.cni)?;
        }
        fabric.plug_node(namespace, number, self.second_wire)?;
        let count = u8::try_from(self.nodes.len()).context("number of nodes")?;
        self.shape.interconnect.join(namespace, number, count)?;
        self.shape.cni.prepare(namespace, number)?;
        Ok(node)
    }
}

impl Lab {
    /// Adds a pod to a node while the lab stands, without the device that leads to it: see [`Self::plug`].
    pub fn add_pod(&mut self, node: &str, name: &str) -> Result<()> {
        let number = self.node(node).number - 1;
        let node = &mut self.nodes[usize::from(number)];
        let pod = create_pod(self.estate.prefix(), node, name, Attachment::Shape)?;
        self.pods.push(pod);
        Ok(())
    }
}

fn create_pod(prefix: &str, node: &mut Node, name: &str, attachment: Attachment) -> Result<Pod> {
    ensure!(
        name.len() <= 10,
        "pod {name}: its device would have a name over the kernel's 15 characters"
    );
    node.pods += 1;
    Ok(Pod {
        name: name.to_owned(),
        node: node.name.clone(),
        node_number: node.number,
        attachment,
        addresses: match attachment {
            Attachment::Shape => address::pod(node.number, node.pods),
            Attachment::Macvlan => address::macvlan_pod(node.number, node.pods),
        },
        namespace: Namespace::create(&format!("{prefix}-{name}"))?
            .in_cgroup(node.namespace.cgroup().map(Path::to_owned)),
    })
}
