//! Sends events to the API server, one after the other.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use tokio::{
    sync::mpsc::Receiver,
    time::{sleep, timeout},
};

use super::{About, Notice, Severity};

/// Who reports.
const CONTROLLER: &str = "proxy-agent";
/// Events about objects without a namespace stand here, as those of all components.
const DEFAULT_NAMESPACE: &str = "default";
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// The API takes no longer notes.
const LONGEST_NOTE: usize = 1024;
/// How often one event is tried again: for about two minutes.
const TRIES: usize = 6;

/// Sends what comes until nobody can send more.
pub(super) async fn post(client: Client, node_name: String, mut notices: Receiver<Notice>) {
    while let Some(notice) = notices.recv().await {
        let event = event(&notice, &node_name, Timestamp::now());
        let namespace = event.metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
        let api: Api<Event> = Api::namespaced(client.clone(), namespace);
        let pauses = ExponentialBuilder::default()
            .with_min_delay(Duration::from_secs(2))
            .with_max_times(TRIES);
        let mut pauses = pauses.build();
        loop {
            let Err(reason) = send(&api, &event).await else { break };
            let Some(pause) = pauses.next() else {
                tracing::debug!("event {} is given up: {reason}", notice.reason);
                break;
            };
            sleep(pause).await;
        }
    }
}

/// Sends an event; the error says why another try makes sense.
async fn send(api: &Api<Event>, event: &Event) -> Result<(), String> {
    match timeout(PATIENCE, api.create(&PostParams::default(), event)).await {
        Ok(Ok(_)) => Ok(()),
        // It was created by a try whose answer was lost.
        Ok(Err(kube::Error::Api(status))) if status.code == 409 => Ok(()),
        Ok(Err(kube::Error::Api(status))) if status.code < 500 && status.code != 429 => {
            let reason = event.reason.as_deref().unwrap_or_default();
            tracing::warn!(
                "the API server refuses event {reason}: {} {}; the ServiceAccount needs create on events.k8s.io events \
                 (manifests/base/rbac.yaml)",
                status.code,
                status.message
            );
            Ok(())
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

/// The object of an event that happens now.
fn event(notice: &Notice, node_name: &str, now: Timestamp) -> Event {
    let (kind, namespace, name) = match &notice.about {
        About::Node => ("Node", None, node_name),
        About::Service(service) => ("Service", Some(service.namespace.clone()), service.name.as_str()),
    };
    Event {
        metadata: ObjectMeta {
            // As the recorders of Kubernetes name them: by object and time.
            name: Some(format!("{name}.{:x}", now.as_nanosecond())),
            namespace: Some(namespace.clone().unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned())),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(now)),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(node_name.to_owned()),
        action: Some(notice.action.to_owned()),
        reason: Some(notice.reason.to_owned()),
        regarding: Some(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some(kind.to_owned()),
            name: Some(name.to_owned()),
            // What kubectl describe looks for, where the object's own is unknown.
            uid: (kind == "Node").then(|| node_name.to_owned()),
            namespace,
            ..ObjectReference::default()
        }),
        note: Some(cut(&notice.note).to_owned()),
        type_: Some(
            match notice.severity {
                Severity::Normal => "Normal",
                Severity::Warning => "Warning",
            }
            .to_owned(),
        ),
        ..Event::default()
    }
}

/// As much of a text as a note may hold.
fn cut(note: &str) -> &str {
    note.get(..note.floor_char_boundary(LONGEST_NOTE)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectName;

    #[test]
    fn notes_fit_the_api() {
        assert_eq!(cut("short"), "short");
        let long = "ä".repeat(600);
        assert_eq!(cut(&long).len(), 1024);
        assert_eq!(cut(&("a".to_owned() + &long)).len(), 1023);
    }

    /// behaviour.md 8.14: about the Node, and about Services in their own namespace.
    #[test]
    fn rule_8_14_events_name_their_object() {
        let now = "2026-01-02T03:04:05.6Z".parse().expect("a time");
        let mut notice = Notice::warning(About::Node, "TableFull", "ProgramService", "table slots_v4 is full");
        let about_node = event(&notice, "node-a", now);
        let regarding = about_node.regarding.expect("an object");
        assert_eq!(regarding.kind.as_deref(), Some("Node"));
        assert_eq!(regarding.uid.as_deref(), Some("node-a"));
        assert_eq!(regarding.namespace, None);
        assert_eq!(about_node.metadata.namespace.as_deref(), Some("default"));
        assert_eq!(about_node.type_.as_deref(), Some("Warning"));
        assert_eq!(about_node.reporting_instance.as_deref(), Some("node-a"));

        notice.about = About::Service(ObjectName {
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
        });
        let about_service = event(&notice, "node-a", now);
        let regarding = about_service.regarding.expect("an object");
        assert_eq!(regarding.kind.as_deref(), Some("Service"));
        assert_eq!(regarding.namespace.as_deref(), Some("shop"));
        assert_eq!(about_service.metadata.namespace.as_deref(), Some("shop"));
        let name = about_service.metadata.name.expect("a name");
        assert!(name.starts_with("web."), "{name}");
    }
}
