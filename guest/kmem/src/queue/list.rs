//! Lists with one end and links both ways (`LIST`).

use vmkern_abi::field::Field;

use super::{BackLinks, Link};

/// A list with a first entry. Each operation but a search takes constant time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct List<'a, E: BackLinks> {
    links: E,
    first: &'a Field<E::Link>,
}

impl<'a, E: BackLinks> List<'a, E> {
    /// The list that begins where the word `first` says; zero is empty.
    #[inline]
    pub fn new(links: E, first: &'a Field<E::Link>) -> Self {
        Self { links, first }
    }

    /// The first entry (`LIST_FIRST`).
    #[inline]
    pub fn first(&self) -> Option<E::Link> {
        self.first.get().entry()
    }

    /// The first entry that is `wanted` (`LIST_FOREACH`).
    pub fn find(&self, mut wanted: impl FnMut(E::Link) -> bool) -> Option<E::Link> {
        let mut at = self.first.get();
        while let Some(entry) = at.entry() {
            if wanted(entry) {
                return Some(entry);
            }
            at = self.links.next(entry).get();
        }
        None
    }

    /// Puts `entry` before all others (`LIST_INSERT_HEAD`).
    #[inline]
    pub fn insert_head(&self, entry: E::Link) {
        let after = self.first.get();
        self.links.prev(entry).set(E::Link::NONE);
        self.links.next(entry).set(after);
        if let Some(after) = after.entry() {
            self.links.prev(after).set(entry);
        }
        self.first.set(entry);
    }

    /// Takes `entry`, which is on this list, off it (`LIST_REMOVE`).
    #[inline]
    pub fn remove(&self, entry: E::Link) {
        let (prev, next) = (self.links.prev(entry).get(), self.links.next(entry).get());
        prev.entry().map_or(self.first, |prev| self.links.next(prev)).set(next);
        if let Some(next) = next.entry() {
            self.links.prev(next).set(prev);
        }
    }
}
