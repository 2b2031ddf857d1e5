//! The language, tried on a target without a guest.

pub(super) mod fake;
mod guest_line;
mod interpreter;
mod parsing;
mod running;
mod started;
mod threads;
