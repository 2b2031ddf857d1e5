//! Damage to a copy of a guest's memory, shared by the tests of the check and of inspection.
//!
//! A guest is launched once, performs a bit of everything, and its memory is saved ([`specimen`]).
//! After that no guest is needed: damage is a change of a few words on top of the dump
//! ([`Overlay`]), so a case costs only one look. [`anatomy`] says where structures lie, field by
//! field, and [`meaning`] how much of them the check covers.

pub mod anatomy;
pub mod meaning;
mod overlay;
mod specimen;

pub use self::overlay::Overlay;
pub use self::specimen::{State, specimen, specimen_file};
