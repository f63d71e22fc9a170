//! Taking a node over from kube-proxy: connections that its rules made are translated by the kernel's conntrack, and go on to
//! their end that way.
//!
//! Importing them would not do: their packets would be translated before netfilter sees them, and be other connections to
//! conntrack, whose reply tuples the old ones have. So they are *left* to conntrack: entries in the flow table
//! (`flow_flags::CONNTRACK`) say that their packets are to pass as they are, and keep their places from flows of ours.
//!
//! Conntrack is asked
//!
//! 1. before the first frontend is written (from then on packets to it are ours): for every connection there is;
//! 2. right after, and once more [`WINDOW`] later: for those made in between. They are conntrack's, whatever was opened here for
//!    them meanwhile. (Only UDP can be: of TCP a packet from the midst of a connection is left alone, by a flag of the devices.)
//! 3. now and then, while there are any, or kube-proxy's rules: entries of connections that ended go, those that were lost
//!    come back.

mod entries;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    sync::mpsc::{Receiver, TryRecvError, channel},
    time::Duration,
};

use anyhow::{Context as _, Result};
use proxy_common::packet::UDP;

use self::entries::{Entries, Standing};
use super::{
    collect,
    conntrack::{Connection, Conntrack, Way},
    kube_proxy::{self, Leftover},
    stale::Serving,
    table::Tables,
};
use crate::{
    model::{ObjectName, Problem},
    plan::Frontend,
};

/// How long after the first frontend is written connections may still come to light that were made before. Packets that had
/// passed the hook by then are in conntrack within milliseconds.
const WINDOW: Duration = Duration::from_secs(3);
/// How often conntrack is asked afterwards, and kube-proxy's rules are looked for while they are there.
const LOOK: Duration = Duration::from_secs(10);

/// How far the takeover is.
enum Phase {
    /// No frontend is written yet
    Before,
    /// Until then connections from before may come to light that are not among these
    Window(HashSet<Way>, Duration),
    /// All are known
    After,
}

/// A connection that is left to conntrack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Left {
    /// Packets of the server as it sends them
    reply: Way,
    /// Id of the service port; 0 while that isn't known
    service: u32,
}

/// Leaves connections to conntrack.
pub(super) struct Takeover {
    conntrack: Option<Conntrack>,
    entries: Entries,
    phase: Phase,
    /// By the client's packets
    left: HashMap<Way, Left>,
    next_look: Duration,
    leftovers: Vec<Leftover>,
    next_search: Duration,
    /// The search for leftovers that is under way: tools that list rules may take seconds
    search: Option<Receiver<std::io::Result<Vec<Leftover>>>>,
    failure: Option<String>,
}

impl Takeover {
    /// Nothing is asked or written yet.
    pub(super) fn new(tables: Tables) -> Self {
        Self {
            conntrack: None,
            entries: Entries::new(tables),
            phase: Phase::Before,
            left: HashMap::new(),
            next_look: Duration::ZERO,
            leftovers: Vec::new(),
            next_search: Duration::MAX,
            search: None,
            failure: None,
        }
    }

    /// Whether no frontend has been written yet.
    pub(super) const fn is_to_begin(&self) -> bool {
        matches!(self.phase, Phase::Before)
    }

    /// Whether packets from the midst of unknown connections may be conntrack's.
    pub(super) const fn is_under_way(&self) -> bool {
        matches!(self.phase, Phase::Window(..)) || !self.leftovers.is_empty()
    }

    /// Addresses of frontends that packets leave from untranslated: the hooks must look at these packets, to see a connection's
    /// end.
    pub(super) fn sources(&self) -> HashSet<IpAddr> {
        self.left.keys().map(|way| way.destination.ip()).collect()
    }

    /// Leaves to conntrack what it translates for these frontends, which are written next.
    pub(super) fn begin(&mut self, plan: &BTreeMap<ObjectName, Vec<Frontend>>, now: Duration) {
        let key = |frontend: &Frontend| {
            let protocol = frontend.service_port.protocol.number();
            (protocol, frontend.address, frontend.port)
        };
        let frontends: HashSet<(u8, Option<IpAddr>, u16)> = plan.values().flatten().map(key).collect();
        let is_frontend = |way: &Way| {
            let port = way.destination.port();
            let exact = (way.protocol, Some(way.destination.ip()), port);
            frontends.contains(&exact) || frontends.contains(&(way.protocol, None, port))
        };
        let begun = self.translated().and_then(|connections| {
            for connection in connections.iter().filter(|found| is_frontend(&found.original)) {
                self.leave(connection, 0, Standing::OursStays, now)?;
            }
            let left = self.left.iter().map(|(original, left)| (original, &left.reply));
            self.entries.forget_others(left)?;
            Ok(connections.iter().map(|connection| connection.original).collect())
        });
        let known = self.note(begun).unwrap_or_default();
        if !self.left.is_empty() {
            tracing::info!(
                connections = self.left.len(),
                "left to conntrack, which has them from kube-proxy"
            );
        }
        self.phase = Phase::Window(known, now + WINDOW);
        self.search_leftovers();
    }

    /// Goes on with a takeover that another build has begun.
    pub(super) fn resume(&mut self, now: Duration) {
        self.phase = Phase::After;
        self.look(now);
        self.search_leftovers();
    }

    /// Asks conntrack again: leaves to it what is new there, and forgets what is there no more.
    pub(super) fn look(&mut self, now: Duration) {
        let looked = self.translated().and_then(|connections| {
            for connection in &connections {
                let Some(service) = self.entries.service(&connection.original)? else {
                    continue;
                };
                let standing = match &self.phase {
                    Phase::Window(known, _) if !known.contains(&connection.original) => Standing::OursGivesWay,
                    _ => Standing::OursStays,
                };
                self.leave(connection, service, standing, now)?;
            }
            let there: HashSet<Way> = connections.iter().map(|connection| connection.original).collect();
            let gone: Vec<Way> = self.left.keys().filter(|way| !there.contains(way)).copied().collect();
            for way in gone {
                self.forget(&way)?;
            }
            Ok(())
        });
        self.note(looked);
    }

    /// Does what time brings; whether anything may have changed.
    pub(super) fn tick(&mut self, now: Duration) -> bool {
        let was_under_way = self.is_under_way();
        self.note_leftovers(now);
        let is_due = match self.phase {
            Phase::Before => false,
            Phase::Window(_, end) => now >= end,
            Phase::After => now >= self.next_look && (!self.left.is_empty() || !self.leftovers.is_empty()),
        };
        if is_due {
            self.look(now);
            self.phase = Phase::After;
            self.next_look = now + LOOK;
            if self.failure.is_none() && self.left.is_empty() && self.leftovers.is_empty() && self.search.is_none() {
                let ended = end_keeping();
                self.note(ended);
            }
        }
        is_due || self.is_under_way() != was_under_way
    }

    /// Ends the UDP connections whose endpoints serve no more, in conntrack as well: kube-proxy, which does that, runs no more
    /// (behaviour.md 7.3).
    pub(super) fn purge(&mut self, serving: &Serving) {
        let is_stale = |way: &Way, left: &Left| {
            let serving = serving.get(&left.service).filter(|_| way.protocol == UDP);
            serving.is_some_and(|serving| !serving.contains(&left.reply.source))
        };
        let stale: Vec<Way> = self
            .left
            .iter()
            .filter(|(way, left)| is_stale(way, left))
            .map(|(way, _)| *way)
            .collect();
        for way in stale {
            let ended = self
                .conntrack()
                .and_then(|conntrack| Ok(conntrack.delete(&way)?))
                .and_then(|()| self.forget(&way));
            self.note(ended);
        }
    }

    /// What is not as it should be.
    pub(super) fn problems(&self) -> impl Iterator<Item = Problem> {
        let failure = self.failure.as_ref().map(|reason| Problem {
            object: "conntrack".to_owned(),
            field: String::new(),
            reason: format!("connections that kube-proxy made may break: {reason}"),
        });
        failure.into_iter().chain(kube_proxy::problem(&self.leftovers))
    }

    fn leave(&mut self, connection: &Connection, service: u32, standing: Standing, now: Duration) -> Result<()> {
        let Connection {
            original,
            reply,
            is_over,
        } = connection;
        // Of one that is over nothing is to come but what conntrack knows by itself; its port may be used again at once.
        if !is_over
            && self
                .entries
                .leave(original, reply, service, standing, collect::tick(now))?
        {
            let left = Left { reply: *reply, service };
            self.left.insert(*original, left);
        }
        Ok(())
    }

    fn forget(&mut self, way: &Way) -> Result<()> {
        if let Some(left) = self.left.remove(way) {
            self.entries.forget(way, &left.reply)?;
        }
        Ok(())
    }

    fn conntrack(&mut self) -> Result<&Conntrack> {
        if self.conntrack.is_none() {
            self.conntrack = Some(Conntrack::open()?);
        }
        self.conntrack.as_ref().context("just opened")
    }

    fn translated(&mut self) -> Result<Vec<Connection>> {
        let translated = self.conntrack()?.translated();
        // An answer that broke off leaves the rest of it in the socket.
        translated
            .inspect_err(|_| self.conntrack = None)
            .context("conntrack can't be asked")
    }

    /// Notes how something ended, as a problem if it failed.
    fn note<T>(&mut self, outcome: Result<T>) -> Option<T> {
        self.failure = outcome.as_ref().err().map(|error| format!("{error:#}"));
        outcome.ok()
    }

    fn search_leftovers(&mut self) {
        let (sender, receiver) = channel();
        let search = move || {
            // Nobody waits for it any more when the agent ends.
            let _sent = sender.send(kube_proxy::leftovers());
        };
        match std::thread::Builder::new().name("leftovers".to_owned()).spawn(search) {
            Ok(_) => self.search = Some(receiver),
            Err(error) => tracing::warn!(%error, "what kube-proxy left can't be looked for"),
        }
    }

    fn note_leftovers(&mut self, now: Duration) {
        let Some(search) = &self.search else {
            if now >= self.next_search {
                self.search_leftovers();
            }
            return;
        };
        match search.try_recv() {
            Ok(Ok(leftovers)) => self.leftovers = leftovers,
            Ok(Err(error)) => tracing::warn!(%error, "what kube-proxy left can't be looked for"),
            Err(TryRecvError::Empty) => return,
            Err(TryRecvError::Disconnected) => {}
        }
        self.search = None;
        self.next_search = if self.leftovers.is_empty() {
            Duration::MAX
        } else {
            now + LOOK
        };
    }
}

/// Ends what `cleanup --kube-proxy` set up for connections of which none is left.
fn end_keeping() -> Result<()> {
    if kube_proxy::is_kept()? {
        kube_proxy::forget_keeper()?;
        tracing::info!("no connection of kube-proxy's is left: conntrack need not translate any more");
    }
    Ok(())
}
