//! The lab and what tests share.
