//! The server in a pod. It answers with `NAME PEER`: its own name, and the address and port it sees the client under.
//!
//! | client sends | server answers |
//! |---|---|
//! | TCP: a line | `NAME PEER` |
//! | TCP: `reached` | `NAME OWN`: its own address and port, which the connection reached it by |
//! | TCP: `relay ADDRESS` | `NAME PEER` in a line, then what a server at that address and port answered to a connection of its own |
//! | TCP: `pull COUNT` | COUNT bytes of the pattern (byte `i` is `i` modulo 251) |
//! | TCP: `push COUNT` and COUNT bytes of the pattern (byte `i` is `i` modulo 251) | `NAME PEER` if every byte was right, else `wrong` |
//! | UDP: a datagram | `NAME PEER` in a line, then the datagram |

use std::{
    io,
    net::SocketAddr,
    sync::mpsc,
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream, UdpSocket},
    runtime,
    sync::oneshot,
};

use super::{Addresses, Family, Namespace};

/// The bytes of a bulk transfer: byte `i` of any transfer. The period is prime, so that a segment put in the wrong place
/// shows.
pub(super) fn pattern(from: usize, count: usize) -> Vec<u8> {
    #[expect(clippy::cast_possible_truncation, reason = "below 251")]
    (from..from + count).map(|index| (index % 251) as u8).collect()
}

/// A server in a namespace, on a thread of its own; ends when dropped.
#[derive(Debug)]
pub(super) struct Server {
    name: String,
    port: u16,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens on a port of all these addresses, for TCP and UDP, before it returns.
    ///
    /// # Errors
    /// An address is not the namespace's own or is in use.
    pub(super) fn start(namespace: &Namespace, name: &str, addresses: &[Addresses], port: u16) -> Result<Self> {
        let both = |addresses: &Addresses| Family::ALL.map(|family| addresses.with_port(family, port));
        let sockets: Vec<SocketAddr> = addresses.iter().flat_map(both).collect();
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = mpsc::channel();
        let thread = namespace.run(|| {
            let name = name.to_owned();
            // A thread is born in the namespace of the one that starts it.
            thread::Builder::new().name(format!("server {name}")).spawn(move || {
                let outcome = runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .and_then(|runtime| {
                        runtime.block_on(async {
                            listen(&name, &sockets).await?;
                            let _ = ready.send(Ok(()));
                            // A dropped sender means the same as a message: time to end.
                            let _ = stopped.await;
                            Ok(())
                        })
                    });
                if let Err(error) = outcome {
                    let _ = ready.send(Err(error));
                }
            })
        })?;
        is_ready
            .recv()
            .context("the server thread ended")?
            .with_context(|| format!("server in {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            port,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    pub(super) fn is_at(&self, name: &str, port: u16) -> bool {
        self.name == name && self.port == port
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A server that panicked has said so on standard error; there is nothing to add.
            let _ = thread.join();
        }
    }
}

async fn listen(name: &str, addresses: &[SocketAddr]) -> io::Result<()> {
    for &address in addresses {
        let listener = TcpListener::bind(address).await?;
        tokio::spawn(accept(listener, name.to_owned()));
        let socket = UdpSocket::bind(address).await?;
        tokio::spawn(answer_datagrams(socket, name.to_owned()));
    }
    Ok(())
}

async fn accept(listener: TcpListener, name: String) {
    // An error here is that of one connection (accept(2)): the next one may do better.
    loop {
        if let Ok((stream, peer)) = listener.accept().await {
            let name = name.clone();
            // The client sees a broken connection as its own error.
            tokio::spawn(async move { converse(stream, peer, &name).await });
        }
    }
}

async fn converse(stream: TcpStream, peer: SocketAddr, name: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 0 {
        let (command, argument) = line.trim().split_once(' ').unwrap_or((line.trim(), "0"));
        let count: usize = argument.parse().unwrap_or(0);
        match command {
            "reached" => {
                let own = stream.get_ref().local_addr()?;
                stream.write_all(format!("{name} {own}\n").as_bytes()).await?;
            }
            "relay" => {
                // One that cannot be reached shows as the end of this connection.
                let answer = relay(argument).await?;
                stream.write_all(format!("{name} {peer}\n{answer}").as_bytes()).await?;
            }
            "pull" => stream.write_all(&pattern(0, count)).await?,
            "push" => {
                let mut received = vec![0; count];
                stream.read_exact(&mut received).await?;
                let right = received == pattern(0, count);
                let answer = if right {
                    format!("{name} {peer}\n")
                } else {
                    "wrong\n".to_owned()
                };
                stream.write_all(answer.as_bytes()).await?;
            }
            _ => stream.write_all(format!("{name} {peer}\n").as_bytes()).await?,
        }
        stream.flush().await?;
        line.clear();
    }
    Ok(())
}

/// Asks another server who it is, over a connection of this one's own.
async fn relay(to: &str) -> io::Result<String> {
    let mut onward = BufReader::new(TcpStream::connect(to).await?);
    onward.write_all(b"whoami\n").await?;
    let mut answer = String::new();
    onward.read_line(&mut answer).await?;
    Ok(answer)
}

async fn answer_datagrams(socket: UdpSocket, name: String) {
    let mut datagram = vec![0; 65_536];
    // Errors are ICMP answers to earlier datagrams: clients that went away.
    loop {
        if let Ok((length, peer)) = socket.recv_from(&mut datagram).await {
            let mut answer = format!("{name} {peer}\n").into_bytes();
            answer.extend_from_slice(&datagram[..length]);
            let _ = socket.send_to(&answer, peer).await;
        }
    }
}
