//! Clients: they run in the network namespace of the calling thread, and every call ends within [`DEADLINE`].

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use nix::sys::socket::{
    setsockopt,
    sockopt::{Ipv4RecvErr, Ipv6RecvErr},
};
use socket2::{Domain, Socket, Type};

use super::{Protocol, server::pattern};

/// How long a client waits for an answer. Longer than a SYN sent again (1 s, 3 s: RFC 6298), so that a failed request is
/// one that TCP could not save; packets lost on the way are counted by [`super::Namespace::retransmissions`].
pub(super) const DEADLINE: Duration = Duration::from_secs(5);

/// What a server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Name of the pod that answered
    pub backend: String,
    /// The address that it saw the client under
    pub peer: SocketAddr,
    /// From the first packet to the answer
    pub latency: Duration,
}

impl Answer {
    fn parse(line: &str, start: Instant) -> Result<Self, RequestError> {
        let parsed = line
            .trim()
            .split_once(' ')
            .and_then(|(name, peer)| Some((name, peer.parse().ok()?)));
        let (name, peer) = parsed.ok_or_else(|| RequestError::Wrong(line.to_owned()))?;
        Ok(Self {
            backend: name.to_owned(),
            peer,
            latency: start.elapsed(),
        })
    }
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// No connection, or no socket of the wanted kind
    #[error("connecting: {0}")]
    Connect(io::Error),
    /// The connection or the answer broke off or never came
    #[error("waiting for the answer: {0}")]
    Exchange(#[from] io::Error),
    /// An answer came, but not the one to the question
    #[error("unexpected answer {0:?}")]
    Wrong(String),
}

impl RequestError {
    /// Whether the other side said that nobody listens (RST or ICMP port unreachable).
    pub fn is_refused(&self) -> bool {
        matches!(self, Self::Connect(error) | Self::Exchange(error) if error.kind() == io::ErrorKind::ConnectionRefused)
    }

    /// Whether a router said that a packet was too long for the path (ICMPv6 packet too big).
    pub fn is_too_long(&self) -> bool {
        let too_long = Some(nix::errno::Errno::EMSGSIZE as i32);
        matches!(self, Self::Connect(error) | Self::Exchange(error) if error.raw_os_error() == too_long)
    }

    /// Whether nothing came back at all.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Connect(error) | Self::Exchange(error) if TIMEOUTS.contains(&error.kind()))
    }
}

/// The kinds of errors of who waited in vain.
const TIMEOUTS: [io::ErrorKind; 2] = [io::ErrorKind::TimedOut, io::ErrorKind::WouldBlock];

/// The same error; of one who waited in vain with his port, by which tables and logs know the connection.
fn unanswered(error: io::Error, port: u16) -> io::Error {
    if TIMEOUTS.contains(&error.kind()) {
        io::Error::new(error.kind(), format!("{error}, at port {port}"))
    } else {
        error
    }
}

/// An open TCP connection to a server.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    /// Connects from a port that the kernel chooses.
    pub fn open(to: SocketAddr) -> Result<Self, RequestError> {
        Self::open_from(0, to)
    }

    /// Connects from a given port, even one that an earlier connection just used.
    pub fn open_from(port: u16, to: SocketAddr) -> Result<Self, RequestError> {
        Self::open_at(SocketAddr::new(unspecified(to), port), to)
    }

    /// Connects from a given address, port 0 for one that the kernel chooses.
    pub fn open_at(local: SocketAddr, to: SocketAddr) -> Result<Self, RequestError> {
        Self::connect(local, to).map_err(RequestError::Connect)
    }

    fn connect(local: SocketAddr, to: SocketAddr) -> io::Result<Self> {
        let socket = bound_socket(Type::STREAM, local)?;
        let connected = socket.connect_timeout(&to.into(), DEADLINE);
        let port = socket.local_addr()?.as_socket().map_or(0, |local| local.port());
        connected.map_err(|error| unanswered(error, port))?;
        socket.set_tcp_nodelay(true)?;
        socket.set_read_timeout(Some(DEADLINE))?;
        socket.set_write_timeout(Some(DEADLINE))?;
        Ok(Self {
            stream: BufReader::new(socket.into()),
        })
    }

    /// Who it is connected to, as the process is told (getpeername(2)).
    pub fn peer(&self) -> io::Result<SocketAddr> {
        self.stream.get_ref().peer_addr()
    }

    /// The port it has at this end.
    pub fn local_port(&self) -> io::Result<u16> {
        Ok(self.stream.get_ref().local_addr()?.port())
    }

    /// Asks the server who it is.
    pub fn ask(&mut self) -> Result<Answer, RequestError> {
        let start = Instant::now();
        self.stream.get_mut().write_all(b"whoami\n")?;
        Answer::parse(&self.line()?, start)
    }

    /// Asks the server which of its addresses and ports this connection reached.
    pub fn reached(&mut self) -> Result<SocketAddr, RequestError> {
        let start = Instant::now();
        self.stream.get_mut().write_all(b"reached\n")?;
        Ok(Answer::parse(&self.line()?, start)?.peer)
    }

    /// Lets the server ask another one, at an address and port, over a connection of its own: its own answer, and the other's.
    pub fn ask_through(&mut self, to: SocketAddr) -> Result<[Answer; 2], RequestError> {
        let start = Instant::now();
        self.stream.get_mut().write_all(format!("relay {to}\n").as_bytes())?;
        Ok([
            Answer::parse(&self.line()?, start)?,
            Answer::parse(&self.line()?, start)?,
        ])
    }

    /// Receives that many bytes and checks each.
    pub fn pull(&mut self, count: usize) -> Result<(), RequestError> {
        self.stream.get_mut().write_all(format!("pull {count}\n").as_bytes())?;
        let mut received = vec![0; count];
        self.stream.read_exact(&mut received)?;
        match received
            .iter()
            .zip(pattern(0, count))
            .position(|(received, sent)| *received != sent)
        {
            None => Ok(()),
            Some(offset) => Err(RequestError::Wrong(format!("byte {offset} of {count} differs"))),
        }
    }

    /// Sends that many bytes; the server checks each.
    pub fn push(&mut self, count: usize) -> Result<Answer, RequestError> {
        let start = Instant::now();
        self.stream.get_mut().write_all(format!("push {count}\n").as_bytes())?;
        self.stream.get_mut().write_all(&pattern(0, count))?;
        Answer::parse(&self.line()?, start)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        match self.stream.read_line(&mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line),
        }
    }

    /// Ends it with a reset, so that its port is free at once.
    pub fn reset(self) -> io::Result<()> {
        Socket::from(self.stream.into_inner()).set_linger(Some(Duration::ZERO))
    }
}

/// A UDP socket, unconnected unless it is told to connect, so that one client port can talk to many servers.
#[derive(Debug)]
pub struct UdpClient {
    socket: UdpSocket,
    questions: u32,
}

impl UdpClient {
    /// A socket on a port, 0 for one that the kernel chooses, of the family of the address it will talk to.
    pub fn bind(port: u16, to: SocketAddr) -> Result<Self, RequestError> {
        Self::bind_at(SocketAddr::new(unspecified(to), port))
    }

    /// A socket at an address, port 0 for one that the kernel chooses.
    pub fn bind_at(local: SocketAddr) -> Result<Self, RequestError> {
        let bind = || {
            let socket = bound_socket(Type::DGRAM, local)?;
            socket.set_read_timeout(Some(DEADLINE))?;
            // An unconnected socket learns of ICMP errors only if it asks (ip(7), ipv6(7)).
            match local {
                SocketAddr::V4(_) => setsockopt(&socket, Ipv4RecvErr, &true)?,
                SocketAddr::V6(_) => setsockopt(&socket, Ipv6RecvErr, &true)?,
            }
            Ok(socket.into())
        };
        let socket = bind().map_err(RequestError::Connect)?;
        Ok(Self { socket, questions: 0 })
    }

    /// The port it has at this end.
    pub fn local_port(&self) -> io::Result<u16> {
        Ok(self.socket.local_addr()?.port())
    }

    /// Asks a server who it is; the answer must come from the address that was asked.
    pub fn ask(&mut self, to: SocketAddr) -> Result<Answer, RequestError> {
        self.questions += 1;
        self.ask_with(to, format!("whoami {}", self.questions).as_bytes())
    }

    /// The next datagram that comes, and where it is from: for what this socket did not ask.
    pub fn receive(&self) -> io::Result<(Vec<u8>, SocketAddr)> {
        let mut datagram = vec![0; 1 << 16];
        let (length, from) = self.socket.recv_from(&mut datagram)?;
        datagram.truncate(length);
        Ok((datagram, from))
    }

    /// Connects to a server, as who is told this socket's peer from now on.
    pub fn connect(&self, to: SocketAddr) -> Result<(), RequestError> {
        self.socket.connect(to).map_err(RequestError::Connect)
    }

    /// Who it is connected to, as the process is told (getpeername(2)).
    pub fn peer(&self) -> io::Result<SocketAddr> {
        self.socket.peer_addr()
    }

    /// Asks the server that it is connected to who that is; the answer must come from the address that was connected to.
    pub fn ask_peer(&mut self, to: SocketAddr) -> Result<Answer, RequestError> {
        self.questions += 1;
        let (start, question) = (Instant::now(), format!("whoami {}", self.questions));
        self.socket.send(question.as_bytes())?;
        self.answer(to, question.as_bytes(), start)
    }

    /// Sends a payload that the server must return unchanged.
    pub fn ask_with(&mut self, to: SocketAddr, question: &[u8]) -> Result<Answer, RequestError> {
        let start = Instant::now();
        self.socket.send_to(question, to)?;
        self.answer(to, question, start)
    }

    fn answer(&self, to: SocketAddr, question: &[u8], start: Instant) -> Result<Answer, RequestError> {
        let mut datagram = vec![0; question.len() + 256];
        let port = self.local_port()?;
        let received = self.socket.recv_from(&mut datagram);
        let (length, from) = received.map_err(|error| unanswered(error, port))?;
        let answer = &datagram[..length];
        let text = String::from_utf8_lossy(answer);
        if from != to {
            return Err(RequestError::Wrong(format!(
                "{text} from {from} instead of {to}, at port {port}"
            )));
        }
        let (line, echo) = answer.split_at(
            answer
                .iter()
                .position(|&byte| byte == b'\n')
                .map_or(length, |end| end + 1),
        );
        if echo != question {
            return Err(RequestError::Wrong(text.into_owned()));
        }
        Answer::parse(&String::from_utf8_lossy(line), start)
    }
}

/// The address that stands for any, of the family of `to`.
const fn unspecified(to: SocketAddr) -> IpAddr {
    match to {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

/// A socket at this address; any address and port 0 leave it to the kernel.
fn bound_socket(kind: Type, local: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(local), kind, None)?;
    if local.port() != 0 {
        socket.set_reuse_address(true)?;
    }
    if local.port() != 0 || !local.ip().is_unspecified() || kind == Type::DGRAM {
        socket.bind(&local.into())?;
    }
    Ok(socket)
}

/// Connects, asks who answers, and closes; the latency includes the handshake.
pub fn tcp_request(to: SocketAddr) -> Result<Answer, RequestError> {
    let start = Instant::now();
    let mut answer = Connection::open(to)?.ask()?;
    answer.latency = start.elapsed();
    Ok(answer)
}

/// Asks who answers, from a socket of its own.
pub fn udp_request(to: SocketAddr) -> Result<Answer, RequestError> {
    UdpClient::bind(0, to)?.ask(to)
}

/// Asks who answers, over either protocol.
///
/// # Errors
/// The request's own; no socket speaks SCTP.
pub fn request(protocol: Protocol, to: SocketAddr) -> Result<Answer, RequestError> {
    match protocol {
        Protocol::Tcp => tcp_request(to),
        Protocol::Udp => udp_request(to),
        Protocol::Sctp => Err(RequestError::Connect(io::ErrorKind::Unsupported.into())),
    }
}
