//! The objects of a kustomization, or of the chart.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{Container, PodSpec},
};
use serde::{Deserialize as _, de::DeserializeOwned};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// `manifests/` of the checkout.
pub(super) fn manifests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests")
}

/// The SHA-256 of bytes, in hexadecimal digits.
pub(super) fn sha256(bytes: impl AsRef<[u8]>) -> String {
    let digest = Sha256::digest(bytes);
    let digits = digest.iter().map(|byte| format!("{byte:02x}"));
    digits.collect::<Vec<_>>().concat()
}

/// The objects of a kustomization, or of the chart.
#[derive(Debug)]
pub(super) struct Rendered(pub(super) Vec<Value>);

impl Rendered {
    /// What `kubectl apply --kustomize` would apply; `None` without kubectl.
    pub(super) fn kustomization(directory: &Path) -> Result<Option<Self>> {
        let output = match Command::new("kubectl").arg("kustomize").arg(directory).output() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            output => output.context("kubectl")?,
        };
        ensure!(
            output.status.success(),
            "kubectl kustomize: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Self::parse(&String::from_utf8(output.stdout)?).map(Some)
    }

    /// The objects of a file.
    pub(super) fn file(path: &Path) -> Result<Self> {
        Self::parse(&fs::read_to_string(path).with_context(|| path.display().to_string())?)
    }

    /// The documents of a text, without empty ones.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let documents = serde_yaml_ng::Deserializer::from_str(text).map(Value::deserialize);
        let mut objects = documents.collect::<Result<Vec<_>, _>>().context("no YAML")?;
        objects.retain(|object| !object.is_null());
        Ok(Self(objects))
    }

    /// The objects of a kind.
    pub(super) fn all<T: DeserializeOwned>(&self, kind: &str) -> Result<Vec<T>> {
        let objects = self.0.iter().filter(|object| object["kind"] == kind).cloned();
        objects
            .map(|object| serde_json::from_value(object).with_context(|| kind.to_owned()))
            .collect()
    }

    /// The one object of a kind.
    pub(super) fn the<T: DeserializeOwned>(&self, kind: &str) -> Result<T> {
        let mut all = self.all(kind)?;
        ensure!(all.len() == 1, "{} of kind {kind}", all.len());
        all.pop().context("there is one")
    }

    /// The agent's pod.
    pub(super) fn pod(&self) -> Result<PodSpec> {
        let spec = self.the::<DaemonSet>("DaemonSet")?.spec.unwrap_or_default();
        spec.template.spec.context("no pod")
    }

    /// The agent's container.
    pub(super) fn agent(&self) -> Result<Container> {
        self.pod()?.containers.into_iter().next().context("no container")
    }
}
