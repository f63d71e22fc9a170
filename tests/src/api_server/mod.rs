//! A Kubernetes API server for tests: real list and watch semantics over HTTP, and every way it can fail, on demand.
//!
//! It knows Services, EndpointSlices, Nodes and ServiceCIDRs, across all namespaces, reading only; tests write with
//! [`ApiServer::apply`] and [`ApiServer::delete`]. Events can be created, and are kept for the test
//! ([`ApiServer::events`]).
//!
//! Agents talk to a *front*, which notes what they ask and fails when it is told to. Behind it are objects in memory; or, if
//! `KUBEBUILDER_ASSETS` names a folder with `etcd` and `kube-apiserver`, a real API server with the same objects
//! (docs/testing.md). Objects are therefore such as a real one takes; what is nonsense is made on the way
//! ([`ApiServer::garble`]).

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use self::{real::Real, state::Shared, store::Key, tls::Tls};
pub use self::{
    resource::Resource,
    state::{Gone, Mangle, Request, Traffic, Verb},
};

mod http;
mod open_watch;
mod real;
mod relay;
mod resource;
mod selector;
mod state;
mod store;
mod tls;

/// How long the `wait_` functions wait before they panic.
const PATIENCE: Duration = Duration::from_secs(20);

/// A moment that [`ApiServer::restore`] goes back to.
#[derive(Clone, Copy, Debug)]
pub struct Saved(u64);

/// The server, on a thread of its own. It stops when dropped.
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    /// `None` over plain TCP
    tls: Option<Arc<Tls>>,
    serving: Option<Serving>,
}

struct Serving {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl ApiServer {
    /// Starts on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When no socket or thread is to be had.
    pub fn start() -> io::Result<Self> {
        Self::on(TcpListener::bind("127.0.0.1:0")?)
    }

    /// Starts on a listener bound before, in a network namespace perhaps.
    ///
    /// # Errors
    /// When the listener or a thread is unusable.
    pub fn on(listener: TcpListener) -> io::Result<Self> {
        Self::with(listener, None)
    }

    /// Starts on a listener bound before, at 127.0.0.1: answers over TLS only, and only to who has the token of its
    /// [`Self::kubeconfig`].
    ///
    /// # Errors
    /// When the listener or a thread is unusable.
    pub fn secure(listener: TcpListener) -> io::Result<Self> {
        Self::with(listener, Some(Arc::new(Tls::new()?)))
    }

    fn with(listener: TcpListener, tls: Option<Arc<Tls>>) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::new(Real::of_environment()?));
        let serving = Some(Serving::start(listener, &shared, tls.as_ref())?);
        let server = Self {
            shared,
            address,
            tls,
            serving,
        };
        if server.shared.real.is_none() {
            // As each has from its start.
            server.apply(json!({
                "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
                "spec": {"cidrs": ["10.96.0.0/16", "fd00:10:96::/112"]},
            }));
        }
        Ok(server)
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Writes a kubeconfig that leads here into a directory and returns its path. Of a [`Self::secure`] one also `ca.crt` and `token`.
    ///
    /// # Errors
    /// When a file can't be written.
    pub fn kubeconfig(&self, directory: &Path) -> io::Result<PathBuf> {
        let (scheme, (mut cluster, user)) = match &self.tls {
            Some(tls) => ("https", tls.write(directory)?),
            None => ("http", (json!({}), json!({}))),
        };
        cluster["server"] = format!("{scheme}://{}", self.address).into();
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "node", "user": user}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "node"}}],
            "current-context": "test",
        });
        let path = directory.join("kubeconfig");
        fs::write(&path, config.to_string())?;
        Ok(path)
    }

    /// Creates an object, or replaces the one of its kind, namespace and name.
    ///
    /// # Panics
    /// When it has no name or its kind is none of [`Resource`], or a real API server refuses it.
    pub fn apply(&self, object: impl Serialize) {
        let object = serde_json::to_value(object).expect("an object is serializable");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let kind = text(&object["kind"]);
        let key = Key {
            resource: Resource::of_kind(&kind).unwrap_or_else(|| panic!("no such kind here: {kind:?}")),
            namespace: text(&object["metadata"]["namespace"]),
            name: text(&object["metadata"]["name"]),
        };
        assert!(!key.name.is_empty(), "an object without metadata.name: {object}");
        match &self.shared.real {
            Some(real) => real.apply(&key, object),
            None => self.shared.change(|state| state.store.apply(key, object)),
        }
    }

    /// Begins to delete an object that something holds on to: it stays, with the time of its deletion.
    ///
    /// # Panics
    /// When there is none.
    pub fn begin_deletion(&self, resource: Resource, namespace: &str, name: &str) {
        let key = key(resource, namespace, name);
        match &self.shared.real {
            Some(real) => real.begin_deletion(&key),
            None => self.shared.change(|state| {
                let mut object = state.store.get(&key).expect("it is there").clone();
                object["metadata"]["deletionTimestamp"] = "2026-01-02T03:04:05Z".into();
                state.store.apply(key, object);
            }),
        }
    }

    /// Deletes an object; the namespace of a Node or a ServiceCIDR is empty.
    ///
    /// # Panics
    /// When there is none.
    pub fn delete(&self, resource: Resource, namespace: &str, name: &str) {
        let is_deleted = self.remove(resource, namespace, name);
        assert!(is_deleted, "nothing to delete: {resource:?} {namespace}/{name}");
    }

    /// Deletes an object, and says whether there was one.
    pub fn remove(&self, resource: Resource, namespace: &str, name: &str) -> bool {
        let key = key(resource, namespace, name);
        match &self.shared.real {
            Some(real) => real.delete(&key),
            None => self.shared.change(|state| state.store.delete(&key)),
        }
    }

    /// Tells this object with another value in the place of a field, by a JSON pointer, which need not be one that an API
    /// server would take; `None` as it is.
    pub fn garble(&self, resource: Resource, namespace: &str, name: &str, value: Option<(&str, Value)>) {
        let key = key(resource, namespace, name);
        self.shared.change(|state| match value {
            Some((pointer, value)) => _ = state.faults.garbled.insert(key, (pointer.to_owned(), value)),
            None => _ = state.faults.garbled.remove(&key),
        });
    }

    /// Forgets all history: from now on whoever asks for an earlier version gets 410 Gone. Open watches go on.
    pub fn compact(&self, gone: Gone) {
        let version = self.version();
        self.shared.change(|state| {
            state.store.compact();
            state.faults.compacted = version;
            state.faults.gone = gone;
        });
    }

    /// Breaks the connections of all open watches.
    pub fn drop_watches(&self) {
        self.shared.change(|state| state.orders.drop += 1);
    }

    /// Ends all open watches with an `ERROR` event of code 410.
    pub fn expire_watches(&self) {
        self.shared.change(|state| state.orders.expire += 1);
    }

    /// Ends all open watches as if their time were up: with a bookmark of the current version for those that want one.
    pub fn end_watches(&self) {
        self.shared.change(|state| state.orders.end += 1);
    }

    /// Answers 410 to whoever asks for the second page of a list, as if it came too late.
    pub fn forget_pages(&self) {
        self.shared.change(|state| state.faults.forget_pages = true);
    }

    /// Lets every answer wait this long from now on. What it says is decided after that time.
    pub fn delay(&self, delay: Duration) {
        self.shared.change(|state| state.faults.delay = delay);
    }

    /// Answers 403 to whoever asks for this kind.
    pub fn forbid(&self, resource: Resource) {
        self.shared.change(|state| state.faults.forbidden.insert(resource));
    }

    /// Answers 403 to whoever creates an Event, or takes that back.
    pub fn refuse_events(&self, refuse: bool) {
        self.shared.change(|state| state.faults.events_forbidden = refuse);
    }

    /// Answers 404 to whoever asks for this kind, as a server does that is too old to know it.
    pub fn forget_kind(&self, resource: Resource) {
        self.shared.change(|state| state.faults.unknown.insert(resource));
    }

    /// Answers everything with this HTTP status.
    pub fn fail(&self, status: u16) {
        self.shared.change(|state| state.faults.status = Some(status));
    }

    /// Lets this happen to all events of watches from now on.
    pub fn mangle(&self, mangle: Mangle) {
        self.shared.change(|state| state.faults.events = Some(mangle));
    }

    /// The version of the last change.
    pub fn version(&self) -> u64 {
        match &self.shared.real {
            Some(real) => real.version(),
            None => self.shared.read(|state| state.store.version()),
        }
    }

    /// Notes how all is now, for [`Self::restore`].
    ///
    /// # Errors
    /// When the files of a real one can't be copied.
    pub fn save(&self) -> io::Result<Saved> {
        match &self.shared.real {
            Some(real) => Ok(Saved(real.save()? as u64)),
            None => Ok(Saved(self.version())),
        }
    }

    /// Stops, goes back to how all was, as with an etcd that was restored from a snapshot, and listens again: what happened
    /// since never did, and its versions are given out anew.
    ///
    /// # Errors
    /// Those of [`Self::restart`], or a real one that doesn't start again.
    pub fn restore(&mut self, saved: Saved) -> io::Result<()> {
        self.stop();
        match &self.shared.real {
            Some(real) => real.restore(usize::try_from(saved.0).map_err(io::Error::other)?)?,
            None => self.shared.change(|state| state.store.restore(saved.0)),
        }
        self.shared.change(|state| state.faults.compacted = 0);
        self.restart()
    }

    /// Takes back [`Self::forbid`], [`Self::forget_kind`], [`Self::fail`], [`Self::forget_pages`], [`Self::mangle`] and
    /// [`Self::delay`].
    pub fn allow_all(&self) {
        self.shared.change(|state| {
            state.faults.forbidden.clear();
            state.faults.unknown.clear();
            state.faults.status = None;
            state.faults.forget_pages = false;
            state.faults.events = None;
            state.faults.delay = Duration::ZERO;
        });
    }

    /// All requests so far, in the order of arrival.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.read(|state| state.requests.clone())
    }

    /// How much it sent so far.
    pub fn traffic(&self) -> Traffic {
        self.shared.read(|state| state.traffic)
    }

    /// Blocks until the requests so far satisfy a condition.
    ///
    /// # Panics
    /// When they don't within 20 s.
    pub fn wait_for_requests(&self, what: &str, condition: impl Fn(&[Request]) -> bool) {
        self.shared
            .wait_until(what, PATIENCE, |state| condition(&state.requests));
    }

    /// All Events (`events.k8s.io/v1`) that were created so far, as they came.
    pub fn events(&self) -> Vec<Value> {
        self.shared.read(|state| state.events.clone())
    }

    /// Blocks until an Event was created that satisfies a condition, and returns it.
    ///
    /// # Panics
    /// When there is none within 20 s.
    pub fn wait_for_event(&self, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let find = |events: &[Value]| events.iter().find(|event| condition(event)).cloned();
        self.shared
            .wait_until(what, PATIENCE, |state| find(&state.events).is_some());
        find(&self.events()).expect("events stay")
    }

    /// Blocks until just this many watches are open, of all kinds together.
    ///
    /// # Panics
    /// When there aren't within 20 s.
    pub fn wait_for_watches(&self, count: usize) {
        self.shared
            .wait_until(&format!("{count} open watches"), PATIENCE, |state| {
                state.watches.len() == count
            });
    }

    /// Closes the listener and all connections, as a server that is restarted does. Objects and history stay.
    pub fn stop(&mut self) {
        if let Some(Serving { stop, thread }) = self.serving.take() {
            _ = stop.send(());
            // A panic there failed requests, which the test sees; a second panic in a destructor would abort.
            _ = thread.join();
        }
    }

    /// Listens again at the same address, after [`Self::stop`]; in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the address is taken by now, or no thread is to be had.
    pub fn restart(&mut self) -> io::Result<()> {
        self.stop();
        self.serving = Some(Serving::start(
            TcpListener::bind(self.address)?,
            &self.shared,
            self.tls.as_ref(),
        )?);
        Ok(())
    }
}

fn key(resource: Resource, namespace: &str, name: &str) -> Key {
    Key {
        resource,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Serving {
    fn start(listener: TcpListener, shared: &Arc<Shared>, tls: Option<&Arc<Tls>>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let (shared, tls) = (shared.clone(), tls.cloned());
        let thread = thread::Builder::new().name("api-server".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    error = serve(listener, shared, tls) => panic!("the test API server can't accept: {error}"),
                    // Whatever ends the wait, the runtime ends with it, and with the runtime all connections.
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Self { stop, thread })
    }
}

/// Serves connections until the listener breaks.
async fn serve(listener: TcpListener, shared: Arc<Shared>, tls: Option<Arc<Tls>>) -> io::Error {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return error,
    };
    loop {
        let connection = match listener.accept().await {
            Ok((connection, _)) => connection,
            Err(error) => return error,
        };
        // As Go's servers do: else an event waits 40 ms for the acknowledgement of the one before. A connection that is gone by
        // now fails where it is served.
        _ = connection.set_nodelay(true);
        let shared = shared.clone();
        // A connection ends in an error when the client goes away or a test broke it: both are as it should be.
        match tls.clone() {
            None => {
                let service = service_fn(move |request| http::answer(shared.clone(), request));
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(connection), service));
            }
            Some(tls) => {
                let service = service_fn({
                    let tls = tls.clone();
                    move |request| http::answer_who_may_ask(shared.clone(), tls.clone(), request)
                });
                tokio::spawn(async move {
                    let connection = tls.acceptor.accept(connection).await.map_err(|_| ())?;
                    let served = http1::Builder::new().serve_connection(TokioIo::new(connection), service);
                    served.await.map_err(|_| ())
                });
            }
        }
    }
}
