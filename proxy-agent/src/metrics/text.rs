//! The format of a scrape: Prometheus' text format 0.0.4, which is what kube-proxy writes whatever it is asked for.
//!
//! The library writes OpenMetrics. That names a counter without its `_total` where it describes it, and writes the bound of a
//! bucket as `1.0` where kube-proxy's is `1`: a rule that asks for `le="1"` would find nothing.

use std::fmt::{self, Write as _};

use prometheus_client::{encoding::text, registry::Registry};

/// What the text is, as a header says it.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All that a registry holds, as it is now.
///
/// # Errors
/// If a metric can't be written, which a `String` never refuses.
pub(super) fn encode(registry: &Registry) -> Result<String, fmt::Error> {
    let mut open_metrics = String::new();
    text::encode_registry(&mut open_metrics, registry)?;
    let mut text = String::with_capacity(open_metrics.len());
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(found) = line.strip_prefix("# HELP ") {
            // Written below, when the type is known.
            help = found.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|line| line.split_once(' ')) {
            let suffix = if kind == "counter" { "_total" } else { "" };
            if let Some((name, help)) = help.take() {
                writeln!(text, "# HELP {name}{suffix} {help}")?;
            }
            writeln!(text, "# TYPE {name}{suffix} {kind}")?;
        } else {
            sample(&mut text, line)?;
        }
    }
    Ok(text)
}

/// Writes a line with a value.
fn sample(text: &mut String, line: &str) -> fmt::Result {
    const BOUND: &str = "_bucket{le=\"";
    if let Some((name, rest)) = line.split_once(BOUND)
        && let Some((bound, rest)) = rest.split_once('"')
    {
        let bound = bound.strip_suffix(".0").unwrap_or(bound);
        return writeln!(text, "{name}{BOUND}{bound}\"{rest}");
    }
    writeln!(text, "{line}")
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram};

    use super::*;

    /// behaviour.md 8.8: names, types and bounds as kube-proxy's scrape has them.
    #[test]
    fn rule_8_8_a_scrape_is_in_the_format_of_kube_proxy() {
        let mut registry = Registry::default();
        let family: Family<[(&str, &str); 1], Counter> = Family::default();
        family.get_or_create(&[("code", "# TYPE \"200\"")]).inc_by(3);
        registry.register("answers", "Answers", family);
        registry.register("queue_length", "Length", Gauge::<i64>::default());
        let seconds = Histogram::new([0.25, 1.0, 60.0]);
        seconds.observe(1.5);
        registry.register("wait_seconds", "Wait", seconds);
        let expected = "# HELP answers_total Answers.\n# TYPE answers_total counter\n\
            answers_total{code=\"# TYPE \\\"200\\\"\"} 3\n\
            # HELP queue_length Length.\n# TYPE queue_length gauge\nqueue_length 0\n\
            # HELP wait_seconds Wait.\n# TYPE wait_seconds histogram\nwait_seconds_sum 1.5\nwait_seconds_count 1\n\
            wait_seconds_bucket{le=\"0.25\"} 0\nwait_seconds_bucket{le=\"1\"} 0\nwait_seconds_bucket{le=\"60\"} 1\n\
            wait_seconds_bucket{le=\"+Inf\"} 1\n";
        assert_eq!(encode(&registry).unwrap(), expected);
    }
}
