//! The kernel's clock and chance, and the device of the hook.

use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns};
use proxy_common::{
    datapath::Environment,
    layout::{TICK_SHIFT, Timeouts},
};

use crate::settings;

/// The environment at a hook of the device with this interface index.
pub struct Kernel {
    /// Interface index
    pub device: u32,
}

impl Environment for Kernel {
    #[inline(always)]
    fn now(&self) -> u32 {
        // SAFETY: a helper without arguments. The coarse clock is cheap, and finer than a tick.
        (unsafe { bpf_ktime_get_coarse_ns() } >> TICK_SHIFT) as u32
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn device(&self) -> u32 {
        self.device
    }

    #[inline(always)]
    fn timeouts(&self) -> Timeouts {
        settings::timeouts()
    }
}
