//! Tells connected UDP sockets that the endpoint they are connected to serves no more.
//!
//! A socket hook translates the address that a process connects to, once: the kernel then sends to the endpoint, and no hook
//! sees it. Such a socket is aborted: its process is told at once, as it would be by an ICMP error, and connects again
//! (behaviour.md 7). TCP is left alone (7.1), and so is every socket that no hook has translated.

mod diagnosis;
mod late;
mod namespace;

use std::{collections::HashMap, io, mem, net::SocketAddr};

use proxy_common::{
    layout::{SocketKey, SocketValue, TO_FRONTEND, socket_flags},
    packet::UDP,
};

pub(super) use self::diagnosis::can_abort;

use self::{
    diagnosis::Diagnosis,
    late::{Directory, Frontends, Known},
};
use super::{
    address::Address,
    cgroup::Mode,
    stale::Serving,
    table::{BoxedTable, Table, TableError, Tables},
};

/// Whom sockets are connected to, by their cookies.
type Connected = HashMap<u64, SocketAddr>;

/// Aborts sockets.
pub struct SocketAborter {
    v4: BoxedTable<SocketKey<[u8; 4]>, SocketValue<[u8; 4]>>,
    v6: BoxedTable<SocketKey<[u8; 16]>, SocketValue<[u8; 16]>>,
    directory_v4: Directory<[u8; 4]>,
    directory_v6: Directory<[u8; 16]>,
    known: Known,
    /// Whose sockets are served
    mode: Mode,
    /// Whether it was told that the kernel can't
    told: bool,
}

impl SocketAborter {
    /// For the sockets in these tables, which are served in this mode.
    pub fn new(tables: Tables, mode: Mode) -> Self {
        Self {
            v4: tables.v4.sockets,
            v6: tables.v6.sockets,
            directory_v4: Directory::new(tables.v4.services, tables.v4.addresses),
            directory_v6: Directory::new(tables.v6.services, tables.v6.addresses),
            known: Known::default(),
            mode,
            told: false,
        }
    }

    /// Aborts the sockets that are connected to endpoints of these service ports which serve no more. A failure is logged:
    /// the sockets that stay find out by themselves when nobody answers.
    pub fn abort_stale(&mut self, serving: &Serving) {
        let stale = take_stale(&mut *self.v4, serving).and_then(|mut stale| {
            stale.extend(take_stale(&mut *self.v6, serving)?);
            Ok(stale)
        });
        match stale {
            Ok(stale) if stale.is_empty() => {}
            Ok(stale) => self.abort(stale),
            Err(error) => tracing::warn!(%error, "cannot read which sockets are connected to endpoints"),
        }
        self.abort_late(serving);
    }

    /// Aborts the sockets of the host that are connected to a frontend as it is: there was none when they were. Packets of pods are
    /// served at the edge in any case.
    fn abort_late(&mut self, serving: &Serving) {
        let new = self.known.take_new(serving);
        if new.is_empty() || self.mode == Mode::Off {
            return;
        }
        let mut frontends = Frontends::default();
        let read = self.directory_v4.add(&new, &mut frontends);
        if let Err(error) = read.and_then(|()| self.directory_v6.add(&new, &mut frontends)) {
            tracing::warn!(%error, "cannot read which frontends sockets may be connected to");
            return;
        }
        let serves = |remote: &SocketAddr| serving.values().any(|endpoints| endpoints.contains(remote));
        let outcome = abort_where(|socket| frontends.hold(&socket.remote) && !serves(&socket.remote));
        self.tell(outcome.map(drop));
    }

    fn abort(&mut self, mut stale: Connected) {
        let connected = stale.len();
        let mut outcome = abort_here(&mut stale);
        if self.mode == Mode::All && !stale.is_empty() {
            namespace::visit_others(|| {
                let here = abort_here(&mut stale);
                if outcome.is_ok() {
                    outcome = here;
                }
                !stale.is_empty()
            });
        }
        let aborted = connected - stale.len();
        if aborted > 0 {
            tracing::debug!(aborted, "UDP sockets told that their endpoint serves no more");
        }
        self.tell(outcome);
    }

    /// Tells, once, that the kernel can't.
    fn tell(&mut self, outcome: io::Result<()>) {
        if let Err(error) = outcome
            && !mem::replace(&mut self.told, true)
        {
            tracing::warn!(
                %error,
                "UDP sockets can't be told that the endpoint they are connected to serves no more; the kernel needs \
                 CONFIG_INET_UDP_DIAG and CONFIG_INET_DIAG_DESTROY"
            );
        }
    }
}

/// Aborts those sockets of the calling thread's network namespace that are connected so; takes them out of `stale`.
fn abort_here(stale: &mut Connected) -> io::Result<()> {
    for cookie in abort_where(|socket| stale.get(&socket.cookie) == Some(&socket.remote))? {
        stale.remove(&cookie);
    }
    Ok(())
}

/// Aborts the connected UDP sockets of the calling thread's network namespace that are `wanted`; gives their cookies.
fn abort_where(wanted: impl Fn(&diagnosis::UdpSocket) -> bool) -> io::Result<Vec<u64>> {
    let diagnosis = Diagnosis::begin()?;
    let sockets = diagnosis.connected_udp(wanted)?;
    for socket in &sockets {
        match diagnosis.abort(socket) {
            // Closed meanwhile, or connected elsewhere.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            outcome => outcome?,
        }
    }
    Ok(sockets.into_iter().map(|socket| socket.cookie).collect())
}

/// The sockets of a table that are connected to endpoints which serve no more. Their entries are removed.
fn take_stale<A: Address>(
    sockets: &mut dyn Table<SocketKey<A>, SocketValue<A>>,
    serving: &Serving,
) -> Result<Connected, TableError> {
    let mut stale = Vec::new();
    sockets.scan(&mut |key, value| {
        let remote = SocketAddr::new(key.address.to_ip(), key.port);
        if key.protocol == UDP
            && key.direction == TO_FRONTEND
            && value.flags & socket_flags::CONNECTED != 0
            && serving
                .get(&value.service)
                .is_some_and(|serving| !serving.contains(&remote))
        {
            stale.push((key, remote));
        }
    })?;
    let mut connected = Connected::new();
    for (key, remote) in stale {
        sockets.remove(&key)?;
        let [low, high] = key.cookie.map(u64::from);
        connected.insert(high << 32 | low, remote);
    }
    Ok(connected)
}

#[cfg(test)]
mod tests;
