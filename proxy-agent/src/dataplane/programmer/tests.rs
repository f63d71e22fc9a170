//! The programmer against the in-memory twin.
