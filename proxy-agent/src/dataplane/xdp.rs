//! XDP at uplinks: which may have it, in which mode, and why not. Its links are pinned by interface index and mode; they
//! stay when the agent ends, and the next one replaces their program atomically.

use std::{collections::BTreeMap, fmt, io, os::fd::AsFd as _, path::PathBuf, str::FromStr};

use anyhow::{Context as _, Result, anyhow};
use aya::programs::{
    ProgramError, Xdp, XdpMode,
    links::{FdLink, PinnedLink},
    xdp::XdpLink,
};
use proxy_common::layout::{Device, device_flags, express};

use super::{
    edge::{Edge, Framing, Role},
    object::{Programs, os_error},
    pin::{self, PinDirectory},
    raw, tcx,
};

/// What is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Wanted {
    /// No XDP
    #[default]
    Off,
    /// In the driver where that can do it, else none
    Auto,
    /// In the driver
    Native,
    /// In the stack, before all else
    Generic,
}

/// What is asked for, of all devices or of those whose names match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    devices: Option<glob::Pattern>,
    wanted: Wanted,
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (devices, mode) = match text.rsplit_once('=') {
            Some((devices, mode)) => {
                let pattern = glob::Pattern::new(devices).map_err(|error| format!("{devices}: {error}"))?;
                (Some(pattern), mode)
            }
            None => (None, text),
        };
        let wanted = <Wanted as clap::ValueEnum>::from_str(mode, false)
            .map_err(|_| format!("{mode} is none of off, auto, native, generic"))?;
        Ok(Self { devices, wanted })
    }
}

/// What is asked for: of rules that name a device the first counts, else the last that names none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy(pub Vec<Rule>);

impl Policy {
    fn wanted(&self, name: &str) -> Wanted {
        let names = |rule: &&Rule| rule.devices.as_ref().is_some_and(|devices| devices.matches(name));
        let named = self.0.iter().find(names);
        let rule = named.or_else(|| self.0.iter().rfind(|rule| rule.devices.is_none()));
        rule.map_or(Wanted::Off, |rule| rule.wanted)
    }
}

/// How XDP runs at a device, or why it doesn't: a number in the `devices` table, so that `status` tells what the agent did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u32)]
pub enum Express {
    /// Nobody asked for it
    Off = express::OFF,
    /// The driver runs the program
    Native = express::NATIVE,
    /// The stack runs the program
    Generic = express::GENERIC,
    /// The driver has no place for XDP programs
    NoDriver = 3,
    /// Another owner's program is there
    Foreign = 4,
    /// Packets don't begin with an Ethernet header
    NoEthernet = 5,
    /// The kernel or the driver refuses it, for this device as it is set up
    Refused = 6,
}

impl Express {
    const ALL: [Self; 7] = [
        Self::Off,
        Self::Native,
        Self::Generic,
        Self::NoDriver,
        Self::Foreign,
        Self::NoEthernet,
        Self::Refused,
    ];

    /// As it stands in the flags of a device.
    pub const fn flags(self) -> u32 {
        (self as u32) << device_flags::EXPRESS_SHIFT
    }

    /// Whether it is a reason to have none.
    pub(super) const fn is_none(self) -> bool {
        !matches!(self, Self::Native | Self::Generic)
    }

    /// From the `devices` table.
    pub fn of(device: &Device) -> Option<Self> {
        let flags = device.flags & device_flags::EXPRESS_MASK;
        Self::ALL.into_iter().find(|state| state.flags() == flags)
    }
}

impl fmt::Display for Express {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Native => "native",
            Self::Generic => "generic",
            Self::NoDriver => "none: the driver runs no XDP programs",
            Self::Foreign => "none: another XDP program is attached",
            Self::NoEthernet => "none: packets have no Ethernet header",
            Self::Refused => "none: the driver refuses it",
        })
    }
}

/// A mode in which the program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Native,
    Generic,
}

impl Mode {
    const ALL: [Self; 2] = [Self::Native, Self::Generic];

    const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }

    const fn express(self) -> Express {
        match self {
            Self::Native => Express::Native,
            Self::Generic => Express::Generic,
        }
    }

    /// The pin of the link to a device.
    fn pin(self, directory: &PinDirectory, index: u32) -> PathBuf {
        directory.links().join(format!("{index}_xdp_{}", self.name()))
    }
}

/// Whether a pinned link is one of XDP, by its file's name.
pub(super) fn is_pin(path: &std::path::Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.split('_').nth(1) == Some("xdp")
}

/// Keeps the XDP program attached where it should be.
pub(super) struct ExpressAttacher {
    pin: PinDirectory,
    policy: Policy,
}

impl ExpressAttacher {
    pub(super) const fn new(pin: PinDirectory, policy: Policy) -> Self {
        Self { pin, policy }
    }

    /// The mode that an edge is to have, or why it is to have none.
    fn wanted(&self, edge: &Edge) -> Result<Mode, Express> {
        if edge.role != Role::Uplink {
            return Err(Express::Off);
        }
        let mode = match self.policy.wanted(&edge.name) {
            Wanted::Off => return Err(Express::Off),
            Wanted::Auto | Wanted::Native => Mode::Native,
            Wanted::Generic => Mode::Generic,
        };
        if edge.framing == Framing::Ethernet {
            Ok(mode)
        } else {
            Err(Express::NoEthernet)
        }
    }

    /// What is attached now and is to stay, by interface index. Programs may hand packets to these devices.
    pub(super) fn standing(&self, edges: &BTreeMap<u32, Edge>) -> BTreeMap<u32, Express> {
        let standing = |(&index, edge): (&u32, &Edge)| {
            let mode = self.wanted(edge).ok()?;
            let attached = tcx::is_link_attached(&mode.pin(&self.pin, index)).ok()?;
            attached.then_some((index, mode.express()))
        };
        edges.iter().filter_map(standing).collect()
    }

    /// Attaches to the uplinks among `edges` as the policy wants it, and detaches from all other devices. Gives the state of
    /// each edge, and by device name what failed and is to be tried again.
    pub(super) fn sync(
        &self,
        programs: &mut Programs,
        edges: &BTreeMap<u32, Edge>,
    ) -> (BTreeMap<u32, Express>, Vec<(String, anyhow::Error)>) {
        let mut failed = Vec::new();
        if let Err(error) = self.prune(edges) {
            failed.push((self.pin.root().display().to_string(), error));
        }
        let mut states = BTreeMap::new();
        for (&index, edge) in edges {
            let state = match self.wanted(edge) {
                Err(state) => state,
                Ok(mode) => match programs
                    .forward()
                    .and_then(|program| attach(program, &self.pin, index, mode))
                {
                    Ok(()) => mode.express(),
                    Err(error) => {
                        let state = obstacle(&error);
                        let asked = self.policy.wanted(&edge.name) != Wanted::Auto;
                        // Whoever leaves it to the driver has their answer.
                        if (asked || state != Express::NoDriver) && pin::device_exists(index) {
                            let mode = mode.name();
                            failed.push((edge.name.clone(), error.context(format!("cannot attach {mode} XDP"))));
                        }
                        state
                    }
                },
            };
            states.insert(index, state);
        }
        (states, failed)
    }

    /// Detaches what is not wanted there, or not in that mode.
    fn prune(&self, edges: &BTreeMap<u32, Edge>) -> Result<()> {
        for path in pin::entries(&self.pin.links())?.into_iter().filter(|path| is_pin(path)) {
            let wanted = pin::index_of(&path).is_some_and(|index| {
                let mode = edges.get(&index).and_then(|edge| self.wanted(edge).ok());
                mode.is_some_and(|mode| mode.pin(&self.pin, index) == path)
            });
            if !wanted {
                tcx::detach(&path)?;
            }
        }
        Ok(())
    }
}

/// How XDP is attached to a device by a link of ours, if it is.
pub(super) fn attached(pin: &PinDirectory, index: u32) -> Result<Option<Express>> {
    for mode in Mode::ALL {
        if tcx::is_link_attached(&mode.pin(pin, index))? {
            return Ok(Some(mode.express()));
        }
    }
    Ok(None)
}

/// Attaches the program to a device, or replaces the one that the pinned link has.
fn attach(program: &mut Xdp, directory: &PinDirectory, index: u32, mode: Mode) -> Result<()> {
    let path = &mode.pin(directory, index);
    match raw::object_get(path) {
        Ok(link) => {
            let info = raw::tcx_link_info(link.as_fd()).with_context(|| format!("{} is no link", path.display()))?;
            if info.ifindex == 0 {
                pin::remove(path)?;
            } else if info.program == program.info()?.id() {
                return Ok(());
            } else {
                let link = FdLink::from(PinnedLink::from_pin(path).with_context(|| path.display().to_string())?);
                let link = XdpLink::try_from(link).with_context(|| format!("{} is no XDP link", path.display()))?;
                let id = program.attach_to_link(link)?;
                // The pin keeps it attached.
                drop(program.take_link(id)?);
                return Ok(());
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot open the link pinned at {}", path.display())),
    }
    let id = program.attach_to_if_index(
        index,
        match mode {
            Mode::Native => XdpMode::Driver,
            Mode::Generic => XdpMode::Skb,
        },
    )?;
    let link = FdLink::try_from(program.take_link(id)?)
        .map_err(|error| anyhow!(error).context("this kernel has no XDP links (Linux 5.9)"))?;
    drop(
        link.pin(path)
            .with_context(|| format!("cannot pin the link at {}", path.display()))?,
    );
    Ok(())
}

/// Why the kernel did not attach the program (`dev_xdp_attach`, net/core/dev.c).
fn obstacle(error: &anyhow::Error) -> Express {
    match error.downcast_ref::<ProgramError>().and_then(os_error) {
        Some(libc::EOPNOTSUPP) => Express::NoDriver,
        Some(libc::EBUSY | libc::EEXIST) => Express::Foreign,
        _ => Express::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(rules: &[&str]) -> Policy {
        Policy(rules.iter().map(|rule| rule.parse().expect("a rule")).collect())
    }

    #[test]
    fn rules_that_name_a_device_come_first() {
        let policy = policy(&["off", "eth*=generic", "eth1=native", "auto"]);
        assert_eq!(policy.wanted("eth0"), Wanted::Generic);
        assert_eq!(policy.wanted("eth1"), Wanted::Generic, "the first counts");
        assert_eq!(policy.wanted("ens3"), Wanted::Auto, "the last of those that name none");
        assert_eq!(Policy::default().wanted("eth0"), Wanted::Off);
    }

    #[test]
    fn bad_rules_say_what_is_wrong() {
        for (rule, part) in [("fast", "none of off"), ("eth0=", "none of off"), ("[=auto", "[")] {
            let error = rule.parse::<Rule>().expect_err(rule);
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn states_fit_a_devices_flags() {
        for state in Express::ALL {
            let device = Device {
                flags: state.flags() | device_flags::BARE | device_flags::LOCAL_TRAFFIC,
                ..Device::default()
            };
            assert_eq!(Express::of(&device), Some(state));
        }
    }
}
