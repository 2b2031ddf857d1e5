//! Classes of locks: one table defines the order of nesting, the bits for the classes that a thread
//! holds, and the names.

use core::fmt;

use bitflags::bitflags;

use crate::flags_word;

/// Makes [`LockClass`], [`HeldLocks`] and the names from the table of classes. A row is
/// `Class CONSTANT "name"`; the last line names the class of sx locks.
macro_rules! lock_classes {
    (
        $($(#[doc = $doc:literal])* $class:ident $bit:ident $name:literal),+;
        sx $sx:literal
    ) => {
        /// Classes of mutexes in the order of nesting, outermost first: a lock of a class may be
        /// taken only while no lock of the same or a later class is held.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum LockClass {
            $($(#[doc = $doc])* $class,)+
        }

        bitflags! {
            /// Classes of mutexes, as in [`super::Thread::held_locks`].
            #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
            pub struct HeldLocks: u32 {
                $($(#[doc = $doc])* const $bit = 1 << LockClass::$class as u32;)+
            }
        }

        impl LockClass {
            /// Every class, outermost first.
            pub const ALL: [Self; SX_CLASS] = [$(Self::$class),+];
        }

        /// The class of sx locks, after those of mutexes.
        pub const SX_CLASS: usize = [$($name),+].len();

        /// What FreeBSD calls the locks of each class.
        pub const LOCK_CLASS_NAMES: [&str; LOCK_CLASSES] = [$($name,)+ $sx];
    };
}

lock_classes! {
    /// Requests of the host.
    Driver DRIVER "driver",
    /// The lists of event handlers.
    Eventhandler EVENTHANDLER "eventhandler",
    /// A system map.
    Map MAP "system map",
    /// The interlock of threads that wait for a map.
    MapSleep MAP_SLEEP "vm map sleep mutex",
    /// An object.
    Object OBJECT "vm object",
    /// A zone.
    Zone ZONE "UMA zone",
    /// The paging queues.
    PageQueue PAGE_QUEUE "vm page queue mutex",
    /// The pmap.
    Pmap PMAP "pmap",
    /// The free-page queues.
    FreeQueue FREE_QUEUE "vm page free queue mutex",
    /// A CPU's cache of free pages. A thread holds at most one.
    PageCache PAGE_CACHE "pcpu page cache",
    /// The scheduler.
    Sched SCHED "sched lock";
    sx "user map"
}

/// Classes of locks that [`super::LockStats`] distinguishes: mutexes by their number in
/// [`LockClass`], then sx locks.
pub const LOCK_CLASSES: usize = SX_CLASS + 1;

flags_word!(HeldLocks, u32, described as "u32");

impl LockClass {
    /// Its bit.
    #[must_use]
    #[inline]
    pub const fn bit(self) -> HeldLocks {
        HeldLocks::from_bits_retain(1 << self as u32)
    }

    /// This class and all inner classes: none of them may be held when a lock of this class is
    /// taken.
    #[must_use]
    #[inline]
    pub const fn and_inner(self) -> HeldLocks {
        HeldLocks::from_bits_retain(u32::MAX << self as u32)
    }

    /// Whether the owner may acquire such a lock again (`MTX_RECURSE`).
    #[must_use]
    #[inline]
    pub const fn is_recursive(self) -> bool {
        matches!(self, Self::PageQueue)
    }

    /// FreeBSD's name of such a lock.
    #[must_use]
    pub const fn name(self) -> &'static str {
        LOCK_CLASS_NAMES[self as usize]
    }
}

/// The names of the classes, outermost first.
impl fmt::Display for HeldLocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for class in LockClass::ALL.into_iter().filter(|class| self.contains(class.bit())) {
            write!(f, "{separator}{}", class.name())?;
            separator = ", ";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::string::ToString;

    use super::*;

    #[test]
    fn every_class_has_a_bit_and_a_name_of_its_own() {
        let mut seen = HeldLocks::empty();
        for (number, class) in LockClass::ALL.into_iter().enumerate() {
            assert_eq!((class as usize, class.bit().bits()), (number, 1 << number));
            assert!(!seen.intersects(class.and_inner()), "{class:?}");
            seen |= class.bit();
        }
        assert_eq!(seen, HeldLocks::all());
        assert_eq!((HeldLocks::MAP | HeldLocks::SCHED).to_string(), "system map, sched lock");
    }
}
