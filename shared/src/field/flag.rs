//! A word that is a flag.

use core::fmt;

use super::{Field, Word};
use crate::describe::{Kind, KindName};

/// 1 when it is set, 0 when it is clear. Any other value counts as set; the check reports it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Flag<T = u32>(T);

impl<T: Word + From<bool> + PartialEq> Flag<T> {
    /// The word `bits`, even if it is not 0 or 1.
    #[must_use]
    #[inline]
    pub const fn from_raw(bits: T) -> Self {
        Self(bits)
    }

    /// The bits of the word.
    #[must_use]
    #[inline]
    pub const fn raw(self) -> T {
        self.0
    }

    /// Whether it says yes.
    #[must_use]
    #[inline]
    pub fn is_set(self) -> bool {
        self.0 != false.into()
    }

    /// Whether it is 0 or 1, as is every flag that was not damaged.
    #[must_use]
    #[inline]
    pub fn is_known(self) -> bool {
        !self.is_set() || self.0 == true.into()
    }
}

impl<T: From<bool>> From<bool> for Flag<T> {
    #[inline]
    fn from(value: bool) -> Self {
        Self(value.into())
    }
}

impl<T: Word> Word for Flag<T> {
    type Atomic = T::Atomic;

    #[inline]
    fn load(cell: &Self::Atomic) -> Self {
        Self(T::load(cell))
    }

    #[inline]
    fn store(cell: &Self::Atomic, value: Self) {
        T::store(cell, value.0);
    }
}

impl<T: Kind> Kind for Flag<T> {
    const KIND: KindName = T::KIND;
}

/// The word as a number.
impl<T: fmt::Display> fmt::Display for Flag<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<T: fmt::Debug> fmt::Debug for Flag<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<T: Word + From<bool> + PartialEq> Field<Flag<T>> {
    /// Whether it says yes.
    #[must_use]
    #[inline]
    pub fn is_set(&self) -> bool {
        self.get().is_set()
    }

    /// Sets the flag.
    #[inline]
    pub fn raise(&self) {
        self.set(true.into());
    }

    /// Clears the flag.
    #[inline]
    pub fn lower(&self) {
        self.set(false.into());
    }
}
