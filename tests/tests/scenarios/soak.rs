//! Everything at once, for a while: see [`proxy_tests::soak`]. `cargo xtask soak` does the same for an hour.

use anyhow::Result;
use proxy_tests::{require_root, soak};

/// Changes, restarts, kills, floods and tables of other sizes under load: no request is lost, no connection breaks, and in the
/// end the tables equal the plan.
#[test]
fn five_minutes_lose_nothing() -> Result<()> {
    require_root!();
    soak::run(&soak::Options::lasting(5))
}
