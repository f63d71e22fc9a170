//! Functions that the verifier looks at once.
//!
//! A function with a name and simple arguments is global to the verifier: it goes through it once, whatever the arguments, and
//! not again with every state in which it is called; and what it returns could be anything, so that its callers go on in one
//! state instead of one for each way to the result. That makes the programs several times cheaper to load.
//!
//! Such a function takes the program's context, integers and pointers to memory (which the verifier takes for null until they
//! are compared with it), and returns an integer: this is what stands for the library's types in it.

use proxy_common::{
    datapath::{Claim, Reason},
    layout::AddressBytes,
    packet::{Family, V6},
};

/// Returned in place of a reason: there is nothing to say.
pub const NOTHING: u32 = u32::MAX;

/// The reason that a function has returned. From a table, so that the verifier doesn't go on with each of them.
#[inline(always)]
pub fn reason(number: u32) -> Option<Reason> {
    Reason::ALL.get(number as usize).copied()
}

/// What came of an attempt, as a function has returned it.
#[inline(always)]
pub fn claimed(number: u32) -> Claim {
    const OURS: u32 = Claim::Ours as u32;
    const TAKEN: u32 = Claim::Taken as u32;
    match number {
        OURS => Claim::Ours,
        TAKEN => Claim::Taken,
        _ => Claim::Full,
    }
}

/// Whether addresses are those of IPv6.
#[inline(always)]
pub const fn is_ipv6<A: AddressBytes>() -> bool {
    size_of::<A>() == size_of::<<V6 as Family>::Address>()
}
