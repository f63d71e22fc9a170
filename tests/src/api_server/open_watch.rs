//! What the front's own watches and those that it relays have in common.

use std::{io, sync::Arc};

use bytes::Bytes;
use serde_json::json;
use tokio::sync::mpsc;

use super::{
    http::{Query, gone_status, line},
    resource::Resource,
    state::{Orders, Shared},
};

/// One open watch, which is among those of the state while it lives; it knows nothing of the connection but whether somebody still
/// reads.
pub(super) struct OpenWatch {
    pub(super) shared: Arc<Shared>,
    pub(super) resource: Resource,
    /// Of the last event that was sent
    pub(super) version: u64,
    /// When it began
    orders: Orders,
    bookmarks: bool,
    frames: mpsc::Sender<io::Result<Bytes>>,
}

impl OpenWatch {
    /// Stands in the state already, and begins at this version with these orders; gives what is sent, too.
    pub(super) fn new(
        shared: Arc<Shared>,
        resource: Resource,
        version: u64,
        orders: Orders,
        query: &Query,
    ) -> (Self, mpsc::Receiver<io::Result<Bytes>>) {
        let (frames, receiver) = mpsc::channel(16);
        let open = Self {
            shared,
            resource,
            version,
            orders,
            bookmarks: query.bookmarks,
            frames,
        };
        (open, receiver)
    }

    /// The last frame, if what is ordered `now` is to break off without what happened meanwhile.
    pub(super) fn broken_off(&self, now: Orders) -> Option<io::Result<Bytes>> {
        if now.drop != self.orders.drop {
            Some(Err(io::Error::other("dropped by the test")))
        } else if now.expire != self.orders.expire {
            Some(Ok(line("ERROR", &gone_status())))
        } else {
            None
        }
    }

    /// Whether its time is up by what is ordered `now`.
    pub(super) const fn is_over(&self, now: Orders) -> bool {
        now.end != self.orders.end
    }

    /// Tells how far the watch has come, so that it can be resumed from there: as a real one does when its time is up.
    pub(super) async fn bookmark(&self) {
        if self.bookmarks {
            let object = json!({
                "apiVersion": self.resource.api_version(),
                "kind": self.resource.kind(),
                "metadata": {"resourceVersion": self.version.to_string()},
            });
            self.send(Ok(line("BOOKMARK", &object))).await;
        }
    }

    pub(super) async fn send(&self, frame: io::Result<Bytes>) {
        // A reader that went away is noticed by `closed`.
        _ = self.frames.send(frame).await;
    }

    /// Waits until nobody reads any more.
    pub(super) async fn closed(&self) {
        self.frames.closed().await;
    }
}

impl Drop for OpenWatch {
    fn drop(&mut self) {
        self.shared.change(|state| {
            if let Some(index) = state.watches.iter().position(|resource| *resource == self.resource) {
                state.watches.swap_remove(index);
            }
        });
    }
}
