//! Tells connected UDP sockets that the endpoint they are connected to serves no more.
//!
//! A socket hook translates the address that a process connects to, once: the kernel then sends to the endpoint, and no hook
//! sees it. Such a socket is aborted: its process is told at once, as it would be by an ICMP error, and connects again
//! (behaviour.md 7). TCP is left alone (7.1), and so is every socket that no hook has translated.

mod diagnosis;
mod namespace;

use std::{collections::HashMap, io, mem, net::SocketAddr};

use proxy_common::{
    layout::{SocketKey, SocketValue, TO_FRONTEND, socket_flags},
    packet::UDP,
};

pub(super) use self::diagnosis::can_abort;

use self::diagnosis::Diagnosis;
use super::{
    address::Address,
    stale::Serving,
    table::{BoxedTable, Table, TableError, Tables},
};

/// Whom sockets are connected to, by their cookies.
type Connected = HashMap<u64, SocketAddr>;

/// Aborts sockets.
pub struct SocketAborter {
    v4: BoxedTable<SocketKey<[u8; 4]>, SocketValue<[u8; 4]>>,
    v6: BoxedTable<SocketKey<[u8; 16]>, SocketValue<[u8; 16]>>,
    /// Whether sockets in other network namespaces than the agent's are served
    everywhere: bool,
    /// Whether it was told that the kernel can't
    told: bool,
}

impl SocketAborter {
    /// For the sockets in these tables; `everywhere` if some may be in other network namespaces than the agent's.
    pub fn new(tables: Tables, everywhere: bool) -> Self {
        Self {
            v4: tables.v4.sockets,
            v6: tables.v6.sockets,
            everywhere,
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
    }

    fn abort(&mut self, mut stale: Connected) {
        let connected = stale.len();
        let mut outcome = abort_here(&mut stale);
        if self.everywhere && !stale.is_empty() {
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
    let diagnosis = Diagnosis::begin()?;
    let is_stale = |socket: &diagnosis::UdpSocket| stale.get(&socket.cookie) == Some(&socket.remote);
    for socket in diagnosis.connected_udp(is_stale)? {
        match diagnosis.abort(&socket) {
            // Closed meanwhile, or connected elsewhere.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            outcome => outcome?,
        }
        stale.remove(&socket.cookie);
    }
    Ok(())
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
