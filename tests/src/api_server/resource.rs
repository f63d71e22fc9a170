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
}

impl Resource {
    const ALL: [Self; 3] = [Self::Services, Self::EndpointSlices, Self::Nodes];

    /// Its plural name, as in paths and RBAC rules.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::EndpointSlices => "endpointslices",
            Self::Nodes => "nodes",
        }
    }

    pub(super) const fn kind(self) -> &'static str {
        match self {
            Self::Services => "Service",
            Self::EndpointSlices => "EndpointSlice",
            Self::Nodes => "Node",
        }
    }

    pub(super) const fn api_version(self) -> &'static str {
        match self {
            Self::Services | Self::Nodes => "v1",
            Self::EndpointSlices => "discovery.k8s.io/v1",
        }
    }

    /// What field selectors may name, as dotted paths (pkg/apis/core/v1/conversion.go; other kinds have metadata only).
    pub(super) const fn selectable_fields(self) -> &'static [&'static str] {
        match self {
            Self::Services => &["metadata.name", "metadata.namespace", "spec.clusterIP", "spec.type"],
            Self::EndpointSlices => &["metadata.name", "metadata.namespace"],
            Self::Nodes => &["metadata.name", "spec.unschedulable"],
        }
    }

    /// The kind whose objects of all namespaces are listed and watched at this path.
    pub(super) fn at_path(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|resource| {
            let group = match resource {
                Self::Services | Self::Nodes => "/api/v1/",
                Self::EndpointSlices => "/apis/discovery.k8s.io/v1/",
            };
            path.strip_prefix(group) == Some(resource.plural())
        })
    }

    pub(super) fn of_kind(kind: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|resource| resource.kind() == kind)
    }
}
