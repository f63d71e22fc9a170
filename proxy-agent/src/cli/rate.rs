//! From two looks at a counter to a rate.

/// What was counted in a second. A counter that went back has begun anew, and is not known to have counted anything; no more is
/// one that was looked at twice at the same time.
pub(super) fn per_second(before: u64, after: u64, seconds: f64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "nobody reads 16 digits")]
    let counted = after.saturating_sub(before) as f64;
    if seconds > 0.0 { counted / seconds } else { 0.0 }
}
