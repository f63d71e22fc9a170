//! Builds a lab from its description.

use std::{
    fmt::Write as _,
    panic::{self, AssertUnwindSafe},
    sync::Mutex,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    Addresses, Lab, Namespace, Node, Pod,
    address::{self, OUTSIDE, OUTSIDE_ROUTER, ROUTER},
    owner::Estate,
    strict,
};

/// A pod's gateways: no device has these addresses, the node's side of the veth answers for them (as Calico does).
const GATEWAY_V4: &str = "169.254.1.1";
const GATEWAY_V6: &str = "fe80::1";
/// Hardware address of the node's side of every veth.
const GATEWAY_HARDWARE: &str = "ee:ee:ee:ee:ee:ee";

/// Description of a lab.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    nodes: Vec<(String, Vec<String>)>,
    outside: bool,
    strict: bool,
    standing: Option<String>,
}

impl Builder {
    /// A node with pods.
    #[must_use]
    pub fn node(mut self, name: &str, pods: &[&str]) -> Self {
        self.nodes
            .push((name.to_owned(), pods.iter().map(|&pod| pod.to_owned()).collect()));
        self
    }

    /// A client outside the cluster, in the namespace `outside`.
    #[must_use]
    pub const fn outside(mut self) -> Self {
        self.outside = true;
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

    /// Builds it.
    ///
    /// # Errors
    /// A tool is missing or failed, a name is too long, or a standing lab of that name is there already.
    pub fn build(self) -> Result<Lab> {
        let estate = match &self.standing {
            Some(name) => Estate::detached(name)?,
            None => Estate::for_this_process()?,
        };
        // From here on a failure removes what was made: the estate's names are all a lab owns.
        self.raise(&estate)
            .inspect_err(|_| drop(estate.remove()))
            .map(|(nodes, pods, router, outside)| Lab {
                servers: Mutex::default(),
                nodes,
                pods,
                router,
                outside,
                applied: Mutex::default(),
                last_failure: Mutex::default(),
                estate,
                keep: false,
            })
    }

    /// Builds the lab, runs a scenario in it and removes it; when the scenario fails, prints what the lab can tell.
    ///
    /// # Errors
    /// Those of [`Self::build`] and of the scenario.
    ///
    /// # Panics
    /// When the scenario does.
    pub fn run(self, scenario: impl FnOnce(&mut Lab) -> Result<()>) -> Result<()> {
        let mut lab = self.build()?;
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| scenario(&mut lab)));
        if !matches!(outcome, Ok(Ok(()))) {
            eprintln!("{}", lab.report());
        }
        drop(lab);
        outcome.unwrap_or_else(|cause| panic::resume_unwind(cause))
    }

    #[expect(clippy::type_complexity, reason = "the parts of a lab, taken apart at once")]
    fn raise(&self, estate: &Estate) -> Result<(Vec<Node>, Vec<Pod>, Namespace, Option<Namespace>)> {
        let prefix = estate.prefix();
        let router = raise_router(prefix)?;
        let outside = self.outside.then(|| raise_outside(prefix, &router)).transpose()?;
        let mut nodes = Vec::new();
        let mut pods = Vec::new();
        let count = u8::try_from(self.nodes.len()).context("number of nodes")?;
        for ((name, pod_names), number) in self.nodes.iter().zip(1..) {
            let mut node = raise_node(prefix, name, number, count, &router)?;
            if self.strict {
                strict::apply(&node)?;
            }
            for pod in pod_names {
                pods.push(raise_pod(prefix, &mut node, pod)?);
            }
            nodes.push(node);
        }
        Ok((nodes, pods, router, outside))
    }
}

impl Lab {
    /// Adds a pod to a node while the lab stands, without the device that leads to it: see [`Self::plug`].
    pub fn add_pod(&mut self, node: &str, name: &str) -> Result<()> {
        let number = self.node(node).number - 1;
        let pod = create_pod(self.estate.prefix(), &mut self.nodes[usize::from(number)], name)?;
        self.pods.push(pod);
        Ok(())
    }

    /// Connects a pod to its node, as a CNI does for a new pod: device, addresses, routes. Returns the time just before the
    /// node's side of the device went up.
    pub fn plug(&self, pod: &str) -> Result<Instant> {
        let pod = self.pod(pod);
        plug(&self.node(&pod.node).namespace, pod)
    }

    /// Deletes the device between a pod and its node.
    pub fn unplug(&self, pod: &str) -> Result<()> {
        let pod = self.pod(pod);
        self.node(&pod.node)
            .namespace
            .ip(&format!("link del {}\n", pod.host_device()))
    }
}

/// The wire between the nodes, a bridge, in a namespace that also routes to the outside.
fn raise_router(prefix: &str) -> Result<Namespace> {
    let router = Namespace::create(&format!("{prefix}-router"))?;
    router.sysctl(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])?;
    router.ip(&format!(
        "link add wire type bridge forward_delay 0\n\
         link set wire up\n\
         addr add {}/24 dev wire\n\
         addr add {}/64 dev wire nodad\n",
        ROUTER.v4, ROUTER.v6
    ))?;
    Ok(router)
}

fn raise_outside(prefix: &str, router: &Namespace) -> Result<Namespace> {
    let outside = Namespace::create(&format!("{prefix}-outside"))?;
    router.ip(&format!(
        "link add outside type veth peer name eth0 netns {}\n\
         link set outside up\n\
         addr add {}/24 dev outside\n\
         addr add {}/64 dev outside nodad\n",
        outside.name(),
        OUTSIDE_ROUTER.v4,
        OUTSIDE_ROUTER.v6
    ))?;
    outside.ip(&format!(
        "link set eth0 up\n\
         addr add {}/24 dev eth0\n\
         addr add {}/64 dev eth0 nodad\n\
         route add default via {}\n\
         route add ::/0 via {}\n",
        OUTSIDE.v4, OUTSIDE.v6, OUTSIDE_ROUTER.v4, OUTSIDE_ROUTER.v6
    ))?;
    Ok(outside)
}

fn raise_node(prefix: &str, name: &str, number: u8, count: u8, router: &Namespace) -> Result<Node> {
    let namespace = Namespace::create(&format!("{prefix}-{name}"))?;
    namespace.sysctl(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])?;
    let own = address::node(number);
    let [pods_v4, pods_v6] = address::pod_networks(number);
    router.ip(&format!(
        "link add port-{number} type veth peer name eth0 netns {}\n\
         link set port-{number} addrgenmode none\n\
         link set port-{number} master wire up\n\
         route add {pods_v4} via {}\n\
         route add {pods_v6} via {}\n",
        namespace.name(),
        own.v4,
        own.v6
    ))?;
    let mut lines = format!(
        "link set eth0 up\n\
         addr add {}/24 dev eth0\n\
         addr add {}/64 dev eth0 nodad\n\
         route add default via {}\n\
         route add ::/0 via {}\n",
        own.v4, own.v6, ROUTER.v4, ROUTER.v6
    );
    for other in (1..=count).filter(|&other| other != number) {
        let [pods_v4, pods_v6] = address::pod_networks(other);
        let via = address::node(other);
        writeln!(
            lines,
            "route add {pods_v4} via {}
route add {pods_v6} via {}",
            via.v4, via.v6
        )?;
    }
    namespace.ip(&lines)?;
    Ok(Node {
        name: name.to_owned(),
        number,
        namespace,
        pods: 0,
    })
}

fn raise_pod(prefix: &str, node: &mut Node, name: &str) -> Result<Pod> {
    let pod = create_pod(prefix, node, name)?;
    plug(&node.namespace, &pod)?;
    Ok(pod)
}

fn create_pod(prefix: &str, node: &mut Node, name: &str) -> Result<Pod> {
    ensure!(
        name.len() <= 10,
        "pod {name}: its device would have a name over the kernel's 15 characters"
    );
    node.pods += 1;
    Ok(Pod {
        name: name.to_owned(),
        node: node.name.clone(),
        addresses: address::pod(node.number, node.pods),
        namespace: Namespace::create(&format!("{prefix}-{name}"))?,
    })
}

fn plug(node: &Namespace, pod: &Pod) -> Result<Instant> {
    let (device, Addresses { v4, v6 }) = (pod.host_device(), pod.addresses);
    node.ip(&format!(
        "link add {device} address {GATEWAY_HARDWARE} type veth peer name eth0 netns {}\n",
        pod.namespace.name()
    ))?;
    pod.namespace.ip(&format!(
        "link set eth0 up\n\
         addr add {v4}/32 dev eth0\n\
         addr add {v6}/128 dev eth0 nodad\n\
         neigh replace {GATEWAY_V4} lladdr {GATEWAY_HARDWARE} dev eth0 nud permanent\n\
         neigh replace {GATEWAY_V6} lladdr {GATEWAY_HARDWARE} dev eth0 nud permanent\n\
         route add default via {GATEWAY_V4} dev eth0 onlink\n\
         route add ::/0 via {GATEWAY_V6} dev eth0\n"
    ))?;
    // Up last: a pod that can be reached is one that can answer.
    let up = Instant::now();
    node.ip(&format!(
        "link set {device} up\n\
         route add {v4}/32 dev {device}\n\
         route add {v6}/128 dev {device}\n"
    ))?;
    Ok(up)
}
