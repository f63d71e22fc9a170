//! XDP at the nodes' uplinks.

use std::{cell::Cell, fmt};

use anyhow::{Context as _, Result};
use aya::{Ebpf, EbpfLoader, programs::XdpMode};
use object::{
    Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope,
    write::{Object, Symbol, SymbolSection},
};

use super::{Namespace, Node};

/// A mode of XDP, as `--xdp` takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Xdp {
    /// The stack runs the program
    Generic,
    /// The driver runs the program
    Native,
}

impl Xdp {
    /// Every mode.
    pub const ALL: [Self; 2] = [Self::Generic, Self::Native];

    /// As `--xdp` takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Generic => "generic",
            Self::Native => "native",
        }
    }
}

impl fmt::Display for Xdp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

thread_local! {
    static MODE: Cell<Option<Xdp>> = const { Cell::new(None) };
}

/// Runs scenarios in whose labs agents have this mode of XDP, unless they are told another one.
pub fn under_xdp<T>(mode: Xdp, scenarios: impl FnOnce() -> T) -> T {
    let before = MODE.replace(Some(mode));
    let outcome = scenarios();
    MODE.set(before);
    outcome
}

/// The mode that [`under_xdp`] asks of labs.
pub(super) fn asked() -> Option<Xdp> {
    MODE.get()
}

/// The other ends of the nodes' wires, such that XDP at the uplinks works as at real devices; so they stay as long as this
/// lives.
#[derive(Debug)]
pub(super) struct XdpWires {
    _passing: Vec<Ebpf>,
}

impl XdpWires {
    /// Packets come to the nodes with complete checksums and in the size that they have on the wire, and the other end
    /// receives what XDP transmits: a veth only wakes up for that if it has an XDP program itself (`veth_xdp_flush`,
    /// drivers/net/veth.c).
    ///
    /// # Errors
    /// `ethtool` failed, or the kernel refuses the program.
    pub(super) fn prepare(nodes: &[Node], router: &Namespace) -> Result<Self> {
        let mut passing = Vec::new();
        for node in nodes {
            let wires = if node.second_uplink {
                &["eth0", "eth1"][..]
            } else {
                &["eth0"]
            };
            for wire in wires {
                let port = format!("{wire}-{}", node.number);
                let arguments = ["-K", &port, "tx", "off", "tso", "off", "gso", "off"];
                router.tool("ethtool", &arguments, "")?;
                passing.push(router.run(|| pass_all(&port))?);
            }
        }
        Ok(Self { _passing: passing })
    }
}

/// An XDP program of another owner, attached as long as this lives.
#[derive(Debug)]
pub struct ForeignXdp(Ebpf);

impl ForeignXdp {
    /// Attaches one to a device, in its driver.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn attach(namespace: &Namespace, device: &str) -> Result<Self> {
        Ok(Self(namespace.run(|| pass_all(device))?))
    }

    /// Detaches it.
    pub fn detach(self) {
        drop(self.0);
    }
}

/// Attaches an XDP program that lets every packet pass.
fn pass_all(device: &str) -> Result<Ebpf> {
    const NAME: &str = "pass";
    let mut ebpf = EbpfLoader::new().load(&passing_object()?)?;
    let program: &mut aya::programs::Xdp = ebpf.program_mut(NAME).context("a program")?.try_into()?;
    program.load()?;
    program.attach(device, XdpMode::Driver)?;
    Ok(ebpf)
}

/// An object with a program that returns `XDP_PASS`: `r0 = 2; exit`.
fn passing_object() -> Result<Vec<u8>> {
    const CODE: [u8; 16] = [0xb7, 0, 0, 0, 2, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];
    let mut object = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
    let license = object.add_section(Vec::new(), b"license".to_vec(), SectionKind::Data);
    object.append_section_data(license, b"GPL\0", 1);
    let section = object.add_section(Vec::new(), b"xdp".to_vec(), SectionKind::Text);
    object.append_section_data(section, &CODE, 8);
    object.add_symbol(Symbol {
        name: b"pass".to_vec(),
        value: 0,
        size: CODE.len() as u64,
        kind: SymbolKind::Text,
        scope: SymbolScope::Dynamic,
        weak: false,
        section: SymbolSection::Section(section),
        flags: SymbolFlags::None,
    });
    Ok(object.write()?)
}
