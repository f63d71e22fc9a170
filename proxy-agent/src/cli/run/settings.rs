//! What kube-proxy's configuration has no word for: the same settings by flag, and by a file of their own.
//!
//! A file of their own, so that kube-proxy's stays one that kube-proxy takes, too.

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use clap::{Args, ValueEnum};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, Unexpected},
};
use serde_json::Value;

use crate::{
    config::timeouts::FlowTimeout,
    dataplane::{LogLevel, Method, cgroup, sizes::TableSize, xdp},
    metrics::{Detail, Told},
};

const VERSION: &str = "proxyagent.config/v1alpha1";
const KIND: &str = "ProxyAgentConfiguration";

/// What kube-proxy's configuration has no word for.
#[derive(Clone, Debug, Default, PartialEq, Args, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Settings {
    #[clap(skip)]
    api_version: Option<String>,
    #[clap(skip)]
    kind: Option<String>,

    /// Name pattern of devices that lead to pods, whatever they look like; may be repeated
    #[arg(long = "pod-devices", value_name = "PATTERN")]
    #[serde(deserialize_with = "texts")]
    pub(super) pod_devices: Vec<glob::Pattern>,

    /// Name pattern of devices that lead to other nodes and clients, whatever they look like; may be repeated
    #[arg(long = "uplink-devices", value_name = "PATTERN")]
    #[serde(deserialize_with = "texts")]
    pub(super) uplink_devices: Vec<glob::Pattern>,

    /// Name pattern of devices that lead to other nodes through a tunnel, whatever they look like; may be repeated
    #[arg(long = "overlay-devices", value_name = "PATTERN")]
    #[serde(deserialize_with = "texts")]
    pub(super) overlay_devices: Vec<glob::Pattern>,

    /// Name pattern of devices to leave alone, whatever they look like and other patterns say; may be repeated
    #[arg(long = "ignore-devices", value_name = "PATTERN")]
    #[serde(deserialize_with = "texts")]
    pub(super) ignore_devices: Vec<glob::Pattern>,

    /// How programs are attached [default: auto]
    #[arg(long, value_enum)]
    #[serde(deserialize_with = "choice")]
    pub(super) attach: Option<Method>,

    /// Forward traffic from outside to backends on other nodes by XDP at uplinks: off, auto (in drivers that can do it), native
    /// or generic, for all devices or by name pattern; may be repeated. Such packets bypass netfilter [default: off]
    #[arg(long, value_name = "[PATTERN=]MODE")]
    #[serde(deserialize_with = "texts")]
    pub(super) xdp: Vec<xdp::Rule>,

    /// Whose connections and datagrams to Services are translated before there is a packet: those of the host's processes, of
    /// all, or nobody's [default: host]
    #[arg(long, value_enum)]
    #[serde(deserialize_with = "choice")]
    pub(super) socket_lb: Option<cgroup::Mode>,

    /// Directory of the cgroup (version 2) whose processes --socket-lb is about [default: the root, wherever it is mounted]
    #[arg(long, value_name = "DIR")]
    pub(super) cgroup: Option<PathBuf>,

    /// What the programs in the kernel log: every packet they refuse, or nothing [default: off]
    #[arg(long, value_enum)]
    #[serde(deserialize_with = "choice")]
    pub(super) program_log: Option<LogLevel>,

    /// Entries in each family's new flow table; a connection takes two [default: by the machine's memory]
    #[arg(long, value_name = "ENTRIES", value_parser = clap::value_parser!(u32).range(i64::from(LEAST_FLOWS)..))]
    #[serde(deserialize_with = "flow_table_size")]
    pub(super) flow_table_size: Option<u32>,

    /// Entries in a new table, by its name in `status`, with or without its family; may be repeated
    #[arg(long = "table-size", value_name = "NAME=ENTRIES")]
    #[serde(deserialize_with = "entries")]
    pub(super) table_sizes: Vec<TableSize>,

    /// Whether metrics tell of each service port: four time series, and one for each reason to refuse its packets [default: on]
    #[arg(long, value_enum)]
    #[serde(deserialize_with = "choice")]
    metrics_services: Option<Told>,

    /// Whether metrics tell of each endpoint of the service ports that they tell of: four time series. The programs then count
    /// by endpoint, too, which costs each packet some look-ups [default: off]
    #[arg(long, value_enum)]
    #[serde(deserialize_with = "choice")]
    metrics_endpoints: Option<Told>,

    /// How many service ports, and how many endpoints, metrics tell of; how many are left out is a metric, too [default: 1000]
    #[arg(long, value_name = "NUMBER")]
    metrics_limit: Option<usize>,

    /// How long flows of a state are kept without packets, instead of what the configuration or the kernel's conntrack says; may
    /// be repeated
    #[arg(long = "flow-timeout", value_name = "STATE=DURATION")]
    #[serde(deserialize_with = "entries")]
    pub(super) flow_timeouts: Vec<FlowTimeout>,
}

/// A smaller table of flows is no use to anybody.
const LEAST_FLOWS: u32 = 1024;

impl Settings {
    /// Reads a ProxyAgentConfiguration file, YAML or JSON.
    ///
    /// # Errors
    /// The file can't be read, isn't of this type, has an unknown field, or a field has an unusable value; the error
    /// names the file and the field.
    pub(super) fn read(file: &Path) -> Result<Self> {
        let parse = || Self::parse(&fs::read_to_string(file)?);
        parse().with_context(|| format!("configuration {}", file.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let value: Value = serde_yaml_ng::from_str(text)?;
        let text_of = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or("(nothing)");
        let (version, kind) = (text_of("apiVersion"), text_of("kind"));
        ensure!(
            (version, kind) == (VERSION, KIND),
            "this is {version} {kind}, not {VERSION} {KIND}"
        );
        serde_path_to_error::deserialize(&value).map_err(|error| anyhow!("{}: {}", error.path(), error.inner()))
    }

    /// These, and where they say nothing, the others. What is a list of rules or devices counts as a whole; a table or a state
    /// has the size or the time that these say, and if they don't, that of the others.
    pub(super) fn or(self, others: Self) -> Self {
        Self {
            api_version: others.api_version,
            kind: others.kind,
            pod_devices: longer(self.pod_devices, others.pod_devices),
            uplink_devices: longer(self.uplink_devices, others.uplink_devices),
            overlay_devices: longer(self.overlay_devices, others.overlay_devices),
            ignore_devices: longer(self.ignore_devices, others.ignore_devices),
            attach: self.attach.or(others.attach),
            xdp: longer(self.xdp, others.xdp),
            socket_lb: self.socket_lb.or(others.socket_lb),
            cgroup: self.cgroup.or(others.cgroup),
            program_log: self.program_log.or(others.program_log),
            flow_table_size: self.flow_table_size.or(others.flow_table_size),
            // Of two the later counts.
            table_sizes: [others.table_sizes, self.table_sizes].concat(),
            metrics_services: self.metrics_services.or(others.metrics_services),
            metrics_endpoints: self.metrics_endpoints.or(others.metrics_endpoints),
            metrics_limit: self.metrics_limit.or(others.metrics_limit),
            flow_timeouts: [others.flow_timeouts, self.flow_timeouts].concat(),
        }
    }

    /// How much metrics tell by Service and endpoint.
    pub(super) fn metrics(&self) -> Detail {
        let usual = Detail::default();
        Detail {
            services: self.metrics_services.unwrap_or(usual.services),
            endpoints: self.metrics_endpoints.unwrap_or(usual.endpoints),
            limit: self.metrics_limit.unwrap_or(usual.limit),
        }
    }
}

/// The first list if there is anything in it.
fn longer<T>(these: Vec<T>, others: Vec<T>) -> Vec<T> {
    if these.is_empty() { others } else { these }
}

/// A list of what is written as text.
fn texts<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display>>(source: D) -> Result<Vec<T>, D::Error> {
    let texts = Vec::<String>::deserialize(source)?;
    texts
        .iter()
        .map(|text| text.parse().map_err(D::Error::custom))
        .collect()
}

/// A map of what flags write as `NAME=VALUE`.
fn entries<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display>>(source: D) -> Result<Vec<T>, D::Error> {
    let entries = BTreeMap::<String, Value>::deserialize(source)?;
    let parse = |(name, value): (String, Value)| {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        format!("{name}={value}").parse().map_err(D::Error::custom)
    };
    entries.into_iter().map(parse).collect()
}

/// One of the words that the flag takes. YAML has `on` and `off` as words, but its older version as truth values.
fn choice<'de, D: Deserializer<'de>, T: ValueEnum>(source: D) -> Result<Option<T>, D::Error> {
    let text = match Value::deserialize(source)? {
        Value::Null => return Ok(None),
        Value::Bool(true) => "on".to_owned(),
        Value::Bool(false) => "off".to_owned(),
        Value::String(text) => text,
        other => return Err(D::Error::invalid_type(Unexpected::Other(&other.to_string()), &"a word")),
    };
    let value = T::from_str(&text, false).map_err(|_| {
        let words = T::value_variants().iter().filter_map(ValueEnum::to_possible_value);
        let words: Vec<String> = words.map(|word| word.get_name().to_owned()).collect();
        D::Error::custom(format!("{text} is none of {}", words.join(", ")))
    })?;
    Ok(Some(value))
}

fn flow_table_size<'de, D: Deserializer<'de>>(source: D) -> Result<Option<u32>, D::Error> {
    let entries = Option::<u32>::deserialize(source)?;
    match entries {
        Some(entries) if entries < LEAST_FLOWS => {
            Err(D::Error::custom(format!("{entries} is less than {LEAST_FLOWS}")))
        }
        entries => Ok(entries),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        settings: Settings,
    }

    fn flags(words: &[&str]) -> Settings {
        Command::try_parse_from([&["run"], words].concat()).unwrap().settings
    }

    fn with(lines: &str) -> Result<Settings> {
        Settings::parse(&format!("apiVersion: {VERSION}\nkind: {KIND}\n{lines}"))
    }

    /// With every field: what docs/configuration.md shows.
    fn documented() -> Settings {
        let document = include_str!("../../../../docs/configuration.md");
        let (_, example) = document.split_once("```yaml\napiVersion: proxyagent").unwrap();
        let (example, _) = example.split_once("```").unwrap();
        Settings::parse(&format!("apiVersion: proxyagent{example}")).unwrap()
    }

    #[test]
    fn the_file_says_what_flags_say() {
        let file = documented();
        let same = flags(
            &[
                "--pod-devices=veth*",
                "--pod-devices=cali*",
                "--uplink-devices=eth0",
                "--overlay-devices=vxlan.calico",
                "--ignore-devices=docker0",
                "--attach=tcx",
                "--xdp=auto",
                "--xdp=eth1=off",
                "--socket-lb=all",
                "--cgroup=/host/sys/fs/cgroup",
                "--program-log=debug",
                "--flow-table-size=1048576",
                "--table-size=affinity=131072",
                "--table-size=slots=65536",
                "--metrics-services=off",
                "--metrics-endpoints=on",
                "--metrics-limit=5000",
                "--flow-timeout=tcp-established=2h",
            ][..],
        );
        let said = Settings {
            api_version: file.api_version.clone(),
            kind: file.kind.clone(),
            ..same
        };
        assert_eq!(file, said);
    }

    #[test]
    fn flags_override_the_file() {
        let or = |words: &[&str]| flags(words).or(documented());
        assert_eq!(or(&[]), documented());
        assert_eq!(or(&["--socket-lb=off"]).socket_lb, Some(cgroup::Mode::Off));
        assert_eq!(or(&["--xdp=generic"]).xdp, flags(&["--xdp=generic"]).xdp);
        assert_eq!(or(&["--pod-devices=tap*"]).pod_devices.len(), 1);
        let sizes = or(&["--table-size=slots=7"]).table_sizes;
        assert_eq!(sizes.last().unwrap().entries, 7);
        assert_eq!(sizes.len(), documented().table_sizes.len() + 1);
    }

    #[test]
    fn errors_name_the_field() {
        let error = |lines: &str| format!("{:#}", with(lines).unwrap_err());
        assert!(error("socketLB: all").starts_with("socketLB: unknown field"));
        assert_eq!(error("socketLb: some"), "socketLb: some is none of host, all, off");
        assert!(error("tableSizes: {nowhere: 5}").starts_with("tableSizes: no table is called nowhere"));
        assert!(error("flowTimeouts: {tcp-established: soon}").starts_with("flowTimeouts: \"soon\" is no duration"));
        assert!(error("xdp: [sometimes]").starts_with("xdp: sometimes is none of"));
        assert!(error("podDevices: ['[']").starts_with("podDevices: "));
        assert_eq!(error("flowTableSize: 1"), "flowTableSize: 1 is less than 1024");
        let other = format!("{:#}", Settings::parse("kind: Service\napiVersion: v1").unwrap_err());
        assert_eq!(other, format!("this is v1 Service, not {VERSION} {KIND}"));
    }

    /// YAML 1.1 reads `off` as false, and so does kubectl.
    #[test]
    fn on_and_off_are_words() {
        for off in ["off", "\"off\"", "false"] {
            assert_eq!(
                with(&format!("socketLb: {off}")).unwrap().socket_lb,
                Some(cgroup::Mode::Off)
            );
        }
    }
}
