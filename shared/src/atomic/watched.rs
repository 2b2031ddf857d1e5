//! Atomics with the size of their value. loom watches those that a model names.
//!
//! loom's own atomics are not plain bytes, so a structure of shared memory cannot be made of them.
//! Here a word is `core`'s atomic. While a [`Watched`] for it lives, every access goes to one of
//! loom's atomics, which is kept beside the word: loom then tries each order of the accesses, and
//! each value that the memory orderings allow a load to see. Words that are not watched are plain
//! memory and cost a model nothing; accesses to them are not interleaved with anything.
//!
//! A model watches its words before it starts threads, and keeps the [`Watched`] until they have
//! ended.

extern crate std;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use zerocopy::{FromBytes, IntoBytes, KnownLayout};

pub use core::sync::atomic::Ordering;
pub use loom::sync::atomic::fence;

std::thread_local! {
    /// The watched words by address. All threads of a model are coroutines of one thread.
    static WATCHED: RefCell<BTreeMap<usize, Arc<loom::sync::atomic::AtomicU64>>> =
        RefCell::default();
}

/// The word at this address, if it is watched. No borrow is left behind: an access may switch
/// threads.
fn find(address: usize) -> Option<Arc<loom::sync::atomic::AtomicU64>> {
    WATCHED.with_borrow(|watched| watched.get(&address).cloned())
}

/// loom watches a word as long as this lives.
#[derive(Debug)]
#[must_use]
pub struct Watched(usize);

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = WATCHED.with_borrow_mut(|watched| watched.remove(&self.0));
    }
}

/// A value of a narrower word, taken from loom's word.
fn narrow<T: TryFrom<u64>>(value: u64) -> T {
    T::try_from(value)
        .unwrap_or_else(|_| unreachable!("loom's word holds what came from this type"))
}

macro_rules! atomic {
    ($($name:ident: $int:ty),*) => {$(
        /// A word of `core`'s, and loom's word beside it while it is watched.
        #[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
        #[repr(transparent)]
        pub struct $name(core::sync::atomic::$name);

        impl $name {
            /// A word that holds `value`.
            #[must_use]
            pub const fn new(value: $int) -> Self {
                Self(core::sync::atomic::$name::new(value))
            }

            /// Has loom watch the word, from its value now.
            pub fn watch(&self) -> Watched {
                let address = core::ptr::from_ref(self).addr();
                let now = self.0.load(Ordering::Relaxed).into();
                let word = Arc::new(loom::sync::atomic::AtomicU64::new(now));
                let before = WATCHED.with_borrow_mut(|watched| watched.insert(address, word));
                assert!(before.is_none(), "a word is watched once");
                Watched(address)
            }

            fn watched(&self) -> Option<Arc<loom::sync::atomic::AtomicU64>> {
                find(core::ptr::from_ref(self).addr())
            }

            /// Reads the word.
            pub fn load(&self, order: Ordering) -> $int {
                match self.watched() {
                    Some(word) => narrow(word.load(order)),
                    None => self.0.load(order),
                }
            }

            /// Writes the word.
            pub fn store(&self, value: $int, order: Ordering) {
                match self.watched() {
                    Some(word) => word.store(value.into(), order),
                    None => self.0.store(value, order),
                }
            }

            /// Writes the word and returns what it held.
            pub fn swap(&self, value: $int, order: Ordering) -> $int {
                match self.watched() {
                    Some(word) => narrow(word.swap(value.into(), order)),
                    None => self.0.swap(value, order),
                }
            }

            /// Writes `new` if the word holds `current`, and returns what it held.
            ///
            /// # Errors
            /// The value of the word, when that is not `current`.
            pub fn compare_exchange(
                &self,
                current: $int,
                new: $int,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$int, $int> {
                match self.watched() {
                    Some(word) => {
                        word.compare_exchange(current.into(), new.into(), success, failure)
                            .map(narrow)
                            .map_err(narrow)
                    }
                    None => self.0.compare_exchange(current, new, success, failure),
                }
            }

            /// Calls `f` with the value of the word, writes the result if there is one, and returns
            /// the old value.
            ///
            /// # Errors
            /// The value of the word, when `f` returns `None`.
            pub fn fetch_update(
                &self,
                set: Ordering,
                fetch: Ordering,
                mut f: impl FnMut($int) -> Option<$int>,
            ) -> Result<$int, $int> {
                match self.watched() {
                    Some(word) => {
                        word.fetch_update(set, fetch, |n| f(narrow(n)).map(u64::from))
                            .map(narrow)
                            .map_err(narrow)
                    }
                    None => self.0.fetch_update(set, fetch, f),
                }
            }
        }
    )*};
}

atomic!(AtomicU8: u8, AtomicU16: u16, AtomicU32: u32, AtomicU64: u64);

/// Functions of a word of this size that change it by another value.
macro_rules! fetch {
    ($name:ident: $int:ty, $($(#[doc = $doc:literal])* $fetch:ident),*) => {
        impl $name {$(
            $(#[doc = $doc])*
            pub fn $fetch(&self, value: $int, order: Ordering) -> $int {
                match self.watched() {
                    Some(word) => narrow(word.$fetch(value.into(), order)),
                    None => self.0.$fetch(value, order),
                }
            }
        )*}
    };
}

fetch!(
    AtomicU64: u64,
    /// Adds `value`, wrapping, and returns what the word held.
    fetch_add,
    /// Sets the bits of `value`, and returns what the word held.
    fetch_or,
    /// Clears the bits that `value` lacks, and returns what the word held.
    fetch_and
);
fetch!(
    AtomicU32: u32,
    /// Adds `value`, and returns what the word held. A watched word must not wrap.
    fetch_add,
    /// Subtracts `value`, and returns what the word held. A watched word must not wrap.
    fetch_sub
);
