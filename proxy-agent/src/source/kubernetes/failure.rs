//! What can go wrong between this node and the API server, told so that an operator knows what to do.

use std::{error::Error, time::Duration};

use kube::core::Status;

/// Why a request or a watch came to nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// The API server has forgotten the version asked for (410 Gone), or hasn't come to it: list again
    Expired,
    /// The API server answered with another error
    Refused(Box<Status>),
    /// No answer within this time
    Silent(Duration),
    /// An answer that is no Kubernetes object or list
    Unreadable(String),
    /// No connection, no credentials to send, or a connection that was lost
    Unreachable(String),
}

impl Failure {
    /// What is wrong and what to do: `resource` is the plural name of what was asked for, `server` the URL.
    pub(super) fn reason(&self, resource: &str, server: &str) -> String {
        match self {
            Self::Expired => format!("the list of {resource} expired before it was complete; reading it again"),
            Self::Refused(status) => match status.code {
                401 => format!(
                    "unauthorized: {server} doesn't accept the credentials ({}); check the kubeconfig's user or the \
                     ServiceAccount's token",
                    status.message
                ),
                403 => format!(
                    "forbidden: give the ServiceAccount list and watch on {resource} (manifests/base/rbac.yaml); {server} \
                     says: {}",
                    status.message
                ),
                code => format!("{server} answers {code} {}: {}", status.reason, status.message),
            },
            Self::Silent(limit) => {
                format!(
                    "no answer from {server} within {} s; is it overloaded?",
                    limit.as_secs()
                )
            }
            Self::Unreadable(reason) => {
                format!("the answer of {server} can't be read: {reason}; is it a Kubernetes API server?")
            }
            Self::Unreachable(reason) => format!(
                "can't reach {server}: {reason}; check the kubeconfig's server, or KUBERNETES_SERVICE_HOST and \
                 KUBERNETES_SERVICE_PORT"
            ),
        }
    }

    /// The API server doesn't know what was asked for.
    pub(super) fn is_unknown_kind(&self) -> bool {
        matches!(self, Self::Refused(status) if status.code == 404)
    }

    /// How long the API server itself asks to be left alone (429 and 503 may say so).
    pub(super) fn retry_after(&self) -> Duration {
        let seconds = match self {
            Self::Refused(status) => status.details.as_ref().map_or(0, |details| details.retry_after_seconds),
            _ => 0,
        };
        Duration::from_secs(u64::from(seconds))
    }
}

impl From<Box<Status>> for Failure {
    fn from(status: Box<Status>) -> Self {
        // A version that the server hasn't come to: its data were replaced by older ones.
        let causes = status.details.iter().flat_map(|details| &details.causes);
        let is_ahead = causes
            .into_iter()
            .any(|cause| cause.reason == "ResourceVersionTooLarge")
            || status.message.contains("Too large resource version");
        if status.code == 410 || is_ahead {
            Self::Expired
        } else {
            Self::Refused(status)
        }
    }
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => status.into(),
            kube::Error::SerdeError(error) => error.into(),
            kube::Error::FromUtf8(error) => Self::Unreadable(error.to_string()),
            // Their own text adds only the kind of error; the cause is what helps.
            kube::Error::Service(error) => Self::Unreachable(with_causes(error.as_ref())),
            kube::Error::HyperError(error) => Self::Unreachable(with_causes(&error)),
            error => Self::Unreachable(error.to_string()),
        }
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::Unreadable(error.to_string())
    }
}

/// An error and all its causes: the last one is usually the telling one.
fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
