//! What every process tells of itself, under the names of Prometheus' own clients (behaviour.md 8.8: `process_*`).

use std::fmt;

use procfs::{
    ProcResult, WithCurrentSystemInfo as _,
    process::{LimitValue, Process},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter},
};

use super::encode::gauge;

/// Reads /proc/self at each scrape.
#[derive(Debug)]
pub(super) struct ProcessCollector;

/// What is told.
struct Usage {
    cpu_seconds: f64,
    start_seconds: f64,
    resident_bytes: u64,
    virtual_bytes: u64,
    open_files: u64,
    max_files: Option<u64>,
}

impl Usage {
    fn read() -> ProcResult<Self> {
        let process = Process::myself()?;
        let stat = process.stat()?;
        let ticks_per_second = procfs::ticks_per_second();
        let seconds = |ticks: u64| to_float(ticks) / to_float(ticks_per_second);
        Ok(Self {
            cpu_seconds: seconds(stat.utime + stat.stime),
            start_seconds: to_float(procfs::boot_time_secs()?) + seconds(stat.starttime),
            resident_bytes: stat.rss_bytes().get(),
            virtual_bytes: stat.vsize,
            open_files: process.fd_count()? as u64,
            max_files: match process.limits()?.max_open_files.soft_limit {
                LimitValue::Value(limit) => Some(limit),
                LimitValue::Unlimited => None,
            },
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "seconds and ticks since boot stay below 2^52")]
const fn to_float(number: u64) -> f64 {
    number as f64
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Ok(usage) = Usage::read() else {
            // A container without /proc: nobody waits for these.
            return Ok(());
        };
        let cpu = ("process_cpu_seconds", "User and system CPU time");
        let metric = encoder.encode_descriptor(cpu.0, cpu.1, None, MetricType::Counter)?;
        ConstCounter::new(usage.cpu_seconds).encode(metric)?;
        let start = ("process_start_time_seconds", "Start of the process since the epoch");
        gauge(&mut encoder, start, usage.start_seconds)?;
        let sizes = [
            (
                ("process_resident_memory_bytes", "Resident memory"),
                Some(usage.resident_bytes),
            ),
            (
                ("process_virtual_memory_bytes", "Virtual memory"),
                Some(usage.virtual_bytes),
            ),
            (("process_open_fds", "Open file descriptors"), Some(usage.open_files)),
            (("process_max_fds", "Limit of open file descriptors"), usage.max_files),
        ];
        sizes
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .try_for_each(|(name, value)| gauge(&mut encoder, name, value))
    }
}
