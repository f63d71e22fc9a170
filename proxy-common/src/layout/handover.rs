//! Table `handover`: one word that says which generation of programs decides while a new one takes over from another.

/// There is no other generation
pub const ALONE: u32 = 0;
/// The previous generation decides on everything
pub const FOLLOWS: u32 = 1;
/// This generation decides; the previous one only goes on with its own flows
pub const LEADS: u32 = 2;
