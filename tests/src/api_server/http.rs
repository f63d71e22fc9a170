//! Requests and answers in the API's words: lists in pages, watches as lines of JSON, errors as `Status` objects.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Method, Response,
    body::{Frame, Incoming},
    header::CONTENT_TYPE,
};
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};

use super::{
    open_watch::OpenWatch,
    relay,
    resource::Resource,
    selector::Selector,
    state::{Gone, Request, Shared, Verb},
    tls::Tls,
};

pub(super) type Answer = Response<UnsyncBoxBody<Bytes, io::Error>>;

/// Answers one request, and counts what is sent.
pub(super) async fn answer(shared: Arc<Shared>, request: hyper::Request<Incoming>) -> Result<Answer, Infallible> {
    let answer = respond_to(shared.clone(), request).await;
    Ok(answer.map(|body| {
        let count = move |frame: Frame<Bytes>| {
            shared.sent(frame.data_ref().map_or(0, |data| data.len() as u64));
            frame
        };
        body.map_frame(count).boxed_unsync()
    }))
}

/// [`answer`] to who has the token; 401 to others.
pub(super) async fn answer_who_may_ask(
    shared: Arc<Shared>,
    tls: Arc<Tls>,
    request: hyper::Request<Incoming>,
) -> Result<Answer, Infallible> {
    if tls.is_shown(request.headers()) {
        answer(shared, request).await
    } else {
        Ok(failure(401, "Unauthorized", "Unauthorized"))
    }
}

async fn respond_to(shared: Arc<Shared>, request: hyper::Request<Incoming>) -> Answer {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    if parts.method == Method::POST && is_events(path) {
        return record(&shared, parts.uri.path(), body).await;
    }
    let Some(resource) = Resource::at_path(path).filter(|_| parts.method == Method::GET) else {
        return failure(404, "NotFound", &format!("this server has no {} {path}", parts.method));
    };
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    let verb = match query.token {
        _ if query.watch => Verb::Watch { from: query.version },
        Some(_) => Verb::NextPage,
        None => Verb::List { limit: query.limit },
    };
    let delay = shared.change(|state| {
        let (labels, fields) = (query.labels.clone(), query.fields.clone());
        state.requests.push(Request {
            resource,
            verb,
            labels,
            fields,
        });
        state.faults.delay
    });
    sleep(delay).await;

    let faults = shared.read(|state| state.faults.clone());
    if let Some(status) = faults.status {
        return failure(status, "", "switched on by the test");
    }
    if faults.unknown.contains(&resource) {
        return failure(404, "NotFound", "the server could not find the requested resource");
    }
    if faults.forbidden.contains(&resource) {
        let (verb, resource) = (if query.watch { "watch" } else { "list" }, resource.plural());
        let message = format!("User \"node\" cannot {verb} resource \"{resource}\" at the cluster scope");
        return failure(403, "Forbidden", &message);
    }
    if faults.forget_pages && query.token.is_some() {
        return gone();
    }
    if let Some(real) = &shared.real {
        let uri = parts.uri.path_and_query().map_or(path, |uri| uri.as_str());
        return if query.watch {
            relay::watch(&shared, real, resource, &query, uri).await
        } else {
            relay::list(&shared, real, resource, uri).await
        };
    }
    let selector = match Selector::parse(resource, &query.labels, &query.fields) {
        Ok(selector) => selector,
        Err(message) => return failure(400, "BadRequest", &message),
    };
    if query.watch {
        watch(shared, resource, selector, &query, faults.gone)
    } else {
        list(&shared, resource, &selector, &query)
    }
}

/// Whether an Event may be created at this path.
fn is_events(path: &str) -> bool {
    let namespace = path
        .strip_prefix("/apis/events.k8s.io/v1/namespaces/")
        .and_then(|path| path.strip_suffix("/events"));
    namespace.is_some_and(|namespace| !namespace.contains('/'))
}

/// Takes an Event in.
async fn record(shared: &Shared, path: &str, body: Incoming) -> Answer {
    let faults = shared.read(|state| state.faults.clone());
    if let Some(status) = faults.status {
        return failure(status, "", "switched on by the test");
    }
    if faults.events_forbidden {
        return failure(403, "Forbidden", "User \"node\" cannot create resource \"events\"");
    }
    let Ok(body) = body.collect().await.map(http_body_util::Collected::to_bytes) else {
        return failure(400, "BadRequest", "half a request");
    };
    let Ok(event) = serde_json::from_slice(&body) else {
        return failure(400, "BadRequest", "this is no JSON");
    };
    let answer = match &shared.real {
        Some(real) => relay::create(real, path, body.into()).await,
        None => respond(201, &event),
    };
    if answer.status() != 201 {
        return answer;
    }
    shared.change(|state| state.events.push(event));
    answer
}

fn list(shared: &Shared, resource: Resource, selector: &Selector, query: &Query) -> Answer {
    let limit = if query.limit == 0 { usize::MAX } else { query.limit };
    let Ok(page) = shared.read(|state| state.store.list(resource, selector, limit, query.token.as_deref())) else {
        return gone();
    };
    let mut metadata = json!({"resourceVersion": page.version.to_string()});
    if page.rest.is_none() && matches!(resource, Resource::Services | Resource::EndpointSlices) {
        shared.listed();
    }
    if let Some((token, count)) = page.rest {
        metadata["continue"] = token.into();
        metadata["remainingItemCount"] = count.into();
    }
    let mut items = page.objects;
    // The items of a list of one kind don't repeat it.
    for item in items.iter_mut().filter_map(Value::as_object_mut) {
        item.remove("apiVersion");
        item.remove("kind");
    }
    shared.read(|state| {
        for item in &mut items {
            state.faults.garble(resource, item);
        }
    });
    respond(
        200,
        &json!({
            "apiVersion": resource.api_version(),
            "kind": format!("{}List", resource.kind()),
            "metadata": metadata,
            "items": items,
        }),
    )
}

fn watch(shared: Arc<Shared>, resource: Resource, selector: Selector, query: &Query, as_gone: Gone) -> Answer {
    enum Start {
        At { version: u64, lines: Vec<Bytes> },
        Forgotten,
        Future,
    }
    let news = shared.subscribe();
    let (start, orders) = shared.change(|state| {
        let (store, from) = (&state.store, query.version);
        let start = if from == 0 {
            let events = store
                .list(resource, &selector, usize::MAX, None)
                .ok()
                .map_or_else(Vec::new, |page| page.objects);
            Start::At {
                version: store.version(),
                lines: events.iter().map(|object| line("ADDED", object)).collect(),
            }
        } else if !store.remembers(from) {
            Start::Forgotten
        } else if from > store.version() {
            Start::Future
        } else {
            Start::At {
                version: from,
                lines: Vec::new(),
            }
        };
        if matches!(start, Start::At { .. }) {
            state.watches.push(resource);
        }
        (start, state.orders)
    });
    let (version, lines) = match start {
        Start::At { version, lines } => (version, lines),
        Start::Forgotten if as_gone == Gone::Status => return gone(),
        Start::Forgotten => return stream(vec![line("ERROR", &gone_status())], None),
        Start::Future => return failure(504, "Timeout", "Too large resource version"),
    };
    let (open, receiver) = OpenWatch::new(shared, resource, version, orders, query);
    let watcher = Watcher {
        open,
        selector,
        deadline: Instant::now() + query.timeout,
    };
    tokio::spawn(watcher.run(news));
    stream(lines, Some(receiver))
}

/// An open watch of the store.
struct Watcher {
    open: OpenWatch,
    selector: Selector,
    deadline: Instant,
}

impl Watcher {
    async fn run(mut self, mut news: tokio::sync::watch::Receiver<()>) {
        loop {
            news.borrow_and_update();
            let (mut events, mangle, orders, version) = self.open.shared.read(|state| {
                let open = &self.open;
                let mut events = state.store.events_after(open.version, open.resource, &self.selector);
                for event in &mut events {
                    state.faults.garble(open.resource, &mut event.object);
                }
                (events, state.faults.events, state.orders, state.store.version())
            });
            if let Some(mangle) = mangle {
                mangle.apply(&mut events);
            }
            if let Some(last) = self.open.broken_off(orders) {
                return self.open.send(last).await;
            }
            for event in events {
                self.open.send(Ok(line(event.kind, &event.object))).await;
            }
            self.open.version = version;
            if self.open.is_over(orders) {
                return self.open.bookmark().await;
            }
            tokio::select! {
                changed = news.changed() => if changed.is_err() { return },
                () = self.open.closed() => return,
                () = sleep_until(self.deadline) => return self.open.bookmark().await,
            }
        }
    }
}

/// The query parameters of lists and watches.
pub(super) struct Query {
    pub(super) watch: bool,
    labels: String,
    fields: String,
    limit: usize,
    token: Option<String>,
    pub(super) version: u64,
    timeout: Duration,
    pub(super) bookmarks: bool,
}

impl Query {
    fn parse(query: &str) -> Self {
        let mut parsed = Self {
            watch: false,
            labels: String::new(),
            fields: String::new(),
            limit: 0,
            token: None,
            version: 0,
            // What an API server does at least when not asked (--min-request-timeout).
            timeout: Duration::from_mins(30),
            bookmarks: false,
        };
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let is_true = || matches!(value.as_ref(), "true" | "1");
            match name.as_ref() {
                "watch" => parsed.watch = is_true(),
                "labelSelector" => parsed.labels = value.into_owned(),
                "fieldSelector" => parsed.fields = value.into_owned(),
                "limit" => parsed.limit = value.parse().unwrap_or(0),
                "continue" => parsed.token = Some(value.into_owned()),
                "resourceVersion" => parsed.version = value.parse().unwrap_or(0),
                "timeoutSeconds" => parsed.timeout = value.parse().map_or(parsed.timeout, Duration::from_secs),
                "allowWatchBookmarks" => parsed.bookmarks = is_true(),
                _ => {}
            }
        }
        parsed
    }
}

pub(super) fn respond(status: u16, body: &Value) -> Answer {
    build(
        status,
        Full::from(body.to_string()).map_err(io::Error::other).boxed_unsync(),
    )
}

/// Lines of JSON: those at hand, then those to come.
pub(super) fn stream(lines: Vec<Bytes>, receiver: Option<mpsc::Receiver<io::Result<Bytes>>>) -> Answer {
    let to_come = futures::stream::unfold(receiver, |receiver| async move {
        let mut receiver = receiver?;
        receiver.recv().await.map(|line| (line, Some(receiver)))
    });
    let at_hand = futures::stream::iter(lines.into_iter().map(Ok));
    let frames = futures::StreamExt::map(futures::StreamExt::chain(at_hand, to_come), |line| {
        line.map(Frame::data)
    });
    build(200, StreamBody::new(frames).boxed_unsync())
}

pub(super) fn build(status: u16, body: UnsyncBoxBody<Bytes, io::Error>) -> Answer {
    Response::builder()
        .status(status)
        .header(CONTENT_TYPE, "application/json")
        .body(body)
        .expect("the status is one that a test or this server chose")
}

pub(super) fn line(kind: &str, object: &Value) -> Bytes {
    format!("{}\n", json!({"type": kind, "object": object})).into()
}

pub(super) fn failure(code: u16, reason: &str, message: &str) -> Answer {
    respond(code, &status(code, reason, message))
}

pub(super) fn gone() -> Answer {
    respond(410, &gone_status())
}

pub(super) fn gone_status() -> Value {
    status(410, "Expired", "too old resource version")
}

fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Status",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    })
}
