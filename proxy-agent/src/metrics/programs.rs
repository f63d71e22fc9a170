//! How long the programs run.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter},
};

use super::encode::counters;
use crate::dataplane::{
    inspect::{self, ProgramRuns},
    pin::PinDirectory,
};

/// Asks the kernel at each scrape.
#[derive(Debug)]
pub(super) struct ProgramsCollector {
    pub(super) pin: PinDirectory,
}

impl Collector for ProgramsCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        match inspect::program_runs(&self.pin) {
            Ok(runs) => encode(encoder, &runs),
            Err(error) => {
                tracing::debug!("metrics without the programs: {error:#}");
                Ok(())
            }
        }
    }
}

fn encode(mut encoder: DescriptorEncoder<'_>, runs: &[ProgramRuns]) -> fmt::Result {
    let labels = |program: &ProgramRuns| [("program", program.name.clone())];
    let help = "How often a program ran while kernel.bpf_stats_enabled was 1";
    let rows = runs.iter().map(|program| (labels(program), program.count));
    counters(&mut encoder, ("proxy_agent_program_runs", help), rows)?;
    let help = "How long a program ran while kernel.bpf_stats_enabled was 1";
    let mut family = encoder.encode_descriptor("proxy_agent_program_run_seconds", help, None, MetricType::Counter)?;
    for program in runs {
        ConstCounter::new(program.time.as_secs_f64()).encode(family.encode_family(&labels(program))?)?;
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use prometheus_client::registry::Registry;

    use super::*;
    use crate::metrics::text;

    #[derive(Debug)]
    struct Known(Vec<ProgramRuns>);

    impl Collector for Known {
        fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
            encode(encoder, &self.0)
        }
    }

    /// A scrape that tells of everything.
    pub(in crate::metrics) fn sample() -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Known(vec![ProgramRuns {
            name: "ingress".to_owned(),
            count: 12,
            time: Duration::from_millis(1500),
        }])));
        text::encode(&registry).expect("a string takes everything")
    }

    #[test]
    fn run_time_is_told_by_program() {
        let text = sample();
        for line in [
            r#"proxy_agent_program_runs_total{program="ingress"} 12"#,
            r#"proxy_agent_program_run_seconds_total{program="ingress"} 1.5"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
