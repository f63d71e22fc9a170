//! `etcd` and `kube-apiserver` as processes.

use std::{
    env, fs,
    fs::File,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rcgen::KeyPair;

/// Names the folder of the programs; the convention of controller test suites.
pub(super) const VARIABLE: &str = "KUBEBUILDER_ASSETS";

/// How long a program may take to start.
const PATIENCE: Duration = Duration::from_mins(1);

/// Cluster addresses of the lab.
const SERVICE_RANGES: &str = "10.96.0.0/16,fd00:10:96::/112";

/// The two programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Assets {
    etcd: PathBuf,
    api_server: PathBuf,
}

impl Assets {
    /// Those of the folder that the environment names; `None` if it names none.
    ///
    /// # Errors
    /// The folder hasn't both: the message names what is missing.
    pub(super) fn of_environment() -> io::Result<Option<Self>> {
        let folder = env::var_os(VARIABLE).filter(|folder| !folder.is_empty());
        folder.map(|folder| Self::within(Path::new(&folder))).transpose()
    }

    /// Those of a folder.
    pub(super) fn within(folder: &Path) -> io::Result<Self> {
        let find = |name: &str| {
            let path = folder.join(name);
            match fs::metadata(&path) {
                Ok(found) if found.is_file() => Ok(path),
                Ok(_) => Err(format!("{} is no file", path.display())),
                Err(error) => Err(format!("{}: {error}", path.display())),
            }
            .map_err(|reason| {
                io::Error::other(format!(
                    "{VARIABLE} is to name a folder with etcd and kube-apiserver, but {reason} (unset it to use the test API \
                     server)"
                ))
            })
        };
        Ok(Self {
            etcd: find("etcd")?,
            api_server: find("kube-apiserver")?,
        })
    }
}

/// Where they listen, and the files they live on: the same each time they are started.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) assets: Assets,
    /// Of this machine
    pub(super) directory: PathBuf,
    pub(super) etcd: [u16; 2],
    pub(super) api_server: u16,
    /// Whoever shows it is an administrator
    pub(super) token: String,
}

impl Plan {
    /// With ports that are free now.
    pub(super) fn new(assets: Assets, directory: &Path) -> io::Result<Self> {
        // All are held at once, so that they differ.
        let listeners: [TcpListener; 3] = [
            TcpListener::bind("127.0.0.1:0")?,
            TcpListener::bind("127.0.0.1:0")?,
            TcpListener::bind("127.0.0.1:0")?,
        ];
        let port = |listener: &TcpListener| Ok::<_, io::Error>(listener.local_addr()?.port());
        Ok(Self {
            assets,
            directory: directory.to_owned(),
            etcd: [port(&listeners[0])?, port(&listeners[1])?],
            api_server: port(&listeners[2])?,
            token: format!("{:032x}", fastrand::u128(..)),
        })
    }

    /// Where etcd keeps everything.
    pub(super) fn data(&self) -> PathBuf {
        self.directory.join("etcd")
    }

    /// Writes what the programs read: who may ask, and the key of service accounts, without which it doesn't start.
    pub(super) fn write_files(&self) -> io::Result<()> {
        fs::write(
            self.directory.join("tokens"),
            format!("{},test,test,system:masters\n", self.token),
        )?;
        let key = KeyPair::generate().map_err(io::Error::other)?;
        fs::write(self.directory.join("service-accounts.key"), key.serialize_pem())
    }

    /// The arguments of etcd.
    pub(super) fn etcd_arguments(&self) -> Vec<String> {
        let [client, peer] = self.etcd.map(|port| format!("http://127.0.0.1:{port}"));
        vec![
            format!("--data-dir={}", self.data().display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            // Nothing is to outlive the machine.
            "--unsafe-no-fsync=true".to_owned(),
        ]
    }

    /// The arguments of kube-apiserver. No controllers run beside it, so nothing waits for one: neither namespaces nor service
    /// accounts nor the endpoints of the API server itself.
    pub(super) fn api_server_arguments(&self) -> Vec<String> {
        let file = |name: &str| self.directory.join(name).display().to_string();
        vec![
            format!("--etcd-servers=http://127.0.0.1:{}", self.etcd[0]),
            "--bind-address=127.0.0.1".to_owned(),
            "--advertise-address=127.0.0.1".to_owned(),
            format!("--secure-port={}", self.api_server),
            format!("--cert-dir={}", file("certificates")),
            format!("--token-auth-file={}", file("tokens")),
            "--authorization-mode=RBAC".to_owned(),
            "--disable-admission-plugins=ServiceAccount,NamespaceLifecycle".to_owned(),
            "--service-account-issuer=https://127.0.0.1/".to_owned(),
            format!("--service-account-key-file={}", file("service-accounts.key")),
            format!("--service-account-signing-key-file={}", file("service-accounts.key")),
            format!("--service-cluster-ip-range={SERVICE_RANGES}"),
            "--endpoint-reconciler-type=none".to_owned(),
        ]
    }
}

/// Both at work; they end with this value.
#[derive(Debug)]
pub(super) struct Processes {
    _api_server: Ended,
    etcd: Ended,
}

/// A process that is killed with this value.
#[derive(Debug)]
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended already.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

impl Processes {
    /// Starts both, and waits until the API server is ready.
    ///
    /// # Errors
    /// One of them ends or takes too long: with the end of its log.
    pub(super) fn start(plan: &Plan, is_ready: impl Fn() -> bool) -> io::Result<Self> {
        let directory = &plan.directory;
        let mut etcd = spawn(&plan.assets.etcd, &plan.etcd_arguments(), &directory.join("etcd.log"))?;
        let etcd_answers = || is_healthy(SocketAddr::from(([127, 0, 0, 1], plan.etcd[0])));
        wait_for(&mut etcd, "etcd", &directory.join("etcd.log"), etcd_answers)?;
        let log = directory.join("kube-apiserver.log");
        let mut api_server = spawn(&plan.assets.api_server, &plan.api_server_arguments(), &log)?;
        wait_for(&mut api_server, "kube-apiserver", &log, is_ready)?;
        Ok(Self {
            _api_server: api_server,
            etcd,
        })
    }

    /// Has etcd hold still while something is done with its files. What it wrote to them by then is what it finds after a crash.
    pub(super) fn pause<T>(&self, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let etcd = Pid::from_raw(self.etcd.0.id().cast_signed());
        kill(etcd, Signal::SIGSTOP)?;
        let done = act();
        kill(etcd, Signal::SIGCONT)?;
        done
    }
}

fn spawn(program: &Path, arguments: &[String], log: &Path) -> io::Result<Ended> {
    let output = File::create(log)?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output);
    let started = command.spawn();
    Ok(Ended(started.map_err(|error| {
        io::Error::new(error.kind(), format!("{}: {error}", program.display()))
    })?))
}

fn wait_for(process: &mut Ended, name: &str, log: &Path, is_ready: impl Fn() -> bool) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let failed = |how: String| {
        let text = fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let end = lines[lines.len().saturating_sub(20)..].join("\n");
        io::Error::other(format!("{name} {how}; the end of its log:\n{end}"))
    };
    while !is_ready() {
        if let Some(status) = process.0.try_wait()? {
            return Err(failed(format!("ended with {status}")));
        }
        if Instant::now() > deadline {
            return Err(failed(format!("is not ready within {} s", PATIENCE.as_secs())));
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Whether etcd says that it is healthy.
fn is_healthy(address: SocketAddr) -> bool {
    let ask = || -> io::Result<String> {
        let mut connection = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        connection.set_read_timeout(Some(Duration::from_secs(1)))?;
        write!(
            connection,
            "GET /health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.contains(r#""health":"true""#))
}
