//! The little statistics that tests and the demo need.

use std::time::Duration;

/// The value that a share of all values (0.5: the median) does not exceed; zero if there are none. Nearest rank.
pub fn percentile(values: &[Duration], share: f64) -> Duration {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a rank among values that fit in memory"
    )]
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// Pearson's chi-square of counts against an even distribution, with `counts.len() - 1` degrees of freedom.
pub fn chi_square(counts: &[u32]) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a handful of backends")]
    let expected = counts.iter().map(|&count| f64::from(count)).sum::<f64>() / counts.len() as f64;
    counts
        .iter()
        .map(|&count| (f64::from(count) - expected).powi(2) / expected)
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_rank() {
        let values: Vec<Duration> = (1..=100).rev().map(Duration::from_micros).collect();
        assert_eq!(percentile(&values, 0.5), Duration::from_micros(50));
        assert_eq!(percentile(&values, 0.99), Duration::from_micros(99));
        assert_eq!(percentile(&values[..1], 0.99), Duration::from_micros(100));
        assert_eq!(percentile(&[], 0.5), Duration::ZERO);
    }

    #[test]
    fn chi_square_of_even_and_uneven_counts() {
        assert!(chi_square(&[20, 20, 20]).abs() < 1e-9);
        assert!((chi_square(&[10, 30]) - 10.0).abs() < 1e-9);
    }
}
