//! `/statusz` and `/flagz`, which every component of Kubernetes has (KEP 4827 and 4828; on by default since 1.36): what runs here,
//! and how it was started. Text for people, or JSON if it is asked for by name and version.

use std::{collections::BTreeMap, fmt::Write as _};

use hyper::{
    HeaderMap, StatusCode,
    header::{ACCEPT, HeaderValue},
};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use crate::http::{self, Answer};

/// What the pages call this program.
const COMPONENT: &str = "proxy-agent";
/// The API group of both objects.
const GROUP: &str = "config.k8s.io";
/// Versions of both objects, which have the same fields.
const VERSIONS: [&str; 2] = ["v1beta1", "v1alpha1"];
/// As components of Kubernetes warn.
const WARNING: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is for \
                       debugging purposes only.";

/// What the pages are made from.
#[derive(Debug)]
pub(super) struct ZPages {
    started: Timestamp,
    flags: BTreeMap<String, String>,
}

impl ZPages {
    /// Pages of a process that starts now, with these flags by name.
    pub(super) fn new(flags: BTreeMap<String, String>) -> Self {
        Self {
            started: Timestamp::now(),
            flags,
        }
    }

    /// `/statusz`; `paths` are the pages that there are.
    pub(super) fn statusz(&self, headers: &HeaderMap, paths: &[&str]) -> Answer {
        self.statusz_at(Timestamp::now(), headers, paths)
    }

    fn statusz_at(&self, now: Timestamp, headers: &HeaderMap, paths: &[&str]) -> Answer {
        let up = now.duration_since(self.started).as_secs().max(0);
        let version = env!("CARGO_PKG_VERSION");
        let structured = json!({
            "startTime": self.started.strftime("%FT%TZ").to_string(),
            "uptimeSeconds": up,
            "binaryVersion": version,
            "paths": paths,
        });
        page(headers, "Statusz", structured, || {
            format!(
                "\n{COMPONENT} statusz\n{WARNING}\n\nStarted: {}\nUp: {} hr {:02} min {:02} sec\nBinary version: {version}\nPaths: {}\n",
                self.started.strftime("%a %b %e %T UTC %Y"),
                up / 3600,
                up / 60 % 60,
                up % 60,
                paths.join(" "),
            )
        })
    }

    /// `/flagz`.
    pub(super) fn flagz(&self, headers: &HeaderMap) -> Answer {
        page(headers, "Flagz", json!({"flags": self.flags}), || {
            let mut text = format!("\n{COMPONENT} flags\n{WARNING}\n\n");
            for (name, value) in &self.flags {
                // A `String` takes everything.
                let _ = writeln!(text, "{name}={value}");
            }
            text
        })
    }
}

/// How a page is to be written.
#[derive(Debug, PartialEq, Eq)]
enum Form {
    Text,
    /// As an object of this version
    Json(&'static str),
}

/// What a client accepts of an object of this kind; `None` if it is nothing that there is. JSON must be asked for with group,
/// version and kind: `application/json;v=v1beta1;g=config.k8s.io;as=Statusz`.
fn accepted(headers: &HeaderMap, kind: &str) -> Option<Form> {
    let accept = headers.get(ACCEPT).map_or(Ok(""), HeaderValue::to_str).ok()?;
    let mut ranges = accept.split(',').map(|range| {
        let mut parts = range.split(';').map(str::trim);
        let media_type = parts.next().unwrap_or_default();
        let parameters: Vec<_> = parts.filter_map(|part| part.split_once('=')).collect();
        let is_asked_for = |name: &str, value: &str| parameters.contains(&(name, value));
        match media_type {
            "" | "*/*" | "text/*" | "text/plain" => Some(Form::Text),
            "application/json" if is_asked_for("g", GROUP) && is_asked_for("as", kind) => {
                let version = VERSIONS.into_iter().find(|version| is_asked_for("v", version));
                version.map(Form::Json)
            }
            _ => None,
        }
    });
    ranges.find_map(|form| form)
}

/// A page in the form that is accepted.
fn page(headers: &HeaderMap, kind: &str, structured: Value, text: impl FnOnce() -> String) -> Answer {
    match accepted(headers, kind) {
        Some(Form::Text) => http::text(StatusCode::OK, text()),
        Some(Form::Json(version)) => {
            let mut object = json!({
                "kind": kind, "apiVersion": format!("{GROUP}/{version}"), "metadata": {"name": COMPONENT},
            });
            if let (Value::Object(object), Value::Object(fields)) = (&mut object, structured) {
                object.extend(fields);
            }
            http::answer(StatusCode::OK, "application/json", object.to_string())
        }
        None => http::text(
            StatusCode::NOT_ACCEPTABLE,
            format!("what there is: text/plain; application/json;v=v1beta1;g={GROUP};as={kind}\n"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    fn accepting(accept: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(accept))])
    }

    async fn body(answer: Answer) -> (u16, String) {
        let status = answer.status().as_u16();
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }

    fn pages() -> ZPages {
        ZPages {
            started: "2026-01-02T03:04:05Z".parse().unwrap(),
            flags: BTreeMap::from(
                [("pin-dir", "/p"), ("attach", "auto")].map(|(name, value)| (name.into(), value.into())),
            ),
        }
    }

    /// behaviour.md 8.7: text for people, with what components of Kubernetes say.
    #[tokio::test]
    async fn rule_8_7_statusz_and_flagz_are_text() {
        let now = "2026-01-02T04:05:10Z".parse().unwrap();
        let (status, text) = body(pages().statusz_at(now, &HeaderMap::new(), &["/healthz", "/metrics"])).await;
        assert_eq!(status, 200);
        assert!(
            text.starts_with("\nproxy-agent statusz\nWarning: This endpoint is not meant to be machine"),
            "{text}"
        );
        let rest = concat!(
            "\n\nStarted: Fri Jan  2 03:04:05 UTC 2026\nUp: 1 hr 01 min 05 sec\nBinary version: ",
            env!("CARGO_PKG_VERSION"),
            "\nPaths: /healthz /metrics\n"
        );
        assert!(text.ends_with(rest), "{text}");
        let (status, text) = body(pages().flagz(&accepting("text/html, */*;q=0.8"))).await;
        assert!(
            status == 200 && text.ends_with("\n\nattach=auto\npin-dir=/p\n"),
            "{text}"
        );
    }

    /// behaviour.md 8.7: an object, if it is asked for by group, version and kind; JSON of no kind is refused.
    #[tokio::test]
    async fn rule_8_7_statusz_and_flagz_are_objects_by_name_and_version() {
        let asked = accepting("application/json;v=v1alpha1;g=config.k8s.io;as=Statusz");
        let now = "2026-01-02T03:04:06Z".parse().unwrap();
        let (status, text) = body(pages().statusz_at(now, &asked, &["/metrics"])).await;
        let expected = json!({
            "kind": "Statusz", "apiVersion": "config.k8s.io/v1alpha1", "metadata": {"name": "proxy-agent"},
            "startTime": "2026-01-02T03:04:05Z", "uptimeSeconds": 1, "binaryVersion": env!("CARGO_PKG_VERSION"),
            "paths": ["/metrics"],
        });
        assert_eq!((status, serde_json::from_str::<Value>(&text).unwrap()), (200, expected));
        let asked = accepting("application/json; v=v1beta1; g=config.k8s.io; as=Flagz");
        let (_, text) = body(pages().flagz(&asked)).await;
        let object: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(object["apiVersion"], "config.k8s.io/v1beta1");
        assert_eq!(object["flags"], json!({"attach": "auto", "pin-dir": "/p"}));
        for accept in [
            "application/json",
            "application/json;v=v1beta1;g=config.k8s.io;as=Statusz",
            "image/png",
        ] {
            assert_eq!(body(pages().flagz(&accepting(accept))).await.0, 406, "{accept}");
        }
    }
}
