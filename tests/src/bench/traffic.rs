//! A client and a server, both on one core, and what the client measures.
//!
//! On one core the time of a request is the processor's work for it, both sides and all that lies between: neither idle
//! states nor migrations blur a difference of a microsecond.

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use socket2::SockRef;

use crate::lab::{Namespace, percentile};

/// First byte of a connection: answer a byte and close.
const ONCE: u8 = b'1';
/// First byte of a connection: answer every byte.
const ECHO: u8 = b'e';
/// First byte of a connection: read to the end, then answer a byte.
const SINK: u8 = b's';

/// How long a client waits before it gives up.
const PATIENCE: Duration = Duration::from_secs(5);

/// Median and 99th percentile of one measurement.
#[derive(Clone, Copy, Debug)]
pub(super) struct Latency {
    pub(super) p50: Duration,
    pub(super) p99: Duration,
}

impl Latency {
    fn of(samples: &[Duration]) -> Self {
        Self {
            p50: percentile(samples, 0.5),
            p99: percentile(samples, 0.99),
        }
    }
}

/// One measurement of all quantities.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// TCP connect, request and response
    pub(super) connect: Latency,
    /// Request and response on an open connection
    pub(super) exchange: Latency,
    /// Connections opened, used and closed in a second, one after another
    pub(super) connections: f64,
    /// Bits received in a second
    pub(super) throughput: f64,
}

/// A server on two ports of a pod; ends when dropped.
#[derive(Debug)]
pub(super) struct Server {
    listeners: Vec<TcpListener>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// Listens before it returns.
    ///
    /// # Errors
    /// An address isn't the pod's own.
    pub(super) fn start(pod: &Namespace, addresses: [SocketAddrV4; 2], core: usize) -> Result<Self> {
        let mut server = Self {
            listeners: Vec::new(),
            threads: Vec::new(),
        };
        for address in addresses {
            let listener = pod
                .run(|| TcpListener::bind(address))
                .with_context(|| format!("listening on {address}"))?;
            server.listeners.push(listener.try_clone()?);
            server.threads.push(pod.run(|| {
                thread::spawn(move || {
                    // Nothing to tell but what the client sees, too.
                    let _ = pin(core).and_then(|()| Ok(serve(&listener)?));
                })
            }));
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for listener in &self.listeners {
            // Ends the accept that waits on it.
            let _ = SockRef::from(listener).shutdown(Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Serves one connection after another; there is but one client.
fn serve(listener: &TcpListener) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept()?;
        // What ends one connection doesn't end the next.
        let _ = converse(stream);
    }
}

fn converse(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut kind = [0];
    stream.read_exact(&mut kind)?;
    match kind[0] {
        ECHO => loop {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            stream.write_all(&byte)?;
        },
        SINK => {
            let mut buffer = vec![0; 1 << 18];
            while stream.read(&mut buffer)? > 0 {}
            stream.write_all(&kind)
        }
        // Closing first keeps TIME_WAIT off the client, whose ports are few.
        _ => stream.write_all(&kind),
    }
}

/// Measures everything from the calling thread's namespace, `time` for each quantity.
///
/// # Errors
/// A request failed: a benchmark of failures is none.
pub(super) fn measure(to: SocketAddr, time: Duration, core: usize) -> Result<Sample> {
    pin(core)?;
    let (connect, connections) = measure_connections(to, time).with_context(|| format!("connecting to {to}"))?;
    let exchange = measure_exchanges(to, time).with_context(|| format!("exchanging with {to}"))?;
    let throughput = measure_throughput(to, time).with_context(|| format!("sending to {to}"))?;
    Ok(Sample {
        connect,
        exchange,
        connections,
        throughput,
    })
}

/// One connection, one answer.
///
/// # Errors
/// There is none.
pub(super) fn connect_once(to: SocketAddr) -> io::Result<()> {
    let mut stream = open(to)?;
    stream.write_all(&[ONCE])?;
    stream.read_exact(&mut [0])?;
    expect_end(&mut stream)
}

fn open(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn expect_end(stream: &mut TcpStream) -> io::Result<()> {
    match stream.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "more than one byte of answer",
        )),
    }
}

fn measure_connections(to: SocketAddr, time: Duration) -> io::Result<(Latency, f64)> {
    let mut samples = Vec::new();
    let start = Instant::now();
    while start.elapsed() < time {
        let begin = Instant::now();
        let mut stream = TcpStream::connect(to)?;
        stream.write_all(&[ONCE])?;
        stream.read_exact(&mut [0])?;
        samples.push(begin.elapsed());
        expect_end(&mut stream)?;
    }
    #[expect(clippy::cast_precision_loss, reason = "a count within seconds")]
    let rate = samples.len() as f64 / start.elapsed().as_secs_f64();
    Ok((Latency::of(&samples), rate))
}

fn measure_exchanges(to: SocketAddr, time: Duration) -> io::Result<Latency> {
    let mut stream = open(to)?;
    stream.write_all(&[ECHO])?;
    let mut samples = Vec::new();
    let start = Instant::now();
    while start.elapsed() < time {
        let begin = Instant::now();
        stream.write_all(&[0])?;
        stream.read_exact(&mut [0])?;
        samples.push(begin.elapsed());
    }
    Ok(Latency::of(&samples))
}

fn measure_throughput(to: SocketAddr, time: Duration) -> io::Result<f64> {
    let mut stream = open(to)?;
    stream.write_all(&[SINK])?;
    let chunk = vec![0; 1 << 18];
    let mut bytes = 0;
    let start = Instant::now();
    while start.elapsed() < time {
        stream.write_all(&chunk)?;
        bytes += chunk.len();
    }
    stream.shutdown(Shutdown::Write)?;
    stream.read_exact(&mut [0])?;
    #[expect(clippy::cast_precision_loss, reason = "bytes within seconds")]
    let bits = bytes as f64 * 8.0;
    Ok(bits / start.elapsed().as_secs_f64())
}

/// The core to measure on: the last that this process may use; interrupts tend to go to the first.
///
/// # Errors
/// The kernel doesn't say.
pub(super) fn core() -> Result<usize> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    (0..CpuSet::count())
        .rev()
        .find(|&core| allowed.is_set(core).unwrap_or(false))
        .context("no core to run on")
}

/// Keeps the calling thread on a core.
///
/// # Errors
/// The kernel doesn't let it.
pub(super) fn pin(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}
