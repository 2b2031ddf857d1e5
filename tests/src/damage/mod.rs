//! Damage to a guest's memory, done to a copy: what the tests of the check and of everything that
//! looks share.
//!
//! A guest is launched once, given something of everything to do, and its memory saved
//! ([`specimen`]). From then on there is no guest: damage is a change of a few words that lie over
//! the image ([`Overlay`]), so that a case costs a look and nothing else. [`anatomy`] says where
//! structures lie, field by field, and [`meaning`] what of them means anything.

pub mod anatomy;
pub mod meaning;
mod overlay;
mod specimen;

pub use self::overlay::Overlay;
pub use self::specimen::{State, specimen, specimen_file};
