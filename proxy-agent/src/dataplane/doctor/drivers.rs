//! What drivers do with XDP programs, as the kernel's netlink family `netdev` tells it (Linux 6.3). Asked, not tried: to attach a
//! program resets the queues of many network cards.

use std::{collections::BTreeMap, convert::Infallible, io};

use netlink_packet_core::{
    DefaultNla, Emitable as _, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable, Nla as _, NlasIterator,
};
use rtnetlink::sys::{Socket, SocketAddr as Netlink, protocols::NETLINK_GENERIC};

use super::Findings;
use crate::dataplane::{
    edge,
    table::{TableError, Tables},
};

/// Bits of `enum netdev_xdp_act` (include/uapi/linux/netdev.h): the driver runs programs.
const BASIC: u64 = 1;
/// Programs may send packets to other devices.
const REDIRECT: u64 = 2;
/// Others' programs may send packets here.
const NDO_XMIT: u64 = 4;

/// Tells it of the uplinks, which alone may have XDP programs of ours.
///
/// # Errors
/// If the devices' table can't be read.
pub(super) fn examine(findings: &mut Findings, tables: &Tables) -> Result<(), TableError> {
    let uplinks: Vec<_> = tables
        .devices
        .entries()?
        .into_iter()
        .filter(|(_, device)| device.role == proxy_common::layout::role::UPLINK)
        .collect();
    let features = match xdp_features() {
        Ok(features) => features,
        Err(error) => {
            findings.ok("XDP in drivers", format!("the kernel doesn't tell: {error}"));
            return Ok(());
        }
    };
    for (index, device) in uplinks {
        let subject = format!("{} XDP driver", edge::name_of(&device));
        findings.ok(subject, told(features.get(&index).copied().unwrap_or_default()));
    }
    Ok(())
}

/// What the bits mean for `--xdp`.
fn told(features: u64) -> &'static str {
    if features & BASIC == 0 {
        "runs no programs: --xdp auto leaves the device alone, generic is possible"
    } else if features & (REDIRECT | NDO_XMIT) == REDIRECT | NDO_XMIT {
        "native: --xdp auto uses it"
    } else {
        "native, but can't hand packets to other devices or take theirs: only what leaves by the same device is forwarded"
    }
}

/// The bits of each device, by interface index.
fn xdp_features() -> io::Result<BTreeMap<u32, u64>> {
    /// `NETDEV_CMD_DEV_GET`, and its attributes
    const DEV_GET: u8 = 1;
    const IFINDEX: u16 = 1;
    const XDP_FEATURES: u16 = 3;
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    socket.connect(&Netlink::new(0, 0))?;
    let family = family(&socket)?;
    let request = Generic {
        family,
        command: DEV_GET,
        attributes: Vec::new(),
    };
    let mut features = BTreeMap::new();
    for answer in ask(&socket, request, NLM_F_DUMP)? {
        let number = |kind| answer.attribute(kind).and_then(|value| value.first_chunk().copied());
        if let (Some(index), Some(bits)) = (number(IFINDEX).map(u32::from_ne_bytes), answer.attribute(XDP_FEATURES)) {
            features.insert(index, bits.first_chunk().map_or(0, |bits| u64::from_ne_bytes(*bits)));
        }
    }
    Ok(features)
}

/// The number that the family `netdev` has on this kernel.
fn family(socket: &Socket) -> io::Result<u16> {
    /// `GENL_ID_CTRL`, `CTRL_CMD_GETFAMILY`, and its attributes (include/uapi/linux/genetlink.h)
    const CONTROL: u16 = 0x10;
    const GET_FAMILY: u8 = 3;
    const FAMILY_ID: u16 = 1;
    const FAMILY_NAME: u16 = 2;
    let request = Generic {
        family: CONTROL,
        command: GET_FAMILY,
        attributes: vec![DefaultNla::new(FAMILY_NAME, b"netdev\0".to_vec())],
    };
    let answers = ask(socket, request, 0)?;
    let id = answers.iter().find_map(|answer| answer.attribute(FAMILY_ID));
    let id = id.and_then(|id| id.first_chunk().copied()).map(u16::from_ne_bytes);
    id.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
}

/// Sends a request and takes the answers to it: one, or those of a dump.
fn ask(socket: &Socket, request: Generic, flags: u16) -> io::Result<Vec<Generic>> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let mut message = NetlinkMessage::new(header, request.into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut answers = Vec::new();
    loop {
        let (received, _) = socket.recv_from_full()?;
        let mut rest = received.as_slice();
        while !rest.is_empty() {
            let answer = NetlinkMessage::<Generic>::deserialize(rest).map_err(io::Error::other)?;
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => {
                    answers.push(message);
                    if flags & NLM_F_DUMP == 0 {
                        return Ok(answers);
                    }
                }
                NetlinkPayload::Done(_) => return Ok(answers),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
            let length = answer.header.length as usize;
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// A message of generic netlink: `struct genlmsghdr`, and attributes.
struct Generic {
    family: u16,
    command: u8,
    attributes: Vec<DefaultNla>,
}

impl Generic {
    /// The value of an attribute.
    fn attribute(&self, kind: u16) -> Option<Vec<u8>> {
        let found = self.attributes.iter().find(|attribute| attribute.kind() == kind)?;
        let mut value = vec![0; found.value_len()];
        found.emit_value(&mut value);
        Some(value)
    }
}

/// Bytes of `struct genlmsghdr`.
const HEADER: usize = 4;

impl NetlinkSerializable for Generic {
    fn message_type(&self) -> u16 {
        self.family
    }

    fn buffer_len(&self) -> usize {
        HEADER + self.attributes.as_slice().buffer_len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let (header, attributes) = buffer.split_at_mut(HEADER);
        header.copy_from_slice(&[self.command, 1, 0, 0]);
        self.attributes.as_slice().emit(attributes);
    }
}

impl NetlinkDeserializable for Generic {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        let attributes = NlasIterator::new(payload.get(HEADER..).unwrap_or_default());
        let attribute = |nla: netlink_packet_core::NlaBuffer<&[u8]>| DefaultNla::new(nla.kind(), nla.value().to_vec());
        Ok(Self {
            family: header.message_type,
            command: payload.first().copied().unwrap_or_default(),
            attributes: attributes.map_while(Result::ok).map(attribute).collect(),
        })
    }
}

impl From<Generic> for NetlinkPayload<Generic> {
    fn from(message: Generic) -> Self {
        Self::InnerMessage(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_of_the_loopback_device() {
        // An older kernel has no such family.
        match xdp_features() {
            // It is the first device of every network namespace, and runs no programs in its driver.
            Ok(features) => assert_eq!(features.get(&1), Some(&0)),
            Err(error) => assert!(
                matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EOPNOTSUPP)),
                "{error}"
            ),
        }
    }

    #[test]
    fn what_drivers_can_do_is_said() {
        assert!(told(0).starts_with("runs no programs"));
        assert_eq!(told(BASIC | REDIRECT | NDO_XMIT | 8), "native: --xdp auto uses it");
        assert!(told(BASIC).starts_with("native, but"));
    }
}
