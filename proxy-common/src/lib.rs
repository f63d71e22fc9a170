//! The service proxy's datapath as an ordinary library.
//!
//! `no_std` and free of BPF: `proxy-ebpf` instantiates it with an skb and BPF maps, the agent's `trace` and the tests
//! with byte buffers and in-memory tables. See ARCHITECTURE.md.
#![cfg_attr(not(test), no_std)]

pub mod datapath;
pub mod layout;
pub mod packet;
