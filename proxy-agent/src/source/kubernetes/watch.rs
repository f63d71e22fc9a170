//! Follows one kind of object: list everything page by page, then watch from there, for ever.
//!
//! `kube::runtime::watcher` does this too, but it doesn't tell when a broken watch works again (so a problem could not be
//! taken back before the next object changes), starts a watch whose version is answered with HTTP status 410 again and
//! again instead of listing, and logs a forbidden watch at each retry.

use std::{collections::BTreeMap, fmt::Debug, pin::pin, time::Duration};

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use futures::{AsyncReadExt as _, Stream, StreamExt as _};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta;
use kube::{
    Api, Resource, ResourceExt as _,
    api::{ListParams, WatchEvent, WatchParams},
    core::{DeserializeGuard, Request},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use tokio::{
    sync::mpsc::{Sender, error::SendError},
    time::{Instant, sleep, timeout},
};
use tracing::debug;

use super::{Kubernetes, failure::Failure, report::Report};
use crate::{
    model::{Kind, ObjectName, Problem, Reading},
    source::{Change, Event},
};

/// An API server ends its own requests after 60 s; later no answer will come.
const ANSWER_LIMIT: Duration = Duration::from_mins(1);

/// How long the API server is asked to keep a watch open. kube allows up to 295 s.
const WATCH_SECONDS: u32 = 290;

/// API servers send a bookmark about every minute. A connection silent for longer may be dead without either end having
/// said so (a failed-over load balancer, a rebooted host). Or the API server's data are older than what was told here (etcd
/// restored from a snapshot): then it says nothing until its versions have come that far again. Only a list tells which.
const SILENCE_LIMIT: Duration = Duration::from_secs(150);

/// A watch that lived so long was no failed attempt: the next one begins without a pause to speak of.
const STEADY: Duration = Duration::from_secs(1);

/// How often an API server is asked, and for how much.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// Pauses between attempts begin at 0.1 s and are doubled up to this
    pub longest_pause: Duration,
    /// How long a list counts, however well the watch that follows it goes: one that lost an event doesn't know
    pub list_again: Duration,
    /// Objects a page of a list
    pub page_size: u32,
}

impl Tuning {
    /// The usual one.
    pub const DEFAULT: Self = Self {
        longest_pause: Duration::from_secs(15),
        list_again: Duration::from_hours(4),
        // As client-go asks for.
        page_size: 500,
    };

    /// The pauses before further attempts. As much again at random, so that the nodes of a cluster don't all come back to a
    /// restarted API server at once.
    fn pauses(self) -> ExponentialBackoff {
        let shortest = Duration::from_millis(100).min(self.longest_pause);
        ExponentialBuilder::new()
            .with_min_delay(shortest)
            .with_max_delay(self.longest_pause)
            .with_factor(2.0)
            .with_jitter()
            .without_max_times()
            .build()
    }
}

/// How often an API server that doesn't know a kind is asked whether it does by now: it may have been replaced by a newer
/// one.
const UNKNOWN_KIND_PAUSE: Duration = Duration::from_mins(5);

/// Which objects of a kind to follow; syntax as in the API's query parameters.
#[derive(Clone, Default)]
pub(super) struct Selectors {
    pub(super) labels: Option<String>,
    pub(super) fields: Option<String>,
}

/// Nobody listens any more: the end of a watch.
type Closed = SendError<Event>;

/// The follower of one kind of object.
pub(super) struct Watch<K: Kind> {
    /// An unreadable object must not take the rest of its list with it, hence the guard.
    api: Api<DeserializeGuard<K>>,
    server: String,
    selectors: Selectors,
    node_name: String,
    into_event: fn(Change<Reading<K::Content>>) -> Event,
    events: Sender<Event>,
    report: Report,
    tuning: Tuning,
    /// Pauses after requests that failed
    retries: ExponentialBackoff,
    /// Pauses after watches that ended at once
    restarts: ExponentialBackoff,
    /// Not every API server knows this kind
    is_optional: bool,
}

impl<K> Watch<K>
where
    K: Kind<Content: Send> + Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    pub(super) fn new(
        source: &Kubernetes,
        selectors: Selectors,
        into_event: fn(Change<Reading<K::Content>>) -> Event,
        events: &Sender<Event>,
    ) -> Self {
        Self {
            api: Api::all(source.client.clone()),
            server: source.server.clone(),
            selectors,
            node_name: source.node_name.clone(),
            into_event,
            events: events.clone(),
            report: Report::new(format!("watch {}", K::plural(&())), events.clone()),
            tuning: source.tuning,
            retries: source.tuning.pauses(),
            restarts: source.tuning.pauses(),
            is_optional: false,
        }
    }

    /// An API server that doesn't know this kind is nothing wrong: there are no objects of it.
    pub(super) fn optional(self) -> Self {
        Self {
            is_optional: true,
            ..self
        }
    }

    /// Follows until nobody listens any more.
    pub(super) async fn run(mut self) {
        while let Ok(version) = self.list().await {
            if self.watch(version).await.is_err() {
                break;
            }
        }
    }

    /// Lists until a list is complete, tells it, and returns the version it shows.
    async fn list(&mut self) -> Result<String, Closed> {
        let mut page_size = Some(self.tuning.page_size);
        loop {
            let failure = match self.all_pages(page_size).await {
                Ok(listed) => {
                    self.retries = self.tuning.pauses();
                    self.report.listed(listed.unreadable).await?;
                    self.tell(Change::Replace(listed.objects)).await?;
                    return Ok(listed.version);
                }
                Err(failure) => failure,
            };
            // Read too slowly for the API server's memory: one page is never too late.
            if matches!(failure, Failure::Expired) {
                page_size = None;
            }
            if self.is_optional && failure.is_unknown_kind() {
                self.report.listed(BTreeMap::new()).await?;
                self.tell(Change::Replace(Vec::new())).await?;
                sleep(UNKNOWN_KIND_PAUSE).await;
                continue;
            }
            self.failed(&failure).await?;
        }
    }

    /// Reads one list to its end. All pages show the same version.
    async fn all_pages(&self, page_size: Option<u32>) -> Result<Listed<K::Content>, Failure> {
        let mut listed = Listed {
            objects: Vec::new(),
            unreadable: BTreeMap::new(),
            version: String::new(),
        };
        let mut params = ListParams {
            label_selector: self.selectors.labels.clone(),
            field_selector: self.selectors.fields.clone(),
            limit: page_size,
            ..ListParams::default()
        };
        // Pages are large: one has the place of the one before.
        let mut text = Vec::new();
        loop {
            self.page(&params, &mut text).await?;
            let page: Page<'_> = serde_json::from_slice(&text)?;
            for text in page.items.unwrap_or_default() {
                let object: DeserializeGuard<K> = match serde_json::from_str(text.get()) {
                    Ok(object) => DeserializeGuard(Ok(object)),
                    // What is wrong, and with which object; reading all of them like this takes three times as long.
                    Err(_) => serde_json::from_str(text.get())?,
                };
                match read(object) {
                    // Held until the list is complete: so it is read first.
                    Ok(object) => listed.objects.push(object.read(&self.node_name)),
                    Err((name, problem)) => _ = listed.unreadable.insert(name, problem),
                }
            }
            params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
            if params.continue_token.is_none() {
                listed.version = page.metadata.resource_version.unwrap_or_default();
                return if listed.version.is_empty() {
                    Err(Failure::Unreadable(
                        "a list without metadata.resourceVersion".to_owned(),
                    ))
                } else {
                    Ok(listed)
                };
            }
        }
    }

    /// Asks for a page, and puts its text in the place of another's.
    async fn page(&self, params: &ListParams, text: &mut Vec<u8>) -> Result<(), Failure> {
        let request = Request::new(self.api.resource_url())
            .list(params)
            .map_err(kube::Error::BuildRequest)?;
        text.clear();
        let client = self.api.clone().into_client();
        let read = async {
            let mut body = pin!(client.request_stream(request).await?);
            body.read_to_end(text).await.map_err(kube::Error::ReadEvents)
        };
        within(ANSWER_LIMIT, read).await?;
        Ok(())
    }

    /// Watches from a version on, over any number of connections, until only a list can tell what is: the API server has
    /// forgotten the version, or never knew it, or doesn't know an optional kind; or it was away, after which its data may be
    /// others under the same versions; or the list is old. One that is there and refuses, overloaded perhaps, isn't asked for
    /// a list.
    async fn watch(&mut self, mut version: String) -> Result<(), Closed> {
        let params = WatchParams {
            label_selector: self.selectors.labels.clone(),
            field_selector: self.selectors.fields.clone(),
            timeout: Some(WATCH_SECONDS),
            bookmarks: true,
            send_initial_events: false,
        };
        let api = self.api.clone();
        let listed = Instant::now();
        loop {
            let end = match within(ANSWER_LIMIT, api.watch(&params, &version)).await {
                Ok(stream) => {
                    self.retries = self.tuning.pauses();
                    self.report.working().await?;
                    let begun = Instant::now();
                    let end = self.drain(stream, &mut version).await?;
                    if begun.elapsed() >= STEADY {
                        self.restarts = self.tuning.pauses();
                    }
                    end
                }
                Err(failure) => Some(failure),
            };
            match end {
                None if listed.elapsed() < self.tuning.list_again => self.pause_before_restart().await,
                None => return Ok(()),
                Some(Failure::Expired) => {
                    debug!("{}: version {version} can't be resumed, listing again", K::plural(&()));
                    self.pause_before_restart().await;
                    return Ok(());
                }
                Some(failure) if self.is_optional && failure.is_unknown_kind() => return Ok(()),
                Some(failure) => {
                    self.failed(&failure).await?;
                    if matches!(failure, Failure::Unreachable(_)) {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Tells what one connection brings, and keeps `version` at the last that was told. Returns the failure the API server
    /// ended it with. A lost connection is none yet: whether there is another shows when the watch is resumed. A version that
    /// is not behind the last one was told before, or is another's: what else was, nobody knows.
    async fn drain(
        &mut self,
        stream: impl Stream<Item = kube::Result<WatchEvent<DeserializeGuard<K>>>>,
        version: &mut String,
    ) -> Result<Option<Failure>, Closed> {
        let mut stream = pin!(stream);
        loop {
            let event = match timeout(SILENCE_LIMIT, stream.next()).await {
                Ok(Some(event)) => event,
                Ok(None) => break,
                Err(_) => return Ok(Some(Failure::Expired)),
            };
            match event {
                Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                    let seen = object.resource_version();
                    if is_behind(seen.as_deref(), version) {
                        return Ok(Some(Failure::Expired));
                    }
                    self.apply(object).await?;
                    advance(version, seen);
                }
                Ok(WatchEvent::Deleted(object)) => {
                    let (name, seen) = (name_of(&object), object.resource_version());
                    if is_behind(seen.as_deref(), version) {
                        return Ok(Some(Failure::Expired));
                    }
                    self.report.readable(&name).await?;
                    self.tell(Change::Delete(name)).await?;
                    advance(version, seen);
                }
                Ok(WatchEvent::Bookmark(bookmark)) => {
                    let seen = bookmark.metadata.resource_version;
                    if is_behind(Some(&seen), version) {
                        return Ok(Some(Failure::Expired));
                    }
                    advance(version, Some(seen));
                }
                Ok(WatchEvent::Error(status)) => return Ok(Some(status.into())),
                Err(kube::Error::ReadEvents(error)) => {
                    debug!("watch {}: connection lost: {error}", K::plural(&()));
                    break;
                }
                Err(error) => return Ok(Some(error.into())),
            }
            self.restarts = self.tuning.pauses();
        }
        Ok(None)
    }

    /// Tells a new or changed object. One that can't be read counts as gone: what is served is what the objects say now,
    /// the same before and after a restart.
    async fn apply(&mut self, object: DeserializeGuard<K>) -> Result<(), Closed> {
        match read(object) {
            Ok(object) => {
                self.report.readable(&name_of(&object)).await?;
                let reading = object.read(&self.node_name);
                self.tell(Change::Apply(Box::new(reading))).await
            }
            Err((name, problem)) => {
                self.report.unreadable(name.clone(), problem).await?;
                self.tell(Change::Delete(name)).await
            }
        }
    }

    async fn tell(&self, change: Change<Reading<K::Content>>) -> Result<(), Closed> {
        self.events.send((self.into_event)(change)).await
    }

    async fn failed(&mut self, failure: &Failure) -> Result<(), Closed> {
        self.report
            .failing(failure.reason(&K::plural(&()), &self.server))
            .await?;
        sleep(next(&mut self.retries).max(failure.retry_after())).await;
        Ok(())
    }

    async fn pause_before_restart(&mut self) {
        sleep(next(&mut self.restarts)).await;
    }
}

fn next(pauses: &mut ExponentialBackoff) -> Duration {
    pauses.next().expect("the number of retries has no limit")
}

/// One page of a list. Its objects are read one by one, for the sake of those beside an unreadable one.
#[derive(Deserialize)]
struct Page<'a> {
    metadata: ListMeta,
    /// Null is another way to write an empty list.
    #[serde(borrow)]
    items: Option<Vec<&'a RawValue>>,
}

/// A complete list.
struct Listed<T> {
    objects: Vec<Reading<T>>,
    unreadable: BTreeMap<ObjectName, Problem>,
    version: String,
}

/// The object, or what is wrong with it.
fn read<K: Resource<DynamicType = ()>>(object: DeserializeGuard<K>) -> Result<K, (ObjectName, Problem)> {
    let name = name_of(&object);
    match object.0 {
        Ok(object) => Ok(object),
        Err(invalid) => {
            let problem = Problem {
                object: format!("{} {name}", K::kind(&())),
                field: String::new(),
                reason: format!("can't be read and is left out: {}", invalid.error),
            };
            Err((name, problem))
        }
    }
}

/// Whether a version is smaller than one that was told before. Versions are numbers that grow over all objects of a kind
/// (Kubernetes enhancement 5504); those of a server that has others can't be compared.
fn is_behind(seen: Option<&str>, told: &str) -> bool {
    let number = |version: &str| version.parse::<u64>().ok();
    match (seen.and_then(number), number(told)) {
        (Some(seen), Some(told)) => seen < told,
        _ => false,
    }
}

/// Moves on to the version of what was told last. Without a version nothing is said about how far that was.
fn advance(version: &mut String, seen: Option<String>) {
    if let Some(seen) = seen.filter(|seen| !seen.is_empty()) {
        *version = seen;
    }
}

fn name_of<K: Resource>(object: &K) -> ObjectName {
    ObjectName {
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
    }
}

async fn within<T>(limit: Duration, request: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
    match timeout(limit, request).await {
        Ok(answer) => answer.map_err(Failure::from),
        Err(_) => Err(Failure::Silent(limit)),
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use k8s_openapi::api::core::v1::Node;
    use kube::{Client, Config};
    use tokio::sync::mpsc;

    use super::*;

    fn nowhere(events: &Sender<Event>) -> Watch<Node> {
        let config = Config::new("http://127.0.0.1:1".parse().expect("a URL"));
        let source = Kubernetes {
            client: Client::try_from(config).expect("a client"),
            server: String::new(),
            node_name: String::new(),
            tuning: Tuning::DEFAULT,
        };
        Watch::new(&source, Selectors::default(), Event::Node, events)
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_is_given_up() {
        let (sender, _receiver) = mpsc::channel(1);
        let mut version = "7".to_owned();
        let start = Instant::now();
        let end = nowhere(&sender).drain(futures::stream::pending(), &mut version).await;
        assert!(matches!(end, Ok(Some(Failure::Expired))), "a list follows: {end:?}");
        assert!(start.elapsed() >= SILENCE_LIMIT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_without_answer_is_given_up() {
        let answer = within::<()>(ANSWER_LIMIT, pending()).await;
        assert!(matches!(answer, Err(Failure::Silent(ANSWER_LIMIT))), "{answer:?}");
    }

    #[test]
    fn retries_begin_at_once_and_stay_within_half_a_minute() {
        let delays: Vec<_> = Tuning::DEFAULT.pauses().take(20).collect();
        assert!(delays[0] <= Duration::from_millis(200), "{delays:?}");
        assert!(delays[19] >= Duration::from_secs(15), "{delays:?}");
        assert!(
            delays.iter().all(|delay| *delay <= Duration::from_secs(30)),
            "{delays:?}"
        );
        assert_eq!(delays.len(), 20, "they never end");
    }
}
