//! What the server's threads share: the objects, the faults switched on, and what was asked.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::sync::watch;

use super::{
    real::Real,
    resource::Resource,
    store::{Key, Store},
};

/// How a watch of a forgotten version is answered; API servers do both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gone {
    /// HTTP status 410
    #[default]
    Status,
    /// HTTP status 200 and an `ERROR` event with code 410
    Event,
}

/// A request that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What it asks for
    pub resource: Resource,
    /// How
    pub verb: Verb,
    /// Its label selector, as sent
    pub labels: String,
    /// Its field selector, as sent
    pub fields: String,
}

/// What a request wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// The first page of a list, of this size (0: no limit)
    List {
        /// Objects a page
        limit: usize,
    },
    /// Another page of a list
    NextPage,
    /// Changes
    Watch {
        /// after this version (0: everything there is, too)
        from: u64,
    },
}

/// What the server sent, and when.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    /// Bytes of the answers' bodies so far
    pub bytes: u64,
    /// When the last page of a list of Services or EndpointSlices was handed out last
    pub listed: Option<Instant>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) store: Store,
    pub(super) requests: Vec<Request>,
    pub(super) traffic: Traffic,
    /// Events that were created
    pub(super) events: Vec<Value>,
    /// One entry for each open watch
    pub(super) watches: Vec<Resource>,
    pub(super) faults: Faults,
    pub(super) orders: Orders,
}

/// What goes wrong with every request while it is switched on.
#[derive(Clone, Default)]
pub(super) struct Faults {
    pub(super) delay: Duration,
    pub(super) forbidden: BTreeSet<Resource>,
    pub(super) unknown: BTreeSet<Resource>,
    pub(super) status: Option<u16>,
    pub(super) events_forbidden: bool,
    pub(super) gone: Gone,
    pub(super) forget_pages: bool,
    pub(super) events: Option<Mangle>,
    /// Watches that begin before this version of a real API server are too late
    pub(super) compacted: u64,
    /// What is put in the place of a field of an object, by a JSON pointer
    pub(super) garbled: BTreeMap<Key, (String, Value)>,
}

impl Faults {
    /// Spoils an object that is to be spoilt.
    pub(super) fn garble(&self, resource: Resource, object: &mut Value) {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let (namespace, name) = (text("namespace"), text("name"));
        let garbled = self.garbled.get(&Key {
            resource,
            namespace,
            name,
        });
        if let Some((place, (_, value))) = garbled.and_then(|garbled| Some((object.pointer_mut(&garbled.0)?, garbled)))
        {
            *place = value.clone();
        }
    }
}

/// What happens to the events of watches on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mangle {
    /// They get lost
    Lose,
    /// Each comes twice
    Duplicate,
    /// Those that happen together come in the opposite order
    Reverse,
}

impl Mangle {
    /// Has it happen to events that came together.
    pub(super) fn apply<T: Clone>(self, events: &mut Vec<T>) {
        match self {
            Self::Lose => events.clear(),
            Self::Duplicate => *events = events.iter().flat_map(|event| [event.clone(), event.clone()]).collect(),
            Self::Reverse => events.reverse(),
        }
    }
}

/// How often each was ordered of all open watches; a watch compares with what it saw when it began.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Orders {
    /// End without a word: the connection breaks
    pub(super) drop: u32,
    /// End with an `ERROR` event of code 410
    pub(super) expire: u32,
    /// End as if its time were up: a bookmark, then a proper end
    pub(super) end: u32,
}

/// [`State`], and the news that it changed: for the server's tasks and for blocking tests.
pub(super) struct Shared {
    /// Where the objects are, if not in the state
    pub(super) real: Option<Real>,
    state: Mutex<State>,
    for_tests: Condvar,
    for_watches: watch::Sender<()>,
}

impl Shared {
    pub(super) fn new(real: Option<Real>) -> Self {
        Self {
            real,
            state: Mutex::default(),
            for_tests: Condvar::new(),
            for_watches: watch::Sender::new(()),
        }
    }

    pub(super) fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.lock())
    }

    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.for_tests.notify_all();
        self.for_watches.send_replace(());
        result
    }

    /// Counts what is sent: no news.
    pub(super) fn sent(&self, bytes: u64) {
        self.lock().traffic.bytes += bytes;
    }

    /// A list is handed out to its end.
    pub(super) fn listed(&self) {
        self.lock().traffic.listed = Some(Instant::now());
    }

    /// News for a watch: each change from now on.
    pub(super) fn subscribe(&self) -> watch::Receiver<()> {
        self.for_watches.subscribe()
    }

    /// Blocks until a condition holds; panics with all that was asked when it doesn't within `limit`.
    pub(super) fn wait_until(&self, what: &str, limit: Duration, condition: impl Fn(&State) -> bool) {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        while !condition(&state) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "the API server waited {limit:?} in vain: {what}\n{}",
                summary(&state)
            );
            state = self
                .for_tests
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// A test that panicked elsewhere must not hide behind a poisoned lock.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn summary(state: &State) -> String {
    let mut text = format!(
        "version {}, open watches {:?}, requests:\n",
        state.store.version(),
        state.watches
    );
    for request in &state.requests {
        _ = writeln!(text, "  {request:?}");
    }
    text
}
