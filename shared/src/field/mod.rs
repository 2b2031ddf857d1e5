//! Words of memory that several CPUs and the host may read at the same time.
//!
//! A [`Field`] is an atomic of the right width with a typed face. Reads and writes are relaxed,
//! which on x86_64 is a plain `mov`: the ordering between CPUs comes from the lock that guards the
//! structure, and the host reads while the CPUs are stopped. The benefit of the type is that
//! nothing needs `&mut`, and that no read is ever a data race.

mod code;
mod flag;

use core::fmt;

use zerocopy::{FromBytes, IntoBytes, KnownLayout};

pub use self::code::Code;
pub use self::flag::Flag;
use crate::addr::{GuestPhys, GuestVirt, KPtr};
use crate::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use crate::pte::{Pte, PteFlags};

/// A type that is made of atomic words and of nothing else: a reference to one stays valid while
/// another CPU, or the guest, writes to the memory behind it.
///
/// Only the types of this crate implement it, each by [`describe!`](crate::describe!), which names
/// all fields and compiles only if each of them implements it too. It cannot be implemented for a
/// type with a plain word in it.
pub trait Atomics: proof::Atomics {}

impl<T: proof::Atomics> Atomics for T {}

/// The seal of [`Atomics`]. It must not be named outside of this crate.
pub(crate) mod proof {
    use super::{Field, Word};

    #[expect(unnameable_types, reason = "no other crate may implement it")]
    pub trait Atomics {}

    impl<T: Word> Atomics for Field<T> {}
    impl<T: Atomics, const N: usize> Atomics for [T; N] {}

    macro_rules! atomics {
        ($($type:ty),*) => {$( impl Atomics for $type {} )*};
    }

    use crate::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64};

    atomics!(AtomicU8, AtomicU16, AtomicU32, AtomicU64);

    /// Compiles only for a reference to a type that is made of atomic words.
    pub(crate) const fn is_atomic<T: Atomics>(_: &T) {}
}

/// A value that fits one atomic word.
pub trait Word: Copy {
    /// The atomic that holds it.
    type Atomic: fmt::Debug + Default;
    /// Reads the word.
    fn load(cell: &Self::Atomic) -> Self;
    /// Writes the word.
    fn store(cell: &Self::Atomic, value: Self);
}

/// One word of a structure in shared memory.
#[derive(FromBytes, IntoBytes, KnownLayout)]
#[repr(transparent)]
pub struct Field<T: Word>(T::Atomic);

impl<T: Word> Field<T> {
    /// The value now.
    #[must_use]
    #[inline]
    pub fn get(&self) -> T {
        T::load(&self.0)
    }

    /// Makes `value` the value.
    #[inline]
    pub fn set(&self, value: T) {
        T::store(&self.0, value);
    }

    /// Replaces the value by the result of `f`. Not atomic as a whole: the caller holds the
    /// structure's lock, or nothing else writes the word.
    #[inline]
    pub fn update_locked(&self, f: impl FnOnce(T) -> T) {
        self.set(f(self.get()));
    }
}

impl Field<u64> {
    /// Adds `n`, atomically: for counters that no lock guards, or different locks at different
    /// places. Wraps. A CPU that takes some of it away by [`Field::take_above`] sees what this CPU
    /// did before.
    #[inline]
    pub fn fetch_add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Release);
    }

    /// Takes `n` away, atomically, as [`Field::fetch_add`] adds. Wraps.
    #[inline]
    pub fn fetch_sub(&self, n: u64) {
        self.0.fetch_add(n.wrapping_neg(), Ordering::Relaxed);
    }

    /// Sets `bits`, atomically.
    #[inline]
    pub fn set_bits(&self, bits: u64) {
        self.0.fetch_or(bits, Ordering::Release);
    }

    /// Clears `bits`, atomically.
    #[inline]
    pub fn clear_bits(&self, bits: u64) {
        self.0.fetch_and(!bits, Ordering::Release);
    }

    /// Makes `value` the value, by an exchange. It orders nothing else.
    #[inline]
    pub fn exchange(&self, value: u64) {
        self.0.swap(value, Ordering::Relaxed);
    }

    /// Takes 1 away if the value is above `floor`, atomically, and returns whether it did. However
    /// many CPUs try, `floor` is left.
    #[inline]
    #[must_use]
    pub fn take_above(&self, floor: u64) -> bool {
        self.take_within(floor, u64::MAX)
    }

    /// As [`Field::take_above`], if the value is not above `ceiling`.
    #[inline]
    #[must_use]
    pub fn take_within(&self, floor: u64, ceiling: u64) -> bool {
        let mut now = self.get();
        while now > floor && now <= ceiling {
            match self.0.compare_exchange(now, now - 1, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(other) => now = other,
            }
        }
        false
    }

    /// Takes `n` away, atomically, if at least `floor` is left. Returns whether it did.
    #[inline]
    #[must_use]
    pub fn take_leaving(&self, n: u64, floor: u64) -> bool {
        let mut now = self.get();
        while now.checked_sub(n).is_some_and(|left| left >= floor) {
            match self.0.compare_exchange(now, now - n, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(other) => now = other,
            }
        }
        false
    }
}

impl Field<u32> {
    /// Makes `new` the value if it is `current`; if several CPUs try, one succeeds. What the CPU
    /// does afterwards is ordered after what others did before [`Field::set_release`]. This
    /// acquires a lock.
    ///
    /// # Errors
    /// The value that is there instead.
    #[inline]
    pub fn acquire(&self, current: u32, new: u32) -> Result<u32, u32> {
        self.0.compare_exchange(current, new, Ordering::Acquire, Ordering::Relaxed)
    }

    /// The value now. What the CPU does afterwards is ordered after what others did before the
    /// [`Field::set_release`] of that value.
    #[must_use]
    #[inline]
    pub fn get_acquire(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }

    /// Makes `value` the value, ordered after everything that the CPU did before. This releases a
    /// lock.
    #[inline]
    pub fn set_release(&self, value: u32) {
        self.0.store(value, Ordering::Release);
    }
}

impl Field<Pte> {
    /// Clears `flags` by one instruction, and returns the entry as it was: a CPU may set A and M at
    /// any time in an entry that is valid.
    #[inline]
    pub fn fetch_clear(&self, flags: PteFlags) -> Pte {
        Pte::from_bits(self.0.fetch_and(!flags.bits(), Ordering::Relaxed))
    }
}

#[cfg(loom)]
impl Field<u8> {
    /// Has loom watch the word.
    pub fn watch(&self) -> crate::atomic::watched::Watched {
        self.0.watch()
    }
}

#[cfg(loom)]
impl Field<u64> {
    /// Has loom watch the word.
    pub fn watch(&self) -> crate::atomic::watched::Watched {
        self.0.watch()
    }
}

#[cfg(loom)]
impl<T: Word<Atomic = AtomicU32>> Field<T> {
    /// Has loom watch the word.
    pub fn watch(&self) -> crate::atomic::watched::Watched {
        self.0.watch()
    }
}

impl<T: Word> Default for Field<T> {
    fn default() -> Self {
        Self(T::Atomic::default())
    }
}

impl<T: Word + fmt::Debug> fmt::Debug for Field<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

macro_rules! word {
    ($($int:ty => $atomic:ty),*) => {$(
        impl Word for $int {
            type Atomic = $atomic;
            #[inline]
            fn load(cell: &$atomic) -> Self {
                cell.load(Ordering::Relaxed)
            }
            #[inline]
            fn store(cell: &$atomic, value: Self) {
                cell.store(value, Ordering::Relaxed);
            }
        }
    )*};
}

macro_rules! counter {
    ($($int:ty),*) => {$(
        impl Field<$int> {
            /// Adds 1. Not atomic as a whole: see [`Field::update_locked`].
            #[inline]
            pub fn inc(&self) {
                self.set(self.get() + 1);
            }

            /// Takes 1 away. Not atomic as a whole: see [`Field::update_locked`].
            #[inline]
            pub fn dec(&self) {
                self.set(self.get() - 1);
            }
        }
    )*};
}

counter!(u8, u16, u32, u64);

word!(u8 => AtomicU8, u16 => AtomicU16, u32 => AtomicU32, u64 => AtomicU64);

macro_rules! address_word {
    ([$($generic:tt)*] $name:ty, $from:expr, $to:expr) => {
        impl<$($generic)*> Word for $name {
            type Atomic = AtomicU64;
            #[inline]
            fn load(cell: &AtomicU64) -> Self {
                $from(cell.load(Ordering::Relaxed))
            }
            #[inline]
            fn store(cell: &AtomicU64, value: Self) {
                cell.store($to(value), Ordering::Relaxed);
            }
        }
    };
}

address_word!([] GuestPhys, GuestPhys::new, GuestPhys::get);
address_word!([] GuestVirt, GuestVirt::new, GuestVirt::get);
address_word!([T] KPtr<T>, |v| KPtr::new(GuestVirt::new(v)), |p: KPtr<T>| p.addr().get());

/// Makes a `bitflags` type over an integer usable in a [`Field`]. Its kind is the type's name
/// unless another name follows.
#[macro_export]
macro_rules! flags_word {
    ($name:ty, $int:ty) => {
        $crate::flags_word!($name, $int, described as stringify!($name));
    };
    ($name:ty, $int:ty, described as $kind:expr) => {
        impl $crate::describe::Kind for $name {
            const KIND: $crate::describe::KindName = $crate::describe::KindName::plain($kind);
        }

        impl $crate::field::Word for $name {
            type Atomic = <$int as $crate::field::Word>::Atomic;
            #[inline]
            fn load(cell: &Self::Atomic) -> Self {
                Self::from_bits_retain(<$int as $crate::field::Word>::load(cell))
            }
            #[inline]
            fn store(cell: &Self::Atomic, value: Self) {
                <$int as $crate::field::Word>::store(cell, value.bits());
            }
        }
    };
}
