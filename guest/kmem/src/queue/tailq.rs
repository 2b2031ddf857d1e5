//! Lists with two ends and links both ways (`TAILQ`).

use vmkern_abi::field::Field;

use super::{BackLinks, Link};

/// A list with a first and a last entry. Each operation takes constant time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TailQ<'a, E: BackLinks> {
    links: E,
    first: &'a Field<E::Link>,
    last: &'a Field<E::Link>,
}

impl<'a, E: BackLinks> TailQ<'a, E> {
    /// The list that begins and ends where the words `first` and `last` say; all zero is empty.
    #[inline]
    pub fn new(links: E, first: &'a Field<E::Link>, last: &'a Field<E::Link>) -> Self {
        Self { links, first, last }
    }

    /// The first entry (`TAILQ_FIRST`).
    #[inline]
    pub fn first(&self) -> Option<E::Link> {
        self.first.get().entry()
    }

    /// The last entry (`TAILQ_LAST`).
    #[inline]
    pub fn last(&self) -> Option<E::Link> {
        self.last.get().entry()
    }

    /// All entries, in order (`TAILQ_FOREACH`). The entry that is looked at stays on the list
    /// meanwhile.
    pub fn iter(self) -> impl Iterator<Item = E::Link> + use<'a, E> {
        core::iter::successors(self.first(), move |&entry| self.links.next(entry).get().entry())
    }

    /// Puts `entry` before all others (`TAILQ_INSERT_HEAD`).
    #[inline]
    pub fn insert_head(&self, entry: E::Link) {
        let after = self.first.get();
        self.links.next(entry).set(after);
        self.links.prev(entry).set(E::Link::NONE);
        self.back_to(after).set(entry);
        self.first.set(entry);
    }

    /// Puts `entry` behind all others (`TAILQ_INSERT_TAIL`).
    #[inline]
    pub fn insert_tail(&self, entry: E::Link) {
        let before = self.last.get();
        self.links.next(entry).set(E::Link::NONE);
        self.links.prev(entry).set(before);
        self.on_to(before).set(entry);
        self.last.set(entry);
    }

    /// Takes the first entry off; there is one.
    #[inline]
    pub fn remove_head(&self) -> E::Link {
        let entry = self.first.get();
        let next = self.links.next(entry).get();
        self.first.set(next);
        self.back_to(next).set(E::Link::NONE);
        entry
    }

    /// Takes `entry`, which is on this list, off it (`TAILQ_REMOVE`).
    #[inline]
    pub fn remove(&self, entry: E::Link) {
        let (next, prev) = (self.links.next(entry).get(), self.links.prev(entry).get());
        self.on_to(prev).set(next);
        self.back_to(next).set(prev);
    }

    /// The word that leads on from `before`, or to the first entry.
    #[inline]
    fn on_to(&self, before: E::Link) -> &Field<E::Link> {
        before.entry().map_or(self.first, |before| self.links.next(before))
    }

    /// The word that leads back from `after`, or to the last entry.
    #[inline]
    fn back_to(&self, after: E::Link) -> &Field<E::Link> {
        after.entry().map_or(self.last, |after| self.links.prev(after))
    }
}
