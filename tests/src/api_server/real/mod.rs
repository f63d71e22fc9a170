//! A real API server behind the front, instead of the objects in memory.

mod processes;
#[cfg(test)]
mod tests;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use http_body_util::BodyExt as _;
use hyper::{Method, Request, Response, header::CONTENT_TYPE};
use kube::{Client, Config, client::Body};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use self::processes::{Assets, Plan, Processes};
use super::{resource::Resource, store::Key};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Objects are written in this name.
const FIELD_MANAGER: &str = "proxy-tests";

/// Holds up the deletion of an object.
const FINALIZER: &str = "example.com/proxy-tests";

/// Both programs, and a client with all rights.
pub(super) struct Real {
    plan: Plan,
    processes: Mutex<Option<Processes>>,
    client: Client,
    runtime: Runtime,
    saved: Mutex<Vec<PathBuf>>,
    _directory: TempDir,
}

impl Real {
    /// Starts the programs that the environment names; `None` if it names none.
    pub(super) fn of_environment() -> io::Result<Option<Self>> {
        Assets::of_environment()?.map(Self::start).transpose()
    }

    fn start(assets: Assets) -> io::Result<Self> {
        let directory = tempfile::tempdir()?;
        let plan = Plan::new(assets, directory.path())?;
        plan.write_files()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let url = format!("https://127.0.0.1:{}", plan.api_server)
            .parse()
            .map_err(io::Error::other)?;
        let mut config = Config::new(url);
        // It makes a certificate of its own at each start.
        config.accept_invalid_certs = true;
        config.default_retry = false;
        config.auth_info.token = Some(plan.token.clone().into());
        let client = runtime
            .block_on(async { Client::try_from(config) })
            .map_err(io::Error::other)?;
        let real = Self {
            plan,
            processes: Mutex::new(None),
            client,
            runtime,
            saved: Mutex::default(),
            _directory: directory,
        };
        real.start_processes()?;
        real.hide_itself()?;
        Ok(real)
    }

    fn start_processes(&self) -> io::Result<()> {
        let is_ready = || {
            self.ask(&Method::GET, "/readyz", None)
                .is_ok_and(|(status, _)| status == 200)
        };
        *lock(&self.processes) = Some(Processes::start(&self.plan, is_ready)?);
        Ok(())
    }

    /// Gives the Service of the API server itself, which it makes some time after its start, to another proxy: no test
    /// expects it.
    fn hide_itself(&self) -> io::Result<()> {
        const PATH: &str = "/api/v1/namespaces/default/services/kubernetes";
        let deadline = Instant::now() + PATIENCE;
        let patch = json!({"metadata": {"labels": {"service.kubernetes.io/service-proxy-name": "none"}}});
        loop {
            let (status, answer) = self.ask(&Method::PATCH, PATH, Some(("application/merge-patch+json", &patch)))?;
            match status {
                200 => return Ok(()),
                404 if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(50)),
                _ => return Err(io::Error::other(format!("{PATH}: {status} {answer}"))),
            }
        }
    }

    /// Passes a request on; for the front, on whatever runtime.
    pub(super) async fn forward(&self, method: Method, uri: &str, body: Vec<u8>) -> Result<Response<Body>, String> {
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header(CONTENT_TYPE, "application/json");
        let request = request.body(Body::from(body)).map_err(|error| error.to_string())?;
        self.client.send(request).await.map_err(|error| error.to_string())
    }

    /// Creates or changes an object.
    ///
    /// # Panics
    /// When the API server refuses it.
    pub(super) fn apply(&self, key: &Key, mut object: Value) {
        // Whose fields these are is said with the request.
        object["apiVersion"] = key.resource.api_version().into();
        for field in ["managedFields", "resourceVersion"] {
            object["metadata"]
                .as_object_mut()
                .map(|metadata| metadata.remove(field));
        }
        let status = object.as_object_mut().and_then(|object| object.remove("status"));
        let path = key.path();
        self.patch(&path, &object);
        if key.resource.has_status() {
            let mut with_status = object;
            for field in ["spec", "endpoints"] {
                with_status.as_object_mut().map(|object| object.remove(field));
            }
            with_status["status"] = status.unwrap_or_else(|| json!({}));
            self.patch(&format!("{path}/status"), &with_status);
        }
    }

    fn patch(&self, path: &str, object: &Value) {
        let path = format!("{path}?fieldManager={FIELD_MANAGER}&force=true");
        let answer = self.ask(&Method::PATCH, &path, Some(("application/apply-patch+yaml", object)));
        let (status, text) = answer.unwrap_or_else(|error| panic!("{path}: {error}"));
        assert!(matches!(status, 200 | 201), "{path}: {status} {text}\n{object}");
    }

    /// Deletes an object; false when there is none.
    pub(super) fn delete(&self, key: &Key) -> bool {
        let path = key.path();
        let free = json!({"metadata": {"finalizers": null}});
        let freed = self.ask(&Method::PATCH, &path, Some(("application/merge-patch+json", &free)));
        let (status, text) = freed.unwrap_or_else(|error| panic!("{path}: {error}"));
        if status == 404 {
            return false;
        }
        assert_eq!(status, 200, "{path}: {text}");
        let now = json!({"gracePeriodSeconds": 0});
        let deleted = self.ask(&Method::DELETE, &path, Some(("application/json", &now)));
        let (status, text) = deleted.unwrap_or_else(|error| panic!("{path}: {error}"));
        // One that was being deleted already goes with its finalizer.
        assert!(matches!(status, 200 | 404), "{path}: {status} {text}");
        true
    }

    /// Begins to delete an object, which stays for now.
    pub(super) fn begin_deletion(&self, key: &Key) {
        let path = key.path();
        let hold = json!({"metadata": {"finalizers": [FINALIZER]}});
        for (method, body, kind) in [
            (Method::PATCH, hold, "application/merge-patch+json"),
            (Method::DELETE, json!({}), "application/json"),
        ] {
            let answer = self.ask(&method, &path, Some((kind, &body)));
            let (status, text) = answer.unwrap_or_else(|error| panic!("{path}: {error}"));
            assert_eq!(status, 200, "{method} {path}: {text}");
        }
    }

    /// The version of the last change.
    pub(super) fn version(&self) -> u64 {
        let path = format!("{}?limit=1", Resource::Nodes.path());
        let answer = self.ask(&Method::GET, &path, None);
        let (status, text) = answer.unwrap_or_else(|error| panic!("{path}: {error}"));
        let version = serde_json::from_str::<Value>(&text)
            .ok()
            .and_then(|list| list["metadata"]["resourceVersion"].as_str()?.parse().ok());
        version.unwrap_or_else(|| panic!("{path}: {status} {text}"))
    }

    /// Notes how all is now; returns the number of the note.
    pub(super) fn save(&self) -> io::Result<usize> {
        let mut saved = lock(&self.saved);
        let copy = self.plan.directory.join(format!("saved-{}", saved.len()));
        let processes = lock(&self.processes);
        let processes = processes.as_ref().ok_or_else(|| io::Error::other("nothing runs"))?;
        processes.pause(|| copy_directory(&self.plan.data(), &copy))?;
        saved.push(copy);
        Ok(saved.len() - 1)
    }

    /// Goes back to how all was, as when etcd is restored from a snapshot: both programs are started anew.
    pub(super) fn restore(&self, note: usize) -> io::Result<()> {
        let saved = lock(&self.saved);
        let copy = saved
            .get(note)
            .ok_or_else(|| io::Error::other("nothing like that was saved"))?;
        *lock(&self.processes) = None;
        fs::remove_dir_all(self.plan.data())?;
        copy_directory(copy, &self.plan.data())?;
        self.start_processes()
    }

    /// Asks, and waits for the whole answer.
    fn ask(&self, method: &Method, path: &str, body: Option<(&str, &Value)>) -> io::Result<(u16, String)> {
        let mut request = Request::builder().method(method).uri(path);
        if let Some((kind, _)) = body {
            request = request.header(CONTENT_TYPE, kind);
        }
        let body = body.map_or_else(Vec::new, |(_, body)| body.to_string().into());
        let request = request.body(Body::from(body)).map_err(io::Error::other)?;
        let asked = async {
            let answer = self.client.send(request).await.map_err(io::Error::other)?;
            let status = answer.status().as_u16();
            let body = answer.into_body().collect().await.map_err(io::Error::other)?;
            Ok((status, String::from_utf8_lossy(&body.to_bytes()).into_owned()))
        };
        self.runtime.block_on(async {
            tokio::time::timeout(PATIENCE, asked)
                .await
                .map_err(|_| io::Error::other("no answer"))?
        })
    }
}

/// A test that panicked elsewhere must not hide behind a poisoned lock.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn copy_directory(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let copy = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_directory(&entry.path(), &copy)?;
        } else {
            fs::copy(entry.path(), &copy)?;
        }
    }
    Ok(())
}
