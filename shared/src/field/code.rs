//! A word that holds a value of an enum.

use core::fmt;

use super::{Field, Word};
use crate::codes::Coded;
use crate::describe::{Kind, KindName};

/// An enum's number in a word. Any bits are valid for this type, even when no value of the enum has
/// them; the check reports those.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Code<E: Coded>(E::Bits);

impl<E: Coded> Code<E> {
    /// The word `bits`, whether or not a value has it.
    #[must_use]
    #[inline]
    pub const fn from_raw(bits: E::Bits) -> Self {
        Self(bits)
    }

    /// The bits of the word.
    #[must_use]
    #[inline]
    pub const fn raw(self) -> E::Bits {
        self.0
    }

    /// The value, or `None` when no value has that number.
    #[must_use]
    #[inline]
    pub fn known(self) -> Option<E> {
        E::from_code(self.0)
    }

    /// Whether the value is `value`.
    #[must_use]
    #[inline]
    pub fn is(self, value: E) -> bool {
        self.0 == value.code()
    }
}

impl<E: Coded> From<E> for Code<E> {
    #[inline]
    fn from(value: E) -> Self {
        Self(value.code())
    }
}

impl<E: Coded> Word for Code<E> {
    type Atomic = <E::Bits as Word>::Atomic;

    #[inline]
    fn load(cell: &Self::Atomic) -> Self {
        Self(E::Bits::load(cell))
    }

    #[inline]
    fn store(cell: &Self::Atomic, value: Self) {
        E::Bits::store(cell, value.0);
    }
}

impl<E: Coded<Bits: Kind>> Kind for Code<E> {
    const KIND: KindName = <E::Bits as Kind>::KIND;
}

/// The word as a number.
impl<E: Coded<Bits: fmt::Display>> fmt::Display for Code<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<E: Coded<Bits: fmt::Debug> + fmt::Debug> fmt::Debug for Code<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.known() {
            Some(value) => value.fmt(f),
            None => self.0.fmt(f),
        }
    }
}

impl<E: Coded> Field<Code<E>> {
    /// The value now, or `None` when no value has that number.
    #[must_use]
    #[inline]
    pub fn known(&self) -> Option<E> {
        self.get().known()
    }

    /// Whether the value now is `value`.
    #[must_use]
    #[inline]
    pub fn is(&self, value: E) -> bool {
        self.get().is(value)
    }

    /// Makes `value` the value.
    #[inline]
    pub fn put(&self, value: E) {
        self.set(value.into());
    }
}
