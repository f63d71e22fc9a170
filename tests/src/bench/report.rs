//! What was measured, as a table for people and JSON for programs.

use std::{
    fs,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use serde::Serialize;

/// What the measurements were taken on.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Machine {
    processor: String,
    cores: usize,
    kernel: String,
    /// Seconds since 1970
    time: u64,
}

impl Machine {
    /// This machine, now.
    ///
    /// # Errors
    /// /proc can't be read.
    pub(super) fn this() -> Result<Self> {
        let processors = fs::read_to_string("/proc/cpuinfo").context("/proc/cpuinfo")?;
        let model = processors
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Ok(Self {
            processor: model.map_or("unknown", |(_, model)| model).to_owned(),
            cores: std::thread::available_parallelism()?.get(),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .context("/proc/sys/kernel/osrelease")?
                .trim()
                .to_owned(),
            time: SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
        })
    }

    /// One line.
    pub(super) fn describe(&self) -> String {
        format!("{} ({} cores), Linux {}", self.processor, self.cores, self.kernel)
    }
}

/// Writes a file of JSON, pretty, whole or not at all.
///
/// # Errors
/// The directory or the file can't be written.
pub(super) fn write_json(directory: &Path, name: &str, value: &impl Serialize) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    let path = directory.join(name);
    let partial = path.with_extension("partial");
    let text = serde_json::to_string_pretty(value)?;
    fs::write(&partial, text + "\n").with_context(|| partial.display().to_string())?;
    fs::rename(&partial, &path).with_context(|| path.display().to_string())?;
    println!("{}", path.display());
    Ok(())
}

/// The middle of some values; not a number if there are none.
pub(super) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_counts() {
        assert!((median([3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median([4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!(median([]).is_nan());
    }

    #[test]
    fn json_is_written_whole() -> Result<()> {
        let directory = tempfile::tempdir()?;
        write_json(directory.path(), "a.json", &["b"])?;
        assert_eq!(fs::read_to_string(directory.path().join("a.json"))?, "[\n  \"b\"\n]\n");
        assert_eq!(fs::read_dir(directory.path())?.count(), 1);
        Ok(())
    }
}
