//! Requests to netfilter over netlink: what [`super::conntrack`] and [`super::kube_proxy`] share.

use std::io;

use netlink_packet_core::{
    DoneMessage, ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

/// What is wanted of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// All objects of a kind
    List,
    /// One object
    One,
    /// That it be done
    Done,
}

/// A socket of the network namespace it was opened in.
pub(super) struct Netfilter(Socket);

impl Netfilter {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self(socket))
    }

    /// Sends a request and calls `each` with every message of the answer.
    ///
    /// # Errors
    /// The kernel's: `NotFound` for one object that isn't there.
    pub(super) fn ask(
        &self,
        family: NetfilterProtoFamily,
        request: impl Into<NetfilterMessageInner>,
        want: Want,
        each: &mut dyn FnMut(NetfilterMessageInner),
    ) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST
            | match want {
                Want::List => NLM_F_DUMP,
                // An acknowledgement ends the answer of either.
                Want::One | Want::Done => NLM_F_ACK,
            };
        let message = NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), request);
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.0.send(&bytes, 0)?;
        loop {
            let (datagram, _) = self.0.recv_from_full()?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let message = NetlinkMessage::<NetfilterMessage>::deserialize(rest)
                    .map_err(|error| invalid(&error.to_string()))?;
                let length = usize::try_from(message.header.length).unwrap_or(usize::MAX);
                // Messages are aligned to four bytes (NLMSG_ALIGNTO).
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
                match message.payload {
                    NetlinkPayload::InnerMessage(message) => each(message.inner),
                    NetlinkPayload::Done(DoneMessage { code: 0, .. })
                    | NetlinkPayload::Error(ErrorMessage { code: None, .. }) => return Ok(()),
                    NetlinkPayload::Done(done) => return Err(io::Error::from_raw_os_error(-done.code)),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::Overrun(_) => return Err(invalid("the kernel lost messages")),
                    _ => {}
                }
            }
        }
    }
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}
