//! HTTP for the outer surfaces: listening, and answering one request at a time. Knows nothing of what is served.

use std::{
    convert::Infallible,
    io,
    net::{Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    header::{CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt::Ipv6V6Only};
use tokio::{
    net::{TcpListener, TcpSocket},
    task::JoinSet,
    time::sleep,
};

/// How long lies between two tries to listen (behaviour.md 8.6).
const RETRY: Duration = Duration::from_secs(5);
/// How long a client may take to send a request, and may keep a connection that it doesn't use.
const PATIENCE: Duration = Duration::from_secs(30);
/// Connections at a time: whoever reaches the port must not be able to use up the agent's file descriptors.
const CONNECTIONS: usize = 128;
/// Connections that may wait to be taken in.
const BACKLOG: u32 = 128;

/// What a request is answered with.
pub(crate) type Answer = Response<Full<Bytes>>;

/// An answer of this status and type, which browsers are told to take for what it is, as kube-proxy tells them.
pub(crate) fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

/// Text for people.
pub(crate) fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    answer(status, "text/plain; charset=utf-8", body)
}

/// Listens at an address. The unspecified address of either family stands for both families, as it does for kube-proxy.
///
/// # Errors
/// If the kernel refuses: the address is in use, or not the node's.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    if !address.ip().is_unspecified() {
        return open(address);
    }
    match open(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), address.port())) {
        // A kernel without IPv6.
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) && address.is_ipv4() => open(address),
        listener => listener,
    }
}

fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        let socket = TcpSocket::new_v6()?;
        setsockopt(&socket, Ipv6V6Only, &!address.ip().is_unspecified())?;
        socket
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Answers requests at an address from now on, in the background. `what` names the surface in the log. If nobody can listen
/// there, `refused` is told once, and it is tried again, unless `hard_fail` says that this is to end the agent
/// (behaviour.md 8.6).
///
/// # Errors
/// With `hard_fail` only: nobody can listen there.
pub(crate) fn start<F>(
    what: &'static str,
    address: SocketAddr,
    hard_fail: bool,
    refused: impl FnOnce(&str) + Send + 'static,
    handler: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
) -> Result<()>
where
    F: Future<Output = Answer> + Send + 'static,
{
    let mut listener = listen(address);
    if let Err(error) = &listener {
        refused(&format!("cannot serve {what} at {address}: {error}"));
    }
    if hard_fail {
        listener = Ok(listener.with_context(|| format!("cannot serve {what} at {address}"))?);
    }
    tokio::spawn(async move {
        if let Err(error) = &listener {
            tracing::warn!(
                "cannot serve {what} at {address}: {error}; trying again every {} s",
                RETRY.as_secs()
            );
        }
        let listener = loop {
            match listener {
                Ok(listener) => break listener,
                Err(_) => sleep(RETRY).await,
            }
            listener = listen(address);
        };
        // The port may be one that the kernel chose.
        let address = listener.local_addr().unwrap_or(address);
        tracing::info!("{what} at http://{address}");
        serve(listener, handler).await;
    });
    Ok(())
}

/// Answers requests until it is dropped, which ends all connections, too.
pub(crate) async fn serve<F>(
    listener: TcpListener,
    handler: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
) where
    F: Future<Output = Answer> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if connections.len() >= CONNECTIONS {
            connections.join_next().await;
        }
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "a connection could not be taken in");
                // It may be that there are no file descriptors left: those that are in use need time.
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let handler = handler.clone();
        let service = service_fn(move |request| {
            let answer = handler(request);
            async move { Ok::<_, Infallible>(answer.await) }
        });
        connections.spawn(async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .serve_connection(TokioIo::new(stream), service);
            // Ends in an error when the client goes away, which is its right.
            let _ = connection.await;
        });
    }
}
