//! Where a test of the dataplane runs: a mount and a network namespace of its own, which go with its thread.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::{AsRawFd as _, OwnedFd},
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use aya::programs::{SchedClassifier, TcAttachType, links::FdLink, links::PinnedLink};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use proxy_agent::dataplane::{
    self, Dataplane, Method, Options,
    cgroup::Mode,
    edge::{Edge, EdgePolicy, edges},
    network::NetworkWatch,
    pin::PinDirectory,
};

/// A place to pin and devices to attach to.
pub(crate) struct Sandbox {
    bpffs: tempfile::TempDir,
    pub(crate) pod: OwnedFd,
}

impl Sandbox {
    /// # Errors
    /// Why it can't be made here.
    pub(crate) fn new() -> Result<Self, String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("needs root".to_owned());
        }
        if !dataplane::has_programs() {
            return Err("built without the eBPF programs; run `cargo xtask build`".to_owned());
        }
        let namespace = || OwnedFd::from(fs::File::open("/proc/thread-self/ns/net").expect("this thread's namespace"));
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        let pod = namespace();
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("a network and a mount namespace");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("a private mount namespace");
        let bpffs = tempfile::Builder::new()
            .prefix("dataplane-")
            .tempdir()
            .expect("a directory");
        mount(Some("bpf"), bpffs.path(), Some("bpf"), MsFlags::empty(), none)
            .map_err(|error| format!("no bpffs: {error}"))?;
        ip("link set lo up");
        Ok(Self { bpffs, pod })
    }

    pub(crate) fn pin(&self) -> PinDirectory {
        PinDirectory::new(self.bpffs.path().join("proxy-agent"))
    }

    pub(crate) fn open(&self) -> anyhow::Result<Dataplane> {
        self.open_with(Method::Auto)
    }

    pub(crate) fn open_with(&self, attach: Method) -> anyhow::Result<Dataplane> {
        let options = Options {
            attach,
            ..self.options()
        };
        Dataplane::open(options, dataplane::now())
    }

    /// Flow tables are preallocated: small ones are made sooner.
    pub(crate) fn options(&self) -> Options {
        let mut options = Options::new(self.pin());
        // Their hooks are those of the whole machine, which the lab has cgroups of its own for.
        options.sockets.mode = Mode::Off;
        for table in ["flows_v4", "flows_v6"] {
            options.table_sizes.insert(table.to_owned(), 1024);
        }
        options
    }

    /// The pod's namespace, as ip(8) takes it.
    pub(crate) fn pod_path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.pod.as_raw_fd())
    }

    /// A pod's interface, its other end in another namespace.
    pub(crate) fn add_pod(&self, name: &str) {
        let pod = self.pod_path();
        ip(&format!("link add {name} type veth peer name p-{name} netns {pod}"));
        ip(&format!("link set {name} up"));
    }

    pub(crate) fn link_ids(&self) -> Vec<(PathBuf, u32, u32)> {
        let mut ids: Vec<_> = files(&self.pin().links())
            .into_iter()
            .map(|path| {
                let info = FdLink::from(PinnedLink::from_pin(&path).expect("a link"))
                    .info()
                    .expect("its information");
                (path, info.id(), info.program_id())
            })
            .collect();
        ids.sort_unstable();
        ids
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // The directory can only be removed when nothing is mounted on it.
        nix::mount::umount2(self.bpffs.path(), nix::mount::MntFlags::MNT_DETACH).expect("unmounted");
    }
}

pub(crate) fn ip(arguments: &str) {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .expect("ip(8) of iproute2");
    assert!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

pub(crate) fn files(directory: &std::path::Path) -> Vec<PathBuf> {
    fs::read_dir(directory)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").path())
        .collect()
}

/// The edges of now, as the agent sees them.
pub(crate) fn look() -> BTreeMap<u32, Edge> {
    runtime().block_on(async {
        let mut watch = NetworkWatch::open().expect("netlink");
        edges(&watch.network().await.expect("the network"), &EdgePolicy::default())
    })
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

pub(crate) fn attached(device: &str, hook: TcAttachType) -> Vec<u32> {
    let (_, programs) = SchedClassifier::query_tcx(device, hook).expect("the kernel's answer");
    programs.iter().map(aya::programs::ProgramInfo::id).collect()
}

pub(crate) fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}
