//! The sockets of a network namespace, as sock_diag(7) tells them and ends them.

use std::{io, net::SocketAddr};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use netlink_packet_sock_diag::{
    SockDiagDestroy, SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_UDP},
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags},
};
use rtnetlink::sys::{Socket, SocketAddr as Netlink, protocols::NETLINK_SOCK_DIAG};

/// A connected UDP socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UdpSocket {
    /// Which no other socket of the machine has
    pub(super) cookie: u64,
    /// Whom it is connected to; an IPv4 address also if the socket is one of IPv6
    pub(super) remote: SocketAddr,
    family: u8,
    id: SocketId,
}

impl From<&InetResponse> for UdpSocket {
    fn from(response: &InetResponse) -> Self {
        let id = &response.header.socket_id;
        Self {
            // Two words, the low half first, each in the machine's byte order (`sock_diag_save_cookie`).
            cookie: id
                .cookie
                .as_chunks()
                .0
                .iter()
                .rev()
                .fold(0, |cookie, word| cookie << 32 | u64::from(u32::from_ne_bytes(*word))),
            remote: SocketAddr::new(id.destination_address.to_canonical(), id.destination_port),
            family: response.header.family,
            id: id.clone(),
        }
    }
}

/// A conversation with the kernel about the network namespace that it was begun in.
pub(super) struct Diagnosis(Socket);

impl Diagnosis {
    /// Begins one about the calling thread's network namespace.
    pub(super) fn begin() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&Netlink::new(0, 0))?;
        Ok(Self(socket))
    }

    /// The connected UDP sockets that are `wanted`. Sockets that come or go meanwhile may be among them or not.
    pub(super) fn connected_udp(&self, wanted: impl Fn(&UdpSocket) -> bool) -> io::Result<Vec<UdpSocket>> {
        let mut found = Vec::new();
        for (family, socket_id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
            let request = request(family, socket_id);
            self.ask(SockDiagMessage::InetRequest(request), NLM_F_DUMP, |message| {
                if let SockDiagMessage::InetResponse(response) = message {
                    found.extend(Some(UdpSocket::from(&*response)).filter(&wanted));
                }
            })?;
        }
        Ok(found)
    }

    /// Disconnects a socket, and has whatever its process does with it next fail with `ECONNABORTED`.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if it is closed or connected elsewhere by now, [`io::ErrorKind::Unsupported`] if the
    /// kernel is built without `CONFIG_INET_DIAG_DESTROY`.
    pub(super) fn abort(&self, socket: &UdpSocket) -> io::Result<()> {
        let request = SockDiagMessage::InetRequest(request(socket.family, socket.id.clone()));
        self.ask(SockDiagDestroy::new(request), NLM_F_ACK, |_| {})
    }

    /// Sends a request and takes the answers to it.
    fn ask<M>(&self, request: M, flags: u16, mut each: impl FnMut(M)) -> io::Result<()>
    where
        M: NetlinkSerializable + NetlinkDeserializable + Into<NetlinkPayload<M>>,
    {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let mut message = NetlinkMessage::new(header, request.into());
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.0.send(&bytes, 0)?;
        loop {
            let (answers, _) = self.0.recv_from_full()?;
            let mut rest = answers.as_slice();
            while !rest.is_empty() {
                let answer = NetlinkMessage::<M>::deserialize(rest).map_err(io::Error::other)?;
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => each(message),
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(()),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    _ => {}
                }
                let length = answer.header.length as usize;
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

/// Whether the kernel can end UDP sockets in the way of [`Diagnosis::abort`]: tried with one that can't be.
///
/// # Errors
/// This process may not.
pub(in crate::dataplane) fn can_abort() -> io::Result<bool> {
    let nobodys = UdpSocket {
        cookie: 0,
        remote: SocketAddr::from(([0; 4], 0)),
        family: AF_INET,
        id: SocketId::new_v4(),
    };
    match Diagnosis::begin()?.abort(&nobodys) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// About connected UDP sockets of a family, or one of them.
const fn request(family: u8, socket_id: SocketId) -> InetRequest {
    InetRequest {
        family,
        protocol: IPPROTO_UDP,
        extensions: ExtensionFlags::empty(),
        // A connected UDP socket is "established", any other one "closed".
        states: StateFlags::ESTABLISHED,
        socket_id,
    }
}
