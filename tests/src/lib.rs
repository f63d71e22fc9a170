//! The lab and what tests share.

pub mod api_server;
pub mod lab;
pub mod skip;
pub mod test_run;
