//! The lab, the benchmarks and what tests share.

pub mod api_server;
pub mod bench;
pub mod fixtures;
pub mod lab;
pub mod skip;
pub mod soak;
pub mod test_run;
