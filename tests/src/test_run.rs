//! The kernel programs under `BPF_PROG_TEST_RUN`: real programs and maps, one packet at a time, no device.

use std::{
    env, fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf, EbpfLoader,
    maps::{PerCpuArray, PerCpuValues},
    programs::{CgroupSockAddr, ProgramInfo, SchedClassifier, TestRun as _, TestRunOptions, Xdp},
    util::nr_cpus,
};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    unistd::geteuid,
};
use proxy_agent::dataplane::{
    kernel,
    pin::PinDirectory,
    simulation::Hook,
    table::Tables,
    watch::{self, Watch},
};
use proxy_common::layout::{ANSWERED, Settings, Timeouts, opening_slots, tables};
use tempfile::TempDir;

/// Verdicts of the programs: `TCX_NEXT` and `TCX_DROP` (`include/uapi/linux/bpf.h`).
pub const NEXT: i32 = -1;
/// See [`NEXT`].
pub const DROP: i32 = 2;
/// `TCX_REDIRECT`: an answer leaves by the device that the packet came from.
pub const REDIRECT: i32 = 7;

/// How much longer than the packet an answer to it may be: the headers of an error.
const LONGER: usize = 48;

/// The interface index that programs see: the loopback device's, whose packets the kernel pretends to test with.
pub const DEVICE: u32 = 1;

/// Names of the programs: those for frames, and those for packets without a link-layer header.
pub const PROGRAMS: [&str; 4] = ["ingress", "egress", "ingress_l3", "egress_l3"];

/// Names of the programs at hooks of sockets. The kernel has no test runs for them.
pub const SOCKET_PROGRAMS: [&str; 8] = [
    "connect4",
    "connect6",
    "sendmsg4",
    "sendmsg6",
    "recvmsg4",
    "recvmsg6",
    "getpeername4",
    "getpeername6",
];

/// Name of the XDP program.
pub const FORWARD: &str = "forward";

/// Its verdicts: `XDP_PASS`, `XDP_TX` and `XDP_REDIRECT` (`include/uapi/linux/bpf.h`).
pub const PASS: i32 = 2;
/// See [`PASS`].
pub const TRANSMIT: i32 = 3;
/// See [`PASS`].
pub const TRANSMIT_ELSEWHERE: i32 = 4;

/// The programs, loaded into the kernel with maps of their own.
pub struct Kernel {
    ebpf: Ebpf,
    tables: Tables,
    pin: PinDirectory,
    _bpffs: Bpffs,
}

/// Why programs can't be run here: not as root, or not built. Anything else that fails is an error of the programs.
pub fn obstacle() -> Option<String> {
    if !geteuid().is_root() {
        return Some("needs root".to_owned());
    }
    object().err().map(|error| format!("{error:#}"))
}

/// What a program did with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// Its verdict
    pub verdict: i32,
    /// The frame as it left it
    pub frame: Vec<u8>,
    /// How long one run took, on average
    pub duration: Duration,
}

impl Kernel {
    /// Loads the programs that `cargo xtask build` built. Flow tables get `flows` entries.
    ///
    /// # Errors
    /// If there is no object, or the kernel refuses it.
    pub fn load(flows: u32) -> Result<Self> {
        Self::load_with(flows, Timeouts::DEFAULT, false)
    }

    /// [`Kernel::load`] with these flow timeouts, and programs that count by endpoint or don't.
    ///
    /// # Errors
    /// As there.
    pub fn load_with(flows: u32, timeouts: Timeouts, count_endpoints: bool) -> Result<Self> {
        // The fields of `Settings` in their order, the timeouts first. Without `BPF_F_IPV6` the programs do as on kernels
        // before 6.16; whatever else there is is off, but for what comes last: the masks of openings, and who counts.
        let mut settings = [0; size_of::<Settings>() / size_of::<u32>()];
        let timeouts = [
            timeouts.tcp_opening,
            timeouts.tcp_answered,
            timeouts.tcp_established,
            timeouts.tcp_half_closed,
            timeouts.tcp_closing,
            timeouts.udp_opening,
            timeouts.udp_established,
            timeouts.sctp_opening,
            timeouts.sctp_established,
            timeouts.sctp_closing,
        ];
        settings[..timeouts.len()].copy_from_slice(&timeouts);
        let [.., mask_v4, mask_v6, counts] = &mut settings;
        *mask_v4 = opening_slots(flows) - 1;
        *mask_v6 = *mask_v4;
        *counts = count_endpoints.into();
        let object = object()?;
        let bpffs = Bpffs::mount()?;
        let pin = PinDirectory::new(bpffs.0.path().join("test-run"));
        fs::create_dir_all(pin.maps()).context("cannot make a pin directory")?;
        let mut loader = EbpfLoader::new();
        loader.override_global("SETTINGS", &settings, true);
        for spec in &tables::ALL {
            loader.map_pin_path(spec.name, pin.map(spec.name));
        }
        for spec in [tables::FLOWS_V4, tables::FLOWS_V6] {
            loader.map_max_entries(spec.name, flows);
        }
        for spec in [tables::OPENINGS_V4, tables::OPENINGS_V6] {
            loader.map_max_entries(spec.name, opening_slots(flows));
        }
        // They are read whole after every packet.
        for spec in [tables::FRAGMENTS_V4, tables::FRAGMENTS_V6, tables::HELD_FRAGMENTS] {
            loader.map_max_entries(spec.name, 64);
        }
        // As in use: logging is off, and costs nothing.
        loader.override_global("AYA_LOG_LEVEL", &0u8, true);
        let mut ebpf = loader.load(&object).context("cannot make the maps")?;
        for name in PROGRAMS {
            program(&mut ebpf, name)?
                .load()
                .with_context(|| format!("cannot load {name}"))?;
        }
        forward(&mut ebpf)?
            .load()
            .with_context(|| format!("cannot load {FORWARD}"))?;
        Ok(Self {
            ebpf,
            tables: kernel::open(&pin)?,
            pin,
            _bpffs: bpffs,
        })
    }

    /// The tables once more, for who needs them for himself.
    ///
    /// # Errors
    /// If they can't be opened.
    pub fn reopen(&self) -> Result<Tables> {
        kernel::open(&self.pin)
    }

    /// Where the tables are pinned.
    pub const fn pin(&self) -> &PinDirectory {
        &self.pin
    }

    /// Watches all that the programs tell.
    ///
    /// # Errors
    /// If too many do already.
    pub fn watch(&self) -> Result<Watch> {
        self.watch_with(watch::RING_BYTES)
    }

    /// [`Kernel::watch`] with a ring of so many bytes.
    ///
    /// # Errors
    /// As there.
    pub fn watch_with(&self, ring_bytes: u32) -> Result<Watch> {
        Watch::open(&self.pin, watch::bits(watch::reasons()) | 1 << ANSWERED, ring_bytes)
    }

    /// Loads [`SOCKET_PROGRAMS`] as well.
    ///
    /// # Errors
    /// If the kernel refuses one.
    pub fn load_socket_programs(&mut self) -> Result<()> {
        for name in SOCKET_PROGRAMS {
            let program = self
                .ebpf
                .program_mut(name)
                .with_context(|| format!("no program {name}"))?;
            let program: &mut CgroupSockAddr = program.try_into()?;
            program.load().with_context(|| format!("cannot load {name}"))?;
        }
        Ok(())
    }

    /// The tables of the programs.
    pub const fn tables(&mut self) -> &mut Tables {
        &mut self.tables
    }

    /// Runs an Ethernet frame through a hook, `repeat` times; the kernel does not restore the frame in between.
    ///
    /// # Errors
    /// If the kernel refuses the frame.
    pub fn run(&mut self, hook: Hook, frame: &[u8], repeat: u32) -> Result<Ran> {
        self.run_program(name(hook), frame, repeat)
    }

    /// Runs a packet without a link-layer header through a hook of a device that has none.
    ///
    /// The kernel takes any test packet for an Ethernet frame, and its 13th and 14th byte for the protocol: they must be the
    /// EtherType of the packet's family. In IP headers these bytes are part of the source address, which
    /// [`bare_source`] makes fit.
    ///
    /// # Errors
    /// If the kernel refuses the packet.
    pub fn run_bare(&mut self, hook: Hook, packet: &[u8]) -> Result<Ran> {
        let name = match hook {
            Hook::Ingress => "ingress_l3",
            Hook::Egress => "egress_l3",
        };
        self.run_program(name, packet, 1)
    }

    /// Runs an Ethernet frame through the XDP program, `repeat` times. Routes are those of the thread's network namespace, for
    /// packets that arrive by its loopback device.
    ///
    /// # Errors
    /// If the kernel refuses the frame.
    pub fn run_forward(&mut self, frame: &[u8], repeat: u32) -> Result<Ran> {
        let mut out = vec![0; frame.len()];
        let result = forward(&mut self.ebpf)?
            .test_run(TestRunOptions {
                data_in: Some(frame),
                data_out: Some(&mut out),
                repeat,
                ..TestRunOptions::default()
            })
            .context("BPF_PROG_TEST_RUN")?;
        Ok(Ran {
            verdict: result.return_value.cast_signed(),
            frame: out,
            duration: result.duration,
        })
    }

    fn run_program(&mut self, name: &str, frame: &[u8], repeat: u32) -> Result<Ran> {
        let mut out = vec![0; frame.len() + LONGER];
        let result = program(&mut self.ebpf, name)?
            .test_run(TestRunOptions {
                data_in: Some(frame),
                data_out: Some(&mut out),
                repeat,
                ..TestRunOptions::default()
            })
            .context("BPF_PROG_TEST_RUN")?;
        out.truncate(result.data_size_out as usize);
        Ok(Ran {
            verdict: result.return_value.cast_signed(),
            frame: out,
            duration: result.duration,
        })
    }

    /// Allows as many answers to refused packets as after a long silence.
    ///
    /// # Errors
    /// If the kernel refuses the write.
    pub fn allow_answers(&mut self) -> Result<()> {
        let map = self
            .ebpf
            .map_mut(tables::ANSWER_LIMIT.name)
            .context("no limit of answers")?;
        let cpus = nr_cpus().map_err(|(path, error)| anyhow::Error::new(error).context(path))?;
        let mut limit = PerCpuArray::<_, u64>::try_from(map)?;
        Ok(limit.set(0, PerCpuValues::try_from(vec![0; cpus])?, 0)?)
    }

    /// How many instructions the verifier went through for one of [`PROGRAMS`], [`SOCKET_PROGRAMS`] or [`FORWARD`].
    ///
    /// # Errors
    /// If the kernel does not tell.
    pub fn verified_instructions(&mut self, name: &str) -> Result<u32> {
        let info = self.info(name)?;
        info.verified_instruction_count()
            .context("the kernel does not tell verified instructions")
    }

    /// Size of one of [`PROGRAMS`], [`SOCKET_PROGRAMS`] or [`FORWARD`], as the verifier left it, in bytes.
    ///
    /// # Errors
    /// If the kernel does not tell.
    pub fn translated_size(&mut self, name: &str) -> Result<u32> {
        let info = self.info(name)?;
        info.size_translated().context("the kernel does not tell the size")
    }

    fn info(&self, name: &str) -> Result<ProgramInfo> {
        let program = self.ebpf.program(name).with_context(|| format!("no program {name}"))?;
        Ok(program.info()?)
    }
}

/// A source address for [`Kernel::run_bare`]: 8.0.0.`host`, or 2001:db8:86dd::`host`.
pub fn bare_source(ipv6: bool, host: u8) -> IpAddr {
    if ipv6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0x86dd, 0, 0, 0, 0, host.into()).into()
    } else {
        Ipv4Addr::new(8, 0, 0, host).into()
    }
}

const fn name(hook: Hook) -> &'static str {
    match hook {
        Hook::Ingress => "ingress",
        Hook::Egress => "egress",
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    let program = ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
    Ok(program.try_into()?)
}

fn forward(ebpf: &mut Ebpf) -> Result<&mut Xdp> {
    let program = ebpf
        .program_mut(FORWARD)
        .with_context(|| format!("no program {FORWARD}"))?;
    Ok(program.try_into()?)
}

/// The eBPF object where `cargo xtask build` puts it, or where `PROXY_EBPF_OBJECT` says.
///
/// # Errors
/// If it can't be read.
pub fn object() -> Result<Vec<u8>> {
    let path = env::var_os("PROXY_EBPF_OBJECT").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/ebpf/proxy-ebpf.o"),
        PathBuf::from,
    );
    fs::read(&path).with_context(|| format!("no eBPF object at {}: run `cargo xtask build`", path.display()))
}

/// A bpffs of our own, unmounted in the end.
struct Bpffs(TempDir);

impl Bpffs {
    fn mount() -> Result<Self> {
        let directory = tempfile::tempdir().context("cannot make a directory")?;
        mount(
            Some("bpf"),
            directory.path(),
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .context("cannot mount a bpffs (are we root?)")?;
        Ok(Self(directory))
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        // Nothing is left to do if that fails; the directory then stays behind and says so.
        if let Err(error) = umount2(self.0.path(), MntFlags::MNT_DETACH) {
            eprintln!("cannot unmount {}: {error}", self.0.path().display());
        }
    }
}
