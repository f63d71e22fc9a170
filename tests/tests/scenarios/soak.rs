//! Everything at once, for a while: see [`proxy_tests::soak`]. `cargo xtask soak` does the same for an hour.

use anyhow::Result;
use proxy_tests::{require_root, soak};

/// Requests that may be lost where a machine is busy otherwise (docs/reliability.md, "Not promised"); the long run allows none.
const MAY_BE_LOST: usize = 10;

/// Changes, restarts, kills, floods and tables of other sizes under load: no long connection breaks, next to no request is lost,
/// and in the end the tables equal the plan.
#[test]
fn five_minutes_break_no_connection() -> Result<()> {
    require_root!();
    soak::run(&soak::Options::lasting(5).allowing(MAY_BE_LOST))
}
