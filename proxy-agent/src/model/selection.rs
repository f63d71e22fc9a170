//! Which objects are this proxy's (behaviour.md 1.1). A cluster filters by label selector; files have no API server
//! that would do it, and a selector does not reach an object that the source already holds.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// Names the proxy that is to serve a Service, if it isn't this one.
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// Marks a headless Service and its slices.
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// Whether a Service or an EndpointSlice is this proxy's: it has neither label, whatever the value.
pub(super) fn is_selected(metadata: &ObjectMeta) -> bool {
    let labels = metadata.labels.as_ref();
    [PROXY_NAME_LABEL, HEADLESS_LABEL]
        .into_iter()
        .all(|label| !labels.is_some_and(|labels| labels.contains_key(label)))
}
