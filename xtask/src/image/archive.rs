//! The archive: an OCI image layout in a tar (<https://github.com/opencontainers/image-spec>, image-layout.md).

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{
    PROGRAM,
    architecture::Architecture,
    root::{self, Layer},
};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// What a digest starts with.
const ALGORITHM: &str = "sha256:";

/// The digest of a blob.
pub(super) fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    let digits = digest.iter().map(|byte| format!("{byte:02x}"));
    format!("{ALGORITHM}{}", digits.collect::<String>())
}

/// The image for one kind of machine.
pub(super) struct Image {
    /// Which
    pub(super) architecture: Architecture,
    /// Its files
    pub(super) layer: Layer,
}

/// The blobs, and what leads to them.
pub(super) struct Archive {
    blobs: Vec<Vec<u8>>,
    index: Value,
    digest: String,
}

impl Archive {
    /// An archive of these images under one name, which has a tag. All times are `time`, in seconds since 1970.
    pub(super) fn new(name: &str, images: &[Image], time: u64) -> Result<Self> {
        let mut archive = Self {
            blobs: Vec::new(),
            index: Value::Null,
            digest: String::new(),
        };
        let mut manifests = Vec::new();
        for image in images {
            manifests.push(archive.manifest(image, time)?);
        }
        let mut top = if let [manifest] = &manifests[..] {
            // As those expect who know no lists.
            manifest.clone()
        } else {
            let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
            archive.json(INDEX, &index)?
        };
        top["digest"]
            .as_str()
            .unwrap_or_default()
            .clone_into(&mut archive.digest);
        let (_, tag) = name
            .rsplit_once(':')
            .context("a name of an image has a tag: NAME:TAG")?;
        top["annotations"] = json!({
            "io.containerd.image.name": qualified(name),
            "org.opencontainers.image.ref.name": tag,
        });
        archive.index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [top]});
        Ok(archive)
    }

    /// What the image is known by.
    pub(super) fn digest(&self) -> &str {
        &self.digest
    }

    /// The archive's bytes.
    pub(super) fn to_tar(&self, time: u64) -> Result<Vec<u8>> {
        let mut files = vec![
            (
                "oci-layout".to_owned(),
                0o644,
                br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
            ),
            ("index.json".to_owned(), 0o644, serde_json::to_vec(&self.index)?),
        ];
        files.extend(self.blobs.iter().map(|blob| {
            let digest = sha256(blob);
            let path = digest.replacen(ALGORITHM, "blobs/sha256/", 1);
            (path, 0o644, blob.clone())
        }));
        root::tar(&mut files, time)
    }

    /// Adds the blobs of an image; returns the descriptor of its manifest.
    fn manifest(&mut self, image: &Image, time: u64) -> Result<Value> {
        let created = rfc3339(time)?;
        let platform = json!({"architecture": image.architecture.to_string(), "os": "linux"});
        let config = json!({
            "created": created,
            "architecture": platform["architecture"],
            "os": "linux",
            "config": {
                "Entrypoint": [format!("/{PROGRAM}")],
                "Env": ["PATH=/usr/local/bin"],
                "Labels": {
                    "org.opencontainers.image.title": "proxy-agent",
                    "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
                    "org.opencontainers.image.licenses": "Apache-2.0",
                },
            },
            "rootfs": {"type": "layers", "diff_ids": [image.layer.diff_id]},
            "history": [{"created": created, "created_by": "cargo xtask image"}],
        });
        let config = self.json(CONFIG, &config)?;
        let layer = self.blob(LAYER, image.layer.compressed.clone());
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]});
        let mut descriptor = self.json(MANIFEST, &manifest)?;
        descriptor["platform"] = platform;
        Ok(descriptor)
    }

    fn json(&mut self, kind: &str, value: &Value) -> Result<Value> {
        Ok(self.blob(kind, serde_json::to_vec(value)?))
    }

    /// Adds a blob, once; returns its descriptor.
    fn blob(&mut self, kind: &str, blob: Vec<u8>) -> Value {
        let descriptor = json!({"mediaType": kind, "digest": sha256(&blob), "size": blob.len()});
        if !self.blobs.contains(&blob) {
            self.blobs.push(blob);
        }
        descriptor
    }
}

/// The name as container runtimes store it: a name without a registry is Docker Hub's, and one without a path its library's.
fn qualified(name: &str) -> String {
    match name.split_once('/') {
        None => format!("docker.io/library/{name}"),
        Some((registry, _)) if registry.contains(['.', ':']) || registry == "localhost" => name.to_owned(),
        Some(_) => format!("docker.io/{name}"),
    }
}

/// A time as the configurations of images have it.
fn rfc3339(seconds: u64) -> Result<String> {
    let time = jiff::Timestamp::from_second(i64::try_from(seconds)?)?;
    Ok(time.to_string())
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, io::Read as _};

    use flate2::read::GzDecoder;

    use super::*;

    fn images(architectures: &[Architecture]) -> Vec<Image> {
        let image = |architecture: &Architecture| Image {
            architecture: *architecture,
            layer: root::layer(format!("a program for {architecture}").into_bytes(), 86_400).unwrap(),
        };
        architectures.iter().map(image).collect()
    }

    fn packed(architectures: &[Architecture]) -> Vec<u8> {
        let archive = Archive::new("proxy-agent:dev", &images(architectures), 86_400).unwrap();
        archive.to_tar(86_400).unwrap()
    }

    fn unpacked(tar: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(tar).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            files.insert(path, content);
        }
        files
    }

    /// The blob that a descriptor leads to, which must be as long and have the digest that it says.
    fn followed<'a>(files: &'a BTreeMap<String, Vec<u8>>, descriptor: &Value) -> &'a [u8] {
        let digest = descriptor["digest"].as_str().unwrap();
        let blob = &files[&digest.replace("sha256:", "blobs/sha256/")];
        assert_eq!(sha256(blob), digest);
        assert_eq!(descriptor["size"], blob.len());
        blob
    }

    fn json(bytes: &[u8]) -> Value {
        serde_json::from_slice(bytes).unwrap()
    }

    #[test]
    fn the_same_binary_makes_the_same_archive() {
        let both = [Architecture::Amd64, Architecture::Arm64];
        assert_eq!(packed(&both), packed(&both));
        assert_ne!(packed(&both), packed(&both[..1]));
    }

    #[test]
    fn an_archive_leads_to_all_of_its_parts() {
        let files = unpacked(&packed(&[Architecture::Amd64]));
        assert_eq!(json(&files["oci-layout"]), json!({"imageLayoutVersion": "1.0.0"}));
        let index = json(&files["index.json"]);
        let top = &index["manifests"][0];
        assert_eq!(
            top["annotations"]["io.containerd.image.name"],
            "docker.io/library/proxy-agent:dev"
        );
        assert_eq!(top["platform"], json!({"architecture": "amd64", "os": "linux"}));
        let manifest = json(followed(&files, top));
        let config = json(followed(&files, &manifest["config"]));
        assert_eq!(config["created"], "1970-01-02T00:00:00Z");
        assert_eq!(config["config"]["Entrypoint"], json!(["/usr/local/bin/proxy-agent"]));
        let mut layer = Vec::new();
        let compressed = followed(&files, &manifest["layers"][0]);
        GzDecoder::new(compressed).read_to_end(&mut layer).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"], json!([sha256(&layer)]));
        assert_eq!(unpacked(&layer)["usr/local/bin/proxy-agent"], b"a program for amd64");
        let blobs = files
            .keys()
            .filter(|path| path.starts_with("blobs/sha256/") && !path.ends_with('/'));
        assert_eq!(blobs.count(), 3, "nothing else");
    }

    #[test]
    fn two_architectures_are_behind_one_list() {
        let files = unpacked(&packed(&[Architecture::Amd64, Architecture::Arm64]));
        let index = json(&files["index.json"]);
        assert_eq!(index["manifests"].as_array().unwrap().len(), 1);
        let list = json(followed(&files, &index["manifests"][0]));
        let platforms = list["manifests"].as_array().unwrap().iter().map(|manifest| {
            let config = json(followed(&files, manifest));
            let config = json(followed(&files, &config["config"]));
            assert_eq!(config["architecture"], manifest["platform"]["architecture"]);
            config["architecture"].as_str().unwrap().to_owned()
        });
        assert_eq!(platforms.collect::<Vec<_>>(), ["amd64", "arm64"]);
    }

    #[test]
    fn names_are_stored_in_full() {
        assert_eq!(qualified("proxy-agent:dev"), "docker.io/library/proxy-agent:dev");
        assert_eq!(qualified("me/proxy-agent:dev"), "docker.io/me/proxy-agent:dev");
        assert_eq!(
            qualified("registry:5000/proxy-agent:dev"),
            "registry:5000/proxy-agent:dev"
        );
        assert_eq!(qualified("example.org/a/b:1"), "example.org/a/b:1");
        assert!(Archive::new("no-tag", &images(&[Architecture::Amd64]), 0).is_err());
    }
}
