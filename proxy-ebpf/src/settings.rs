//! Read-only settings, set by the loader before the programs are verified: the verifier treats them as constants.

use proxy_common::layout::{Settings, SocketSettings, Timeouts};

/// Overridden by the loader.
#[unsafe(no_mangle)]
static SETTINGS: Settings = Settings::DEFAULT;

/// Overridden by the loader.
#[unsafe(no_mangle)]
static SOCKET_SETTINGS: SocketSettings = SocketSettings::DEFAULT;

/// What the hooks of sockets are told.
#[inline(always)]
pub fn sockets() -> SocketSettings {
    // SAFETY: a read of a valid static; volatile because the loader changes what the compiler saw.
    unsafe { core::ptr::read_volatile(&raw const SOCKET_SETTINGS) }
}

/// Flow timeouts.
#[inline(always)]
pub fn timeouts() -> &'static Timeouts {
    // The loader changes what the compiler saw. A copy of all of them would be too large for the stack.
    &core::hint::black_box(&SETTINGS).timeouts
}

/// Finds the slot of an IPv4 opening by its number.
#[inline(always)]
pub fn openings_mask_v4() -> u32 {
    // SAFETY: a read of a valid static; volatile because the loader changes what the compiler saw.
    unsafe { core::ptr::read_volatile(&raw const SETTINGS.openings_mask_v4) }
}

/// [`openings_mask_v4`] for IPv6.
#[inline(always)]
pub fn openings_mask_v6() -> u32 {
    // SAFETY: as above.
    unsafe { core::ptr::read_volatile(&raw const SETTINGS.openings_mask_v6) }
}

/// Whether traffic is counted by endpoint, too.
#[inline(always)]
pub fn counts_endpoints() -> bool {
    // SAFETY: as above.
    unsafe { core::ptr::read_volatile(&raw const SETTINGS.count_endpoints) != 0 }
}

/// Whether there is a previous generation, whose flows are left to it.
#[inline(always)]
pub fn has_previous() -> bool {
    // SAFETY: as above.
    unsafe { core::ptr::read_volatile(&raw const SETTINGS.previous) != 0 }
}

/// `BPF_F_IPV6`, or 0 where the kernel doesn't know it.
#[inline(always)]
pub fn ipv6_checksum_flag() -> u32 {
    // SAFETY: as above.
    unsafe { core::ptr::read_volatile(&raw const SETTINGS.ipv6_checksum_flag) }
}
