//! Mutexes at FreeBSD's granularity (`kern_mutex.c`), with the order in which they nest checked at every acquisition.
//!
//! There is one CPU and one thread of control so far: a lock that is already held is a bug of the caller, and is
//! reported as one. [`LockClass`] lists the order; a lock of a class is taken only while no lock of the same or a
//! later class is held.

use vmkern_abi::field::Field;

use crate::machine::Machine;
use crate::vm::Vm;

/// Classes of locks in the order of nesting, outermost first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum LockClass {
    /// A map.
    Map = 0,
    /// An object.
    Object = 1,
    /// The paging queues.
    PageQueue = 2,
    /// The pmap.
    Pmap = 3,
    /// The free-page queues.
    FreeQueue = 4,
}

impl LockClass {
    const fn bit(self) -> u32 {
        1 << self as u32
    }

    const fn and_inner(self) -> u32 {
        u32::MAX << self as u32
    }

    /// FreeBSD's name of such a lock.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Map => "system map",
            Self::Object => "vm object",
            Self::PageQueue => "vm page queue mutex",
            Self::Pmap => "pmap",
            Self::FreeQueue => "vm page free queue mutex",
        }
    }
}

/// The owner that a held lock's word names: the only thread there is, number 0.
const OWNER: u32 = 1;

impl<M: Machine> Vm<M> {
    /// Acquires the lock `word` (`mtx_lock`). Panics when it, or a lock that nests inside it, is held.
    #[inline]
    pub fn mtx_lock(&self, class: LockClass, word: &Field<u32>) {
        let held = &self.state().held_locks;
        if word.get() != 0 {
            self.panic(format_args!("_mtx_lock_sleep: recursed on non-recursive mutex {}", class.name()));
        }
        if held.get() & class.and_inner() != 0 {
            self.panic(format_args!("lock order reversal: {} after classes {:#b}", class.name(), held.get()));
        }
        word.set(OWNER);
        held.set(held.get() | class.bit());
    }

    /// Releases the lock `word` (`mtx_unlock`). Panics when it is not held.
    #[inline]
    pub fn mtx_unlock(&self, class: LockClass, word: &Field<u32>) {
        self.mtx_assert_owned(class, word);
        word.set(0);
        let held = &self.state().held_locks;
        held.set(held.get() & !class.bit());
    }

    /// Panics unless the lock `word` is held (`mtx_assert(MA_OWNED)`).
    #[inline]
    pub fn mtx_assert_owned(&self, class: LockClass, word: &Field<u32>) {
        if word.get() != OWNER {
            self.panic(format_args!("mutex {} not owned", class.name()));
        }
    }

    /// Panics when any lock is held: the caller is about to sleep, or to run code that takes locks from the start.
    #[inline]
    pub fn assert_no_locks(&self, what: &str) {
        let held = self.state().held_locks.get();
        if held != 0 {
            self.panic(format_args!("{what} with locks held: classes {held:#b}"));
        }
    }
}
