//! The language, tried on a target without a guest.

mod fake;
mod parsing;
mod running;
mod threads;
