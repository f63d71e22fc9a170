//! What a real API server answers, on its way through the front, which spoils it as it is told to.

use std::{io, sync::Arc};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Method;
use kube::client::Body;
use serde_json::Value;

use super::{
    http::{Answer, Query, build, failure, gone, gone_status, line, stream},
    open_watch::OpenWatch,
    real::Real,
    resource::Resource,
    state::{Gone, Shared},
};

/// Passes a list on.
pub(super) async fn list(shared: &Shared, real: &Real, resource: Resource, uri: &str) -> Answer {
    let (status, body) = match ask(real, Method::GET, uri, Vec::new()).await {
        Ok(answer) => answer,
        Err(answer) => return answer,
    };
    let Ok(mut list) = serde_json::from_slice::<Value>(&body) else {
        return whole(status, body);
    };
    for item in list["items"].as_array_mut().into_iter().flatten() {
        shared.read(|state| state.faults.garble(resource, item));
    }
    whole(status, list.to_string().into())
}

/// Passes on what is to be created.
pub(super) async fn create(real: &Real, uri: &str, body: Vec<u8>) -> Answer {
    match ask(real, Method::POST, uri, body).await {
        Ok((status, body)) => whole(status, body),
        Err(answer) => answer,
    }
}

/// Passes a watch on for as long as both sides want.
pub(super) async fn watch(shared: &Arc<Shared>, real: &Real, resource: Resource, query: &Query, uri: &str) -> Answer {
    let news = shared.subscribe();
    let (compacted, as_gone, orders) = shared.read(|state| (state.faults.compacted, state.faults.gone, state.orders));
    if query.version > 0 && query.version < compacted {
        return match as_gone {
            Gone::Status => gone(),
            Gone::Event => stream(vec![line("ERROR", &gone_status())], None),
        };
    }
    let answer = match real.forward(Method::GET, uri, Vec::new()).await {
        Ok(answer) => answer,
        Err(reason) => return failure(502, "", &reason),
    };
    if answer.status() != 200 {
        let status = answer.status().as_u16();
        return match answer.into_body().collect().await {
            Ok(body) => whole(status, body.to_bytes()),
            Err(error) => failure(502, "", &error.to_string()),
        };
    }
    shared.change(|state| state.watches.push(resource));
    let (open, receiver) = OpenWatch::new(shared.clone(), resource, query.version, orders, query);
    let relay = Relay {
        open,
        body: answer.into_body(),
        begun: Vec::new(),
    };
    tokio::spawn(relay.run(news));
    stream(Vec::new(), Some(receiver))
}

async fn ask(real: &Real, method: Method, uri: &str, body: Vec<u8>) -> Result<(u16, Bytes), Answer> {
    let answer = real.forward(method, uri, body).await;
    let answer = answer.map_err(|reason| failure(502, "", &reason))?;
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await;
    let body = body.map_err(|error| failure(502, "", &error.to_string()))?;
    Ok((status, body.to_bytes()))
}

fn whole(status: u16, body: Bytes) -> Answer {
    build(status, Full::from(body).map_err(io::Error::other).boxed_unsync())
}

/// An open watch of a real API server.
struct Relay {
    open: OpenWatch,
    body: Body,
    /// A line that isn't complete yet
    begun: Vec<u8>,
}

impl Relay {
    async fn run(mut self, mut news: tokio::sync::watch::Receiver<()>) {
        loop {
            news.borrow_and_update();
            let orders = self.open.shared.read(|state| state.orders);
            if let Some(last) = self.open.broken_off(orders) {
                return self.open.send(last).await;
            }
            if self.open.is_over(orders) {
                return self.open.bookmark().await;
            }
            tokio::select! {
                frame = self.body.frame() => match frame {
                    Some(Ok(frame)) => self.pass(frame.data_ref().map_or(&[][..], |data| data)).await,
                    // It ends as it does there.
                    Some(Err(error)) => return self.open.send(Err(io::Error::other(error))).await,
                    None => return,
                },
                changed = news.changed() => if changed.is_err() { return },
                () = self.open.closed() => return,
            }
        }
    }

    /// Passes on the events that are complete with these bytes.
    async fn pass(&mut self, bytes: &[u8]) {
        self.begun.extend_from_slice(bytes);
        let Some(end) = self.begun.iter().rposition(|byte| *byte == b'\n') else {
            return;
        };
        let complete: Vec<u8> = self.begun.drain(..=end).collect();
        let lines = complete.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let mut events: Vec<Value> = lines.filter_map(|line| serde_json::from_slice(line).ok()).collect();
        for event in &events {
            let version = event["object"]["metadata"]["resourceVersion"].as_str();
            let version = version.and_then(|version| version.parse().ok());
            self.open.version = version.unwrap_or(self.open.version).max(self.open.version);
        }
        self.open.shared.read(|state| {
            for event in &mut events {
                state.faults.garble(self.open.resource, &mut event["object"]);
            }
            if let Some(mangle) = state.faults.events {
                mangle.apply(&mut events);
            }
        });
        for event in events {
            self.open.send(Ok(format!("{event}\n").into())).await;
        }
    }
}
