//! The kinds of object the test API server knows, as the API names them.

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Resource {
    /// `v1` Services
    Services,
    /// `discovery.k8s.io/v1` EndpointSlices
    EndpointSlices,
    /// `v1` Nodes
    Nodes,
    /// `networking.k8s.io/v1` ServiceCIDRs
    ServiceCidrs,
}

impl Resource {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Services, Self::EndpointSlices, Self::Nodes, Self::ServiceCidrs];

    /// Its plural name, as in paths and RBAC rules.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::EndpointSlices => "endpointslices",
            Self::Nodes => "nodes",
            Self::ServiceCidrs => "servicecidrs",
        }
    }

    /// Its API group, as in RBAC rules; empty for the core one.
    pub const fn group(self) -> &'static str {
        match self {
            Self::Services | Self::Nodes => "",
            Self::EndpointSlices => "discovery.k8s.io",
            Self::ServiceCidrs => "networking.k8s.io",
        }
    }

    pub(super) const fn kind(self) -> &'static str {
        match self {
            Self::Services => "Service",
            Self::EndpointSlices => "EndpointSlice",
            Self::Nodes => "Node",
            Self::ServiceCidrs => "ServiceCIDR",
        }
    }

    pub(super) const fn api_version(self) -> &'static str {
        match self {
            Self::Services | Self::Nodes => "v1",
            Self::EndpointSlices => "discovery.k8s.io/v1",
            Self::ServiceCidrs => "networking.k8s.io/v1",
        }
    }

    /// What field selectors may name, as dotted paths (pkg/apis/core/v1/conversion.go; other kinds have metadata only).
    pub(super) const fn selectable_fields(self) -> &'static [&'static str] {
        match self {
            Self::Services => &["metadata.name", "metadata.namespace", "spec.clusterIP", "spec.type"],
            Self::EndpointSlices => &["metadata.name", "metadata.namespace"],
            Self::Nodes => &["metadata.name", "spec.unschedulable"],
            Self::ServiceCidrs => &["metadata.name"],
        }
    }

    /// Where the objects of all namespaces are listed and watched.
    pub(super) fn path(self) -> String {
        format!("{}/{}", self.root(), self.plural())
    }

    /// Where an object is; the namespace of a Node or a ServiceCIDR is empty.
    pub(super) fn path_of(self, namespace: &str, name: &str) -> String {
        let (root, plural) = (self.root(), self.plural());
        if namespace.is_empty() {
            format!("{root}/{plural}/{name}")
        } else {
            format!("{root}/namespaces/{namespace}/{plural}/{name}")
        }
    }

    /// Whether its status is written apart from the rest.
    pub(super) const fn has_status(self) -> bool {
        matches!(self, Self::Services | Self::Nodes)
    }

    fn root(self) -> String {
        let root = if self.group().is_empty() { "/api" } else { "/apis" };
        format!("{root}/{}", self.api_version())
    }

    /// The kind whose objects of all namespaces are listed and watched at this path.
    pub(super) fn at_path(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|resource| resource.path() == path)
    }

    pub(super) fn of_kind(kind: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|resource| resource.kind() == kind)
    }
}
