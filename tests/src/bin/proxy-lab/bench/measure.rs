//! A client and a server that cost as little as can be, both on one core, so that what remains is the way between them.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use proxy_tests::lab::{Namespace, percentile};

/// Requests for each latency in a round.
const CONNECTIONS: u32 = 1000;
const REQUESTS: u32 = 4000;
/// How long a round sends in bulk.
const BULK: Duration = Duration::from_millis(300);
const BULK_CHUNK: usize = 128 << 10;
/// First byte of a connection: whether the server returns what comes, or throws it away.
const ECHO: u8 = b'e';
const SINK: u8 = b's';

/// What one round measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Round {
    /// Connect, request, response
    pub(super) connect_p50: Duration,
    pub(super) connect_p99: Duration,
    /// Request and response on an open connection
    pub(super) request_p50: Duration,
    pub(super) request_p99: Duration,
    pub(super) connections_per_second: f64,
    pub(super) bits_per_second: f64,
}

/// Keeps the calling thread on the core that all measurements run on.
fn pin_to_core() -> Result<()> {
    let mut core = CpuSet::new();
    core.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &core).context("pinning a thread to a core")
}

/// Serves one connection after the other in a namespace, until this process ends.
pub(super) fn serve(namespace: &Namespace, address: SocketAddr) -> Result<()> {
    namespace.run(|| {
        let listener = TcpListener::bind(address).with_context(|| address.to_string())?;
        // A thread is born in the namespace of the one that starts it.
        thread::Builder::new().spawn(move || -> Result<()> {
            pin_to_core()?;
            loop {
                // The client sees a broken connection as its own error.
                let _ = listener.accept().and_then(|(stream, _)| converse(stream));
            }
        })?;
        Ok(())
    })
}

fn converse(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; BULK_CHUNK];
    let mut mode = None;
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        if *mode.get_or_insert(buffer[0]) == ECHO {
            stream.write_all(&buffer[..length])?;
        }
    }
}

/// One round from a namespace to an address.
pub(super) fn round(from: &Namespace, to: SocketAddr) -> Result<Round> {
    from.run(|| {
        pin_to_core()?;
        let start = Instant::now();
        let connects = (0..CONNECTIONS).map(|_| connect(to)).collect::<io::Result<Vec<_>>>()?;
        let all = start.elapsed();
        let requests = requests(to)?;
        Ok(Round {
            connect_p50: percentile(&connects, 0.5),
            connect_p99: percentile(&connects, 0.99),
            request_p50: percentile(&requests, 0.5),
            request_p99: percentile(&requests, 0.99),
            connections_per_second: f64::from(CONNECTIONS) / all.as_secs_f64(),
            bits_per_second: bulk(to)?,
        })
    })
}

fn open(to: SocketAddr) -> io::Result<TcpStream> {
    // One system call more than needed would be measured, too: the kernel's own deadline for connecting will do.
    let stream = TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn connect(to: SocketAddr) -> io::Result<Duration> {
    let start = Instant::now();
    let mut stream = open(to)?;
    stream.write_all(&[ECHO])?;
    stream.read_exact(&mut [0])?;
    Ok(start.elapsed())
}

fn requests(to: SocketAddr) -> io::Result<Vec<Duration>> {
    let mut stream = open(to)?;
    let mut request = || {
        let start = Instant::now();
        stream.write_all(&[ECHO])?;
        stream.read_exact(&mut [0])?;
        Ok(start.elapsed())
    };
    (0..REQUESTS).map(|_| request()).collect()
}

#[expect(clippy::cast_precision_loss, reason = "bytes sent in less than a second")]
fn bulk(to: SocketAddr) -> io::Result<f64> {
    let mut stream = open(to)?;
    let chunk = vec![SINK; BULK_CHUNK];
    let start = Instant::now();
    let mut sent = 0;
    while start.elapsed() < BULK {
        stream.write_all(&chunk)?;
        sent += chunk.len();
    }
    Ok(sent as f64 * 8.0 / start.elapsed().as_secs_f64())
}
