//! The eBPF programs: embedded, loaded into the kernel, their maps pinned.

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsFd as _,
};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{
    Ebpf, EbpfLoader,
    programs::{CgroupSockAddr, ProgramError, SchedClassifier, TcError, Xdp},
    sys::SyscallError,
    util::KernelVersion,
};
use aya_log::EbpfLogger;
use proxy_common::layout::{
    Settings, SocketSettings, TableSpec, Timeouts,
    tables::{self, FLOWS_V4, FLOWS_V6},
    usable_slots,
};

use super::{
    cgroup::{Mode, SocketHook},
    edge::Framing,
    generation::{Generation, Types, heal},
    hook::{HEIR, Hook},
    pin::PinDirectory,
    raw::{self, BytesMap, Raw},
};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/proxy-ebpf.o"));

/// Whether this agent was built with its eBPF programs.
pub fn has_programs() -> bool {
    !OBJECT.is_empty()
}

/// The object, unless an empty one stands in its place (see build.rs).
fn built(object: &[u8]) -> Result<&[u8]> {
    if object.is_empty() {
        bail!("this agent was built without its eBPF programs: build it with `cargo xtask build`");
    }
    Ok(object)
}

/// `BPF_F_IPV6` of `bpf_l4_csum_replace` (include/uapi/linux/bpf.h), since Linux 6.16.
const BPF_F_IPV6: u32 = 0x80;

/// How much the programs log. Off costs nothing: the verifier removes the code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
#[repr(u8)]
pub enum LogLevel {
    /// Nothing
    #[default]
    Off = 0,
    /// Every packet that is refused
    Debug = aya_log::Level::Debug as u8,
}

/// The loaded programs.
pub(super) struct Programs {
    ebpf: Ebpf,
    /// Whether they leave packets to those of a previous generation
    heirs: bool,
    /// Why sockets can't be served
    socket_obstacle: Option<io::Error>,
    /// Where they are pinned
    generation: Generation,
}

impl Programs {
    /// The lists of programs of the previous generation.
    pub(super) const LISTS: [&str; 2] = ["previous_tc", "previous_xdp"];

    /// Loads the programs and opens or pins their maps. `sizes` holds the number of entries of new tables by name;
    /// what is pinned already has them. With a `previous` generation they leave its flows to its programs.
    ///
    /// # Errors
    /// If the agent was built without the programs, or the kernel refuses.
    pub(super) fn load(
        pin: &PinDirectory,
        sizes: &BTreeMap<String, u32>,
        timeouts: Timeouts,
        sockets: Mode,
        count_endpoints: bool,
        log: LogLevel,
        previous: Option<&Generation>,
    ) -> Result<Self> {
        let object = built(OBJECT)?;
        if let Some(unknown) = sizes
            .keys()
            .find(|name| tables::ALL.iter().all(|spec| spec.name != *name))
        {
            let names: Vec<_> = tables::ALL.iter().map(|spec| spec.name).collect();
            bail!("no table is called {unknown}; there are {}", names.join(", "));
        }
        if !std::path::Path::new("/sys/kernel/btf/vmlinux").exists() {
            tracing::warn!("this kernel has no BTF (/sys/kernel/btf/vmlinux): `bpftool map dump` shows no field names");
        }
        let settings = Raw(Settings {
            timeouts,
            ipv6_checksum_flag: ipv6_checksum_flag()?,
            previous: previous.is_some().into(),
            openings_mask_v4: openings_mask(sizes, tables::OPENINGS_V4),
            openings_mask_v6: openings_mask(sizes, tables::OPENINGS_V6),
            count_endpoints: count_endpoints.into(),
        });
        let mut loader = EbpfLoader::new();
        let (sockets, socket_obstacle) = socket_settings(sockets)?;
        let sockets = Raw(sockets);
        let level = log as u8;
        loader.override_global("SETTINGS", &settings, true);
        loader.override_global("SOCKET_SETTINGS", &sockets, true);
        loader.override_global(aya_log::LEVEL, &level, true);
        for spec in &tables::ALL {
            loader.map_pin_path(spec.name, pin.map(spec.name));
            if let Some(&entries) = sizes.get(spec.name) {
                loader.map_max_entries(spec.name, entries);
            }
        }
        if let Some(previous) = previous {
            for (name, flows) in [("previous_v4", FLOWS_V4), ("previous_v6", FLOWS_V6)] {
                let path = previous.map(flows.name);
                // The programs look at nothing but the key; without such a table there are no flows.
                if BytesMap::open(&path).is_ok_and(|map| map.info().key_size == flows.key_size) {
                    loader.map_pin_path(name, path);
                }
            }
            for list in Self::LISTS {
                loader.map_pin_path(list, pin.map(list));
            }
        }
        let mut programs = Self {
            heirs: previous.is_some(),
            generation: pin.generation(),
            ebpf: loader
                .load(object)
                .map_err(|error| explain(error.into()).context("cannot make the BPF maps"))?,
            socket_obstacle,
        };
        Types::pin(object, &programs.generation)?;
        heal(&programs.generation)?;
        for hook in Hook::ALL {
            programs.program(hook, Framing::Ethernet)?;
        }
        Ok(programs)
    }

    /// Starts to pass what the programs log on to the agent's log; needs a tokio runtime. The task ends with it.
    ///
    /// # Errors
    /// If the log's ring buffer can't be read.
    pub(super) fn forward_log(&mut self) -> Result<()> {
        let logger = EbpfLogger::init(&mut self.ebpf).context("cannot read the log of the programs")?;
        let mut logger = raw::readiness(logger).context("cannot wait for the log of the programs")?;
        tokio::spawn(async move {
            while let Ok(mut ready) = logger.readable_mut().await {
                ready.get_inner_mut().flush();
                ready.clear_ready();
            }
        });
        Ok(())
    }

    /// The program of a hook for devices whose packets begin so, in the kernel: it is loaded when the first device needs it,
    /// for most nodes have none without Ethernet headers, and the verifier takes its time.
    ///
    /// # Errors
    /// If the kernel refuses it.
    pub(super) fn program(&mut self, hook: Hook, framing: Framing) -> Result<&mut SchedClassifier> {
        let name = hook
            .program(framing)
            .context("no program can read this link layer's packets")?;
        let name = &self.name_of(name);
        let program = self
            .ebpf
            .program_mut(name)
            .with_context(|| format!("the eBPF object has no program {name}"))?;
        let program: &mut SchedClassifier = program.try_into().with_context(|| format!("program {name}"))?;
        if program.fd().is_err() {
            program.load().map_err(|error| verification(name, error))?;
            self.generation.keep_program(name, program.fd()?.as_fd())?;
        }
        Ok(program)
    }
}

impl Programs {
    /// The XDP program, in the kernel: it is loaded when the first device needs it.
    ///
    /// # Errors
    /// If the kernel refuses it.
    pub(super) fn forward(&mut self) -> Result<&mut Xdp> {
        let name = &self.name_of("forward");
        let program = self
            .ebpf
            .program_mut(name)
            .with_context(|| format!("the eBPF object has no program {name}"))?;
        let program: &mut Xdp = program.try_into().with_context(|| format!("program {name}"))?;
        if program.fd().is_err() {
            program.load().map_err(|error| verification(name, error))?;
            self.generation.keep_program(name, program.fd()?.as_fd())?;
        }
        Ok(program)
    }

    fn name_of(&self, name: &str) -> String {
        format!("{name}{}", if self.heirs { HEIR } else { "" })
    }
}

impl Programs {
    /// Whether this kernel lets sockets be served.
    ///
    /// # Errors
    /// It doesn't; says what to do.
    pub(super) fn can_serve_sockets(&self) -> Result<()> {
        match &self.socket_obstacle {
            None => Ok(()),
            Some(error) => bail!(
                "this kernel doesn't tell whose network a socket is in (SO_NETNS_COOKIE, Linux 5.14): {error}; processes of \
                 the host don't reach Services"
            ),
        }
    }

    /// The program of a hook of sockets, in the kernel: it is loaded when it is first asked for.
    ///
    /// # Errors
    /// If the kernel refuses it: one built without CONFIG_CGROUP_BPF does.
    pub(super) fn socket(&mut self, hook: SocketHook) -> Result<&mut CgroupSockAddr> {
        let name = hook.name();
        let program = self
            .ebpf
            .program_mut(name)
            .with_context(|| format!("the eBPF object has no program {name}"))?;
        let program: &mut CgroupSockAddr = program.try_into().with_context(|| format!("program {name}"))?;
        if program.fd().is_err() {
            program.load().map_err(|error| verification(name, error))?;
            self.generation.keep_program(name, program.fd()?.as_fd())?;
        }
        Ok(program)
    }
}

/// Finds the slot of an opening by its number.
fn openings_mask(sizes: &BTreeMap<String, u32>, spec: TableSpec) -> u32 {
    usable_slots(sizes.get(spec.name).copied().unwrap_or(spec.max_entries)) - 1
}

fn kernel_version() -> Result<KernelVersion> {
    KernelVersion::current().map_err(|error| anyhow!("cannot read the kernel's version: {error}"))
}

/// What the hooks of sockets must know, as far as the kernel tells it: this process is in the host's network.
fn socket_settings(mode: Mode) -> Result<(SocketSettings, Option<io::Error>)> {
    let set_error = u32::from(kernel_version()? >= KernelVersion::new(5, 18, 0));
    let cookie = match mode {
        Mode::Off => Ok(0),
        Mode::Host | Mode::All => {
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| raw::netns_cookie(socket.as_fd()))
        }
    };
    let settings = SocketSettings {
        host_netns: *cookie.as_ref().unwrap_or(&0),
        pods: u32::from(mode == Mode::All),
        set_error,
    };
    Ok((settings, cookie.err()))
}

fn ipv6_checksum_flag() -> Result<u32> {
    Ok(if kernel_version()? >= KernelVersion::new(6, 16, 0) {
        BPF_F_IPV6
    } else {
        0
    })
}

/// The end of the verifier's log says why it refused.
fn verification(name: &str, error: ProgramError) -> anyhow::Error {
    const LINES: usize = 20;
    if let ProgramError::LoadError { verifier_log, .. } = &error {
        let log = verifier_log.to_string();
        let lines: Vec<_> = log.lines().collect();
        let end = lines[lines.len().saturating_sub(LINES)..].join("\n");
        if !end.is_empty() {
            let message = format!("the kernel refused the program {name}; its verifier says:\n{end}");
            return explain(error.into()).context(message);
        }
    }
    explain(error.into()).context(format!("the kernel refused the program {name}"))
}

/// Says what to do where the kernel only says EPERM.
fn explain(error: anyhow::Error) -> anyhow::Error {
    let denied = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::PermissionDenied);
    if denied {
        error.context(
            "no permission to use BPF: run as root, or with the capabilities CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON",
        )
    } else {
        error
    }
}

/// The system's error number in an error of aya.
pub(super) fn os_error(error: &ProgramError) -> Option<i32> {
    match error {
        ProgramError::SyscallError(SyscallError { io_error, .. }) => io_error.raw_os_error(),
        ProgramError::NetlinkError(error) | ProgramError::TcError(TcError::NetlinkError(error)) => error.raw_os_error(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_without_programs_says_how_to_build_it() {
        let error = built(&[]).expect_err("no programs");
        assert!(error.to_string().contains("cargo xtask build"), "{error}");
    }
}
