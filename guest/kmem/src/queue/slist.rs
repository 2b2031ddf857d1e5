//! Lists with one end and links one way (`SLIST`).

use vmkern_abi::atomic::{Ordering, fence};
use vmkern_abi::field::Field;

use super::{Link, Links};

/// A list with a first entry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SList<'a, E: Links> {
    links: E,
    first: &'a Field<E::Link>,
}

impl<'a, E: Links> SList<'a, E> {
    /// The list that begins where the word `first` says; zero is empty.
    #[inline]
    pub fn new(links: E, first: &'a Field<E::Link>) -> Self {
        Self { links, first }
    }

    /// The first entry (`SLIST_FIRST`).
    #[inline]
    pub fn first(&self) -> Option<E::Link> {
        self.first.get().entry()
    }

    /// The first entry that is `wanted` (`SLIST_FOREACH`).
    #[inline]
    pub fn find(&self, wanted: impl FnMut(E::Link) -> bool) -> Option<E::Link> {
        self.link_to(wanted).get().entry()
    }

    /// All entries, in order (`SLIST_FOREACH`).
    #[inline]
    pub fn iter(self) -> impl Iterator<Item = E::Link> + use<'a, E> {
        core::iter::successors(self.first(), move |&entry| self.links.next(entry).get().entry())
    }

    /// Puts `entry` before all others (`SLIST_INSERT_HEAD`).
    #[inline]
    pub fn insert_head(&self, entry: E::Link) {
        self.links.next(entry).set(self.first.get());
        self.first.set(entry);
    }

    /// Puts `entry` before all others, for those who look at the list without its lock: they find
    /// whatever was written to the entry before.
    pub fn publish_head(&self, entry: E::Link) {
        self.links.next(entry).set(self.first.get());
        fence(Ordering::Release);
        self.first.set(entry);
    }

    /// Puts `entry` behind all others, as [`SList::publish_head`] puts it before them.
    pub fn publish_tail(&self, entry: E::Link) {
        self.links.next(entry).set(E::Link::NONE);
        fence(Ordering::Release);
        self.link_to(|_| false).set(entry);
    }

    /// Puts `entry` before the first one that is `after` it, or behind all others.
    pub fn insert_sorted(&self, entry: E::Link, after: impl FnMut(E::Link) -> bool) {
        let link = self.link_to(after);
        self.links.next(entry).set(link.get());
        link.set(entry);
    }

    /// Takes the first entry off; there is one (`SLIST_REMOVE_HEAD`).
    #[inline]
    pub fn remove_head(&self) -> E::Link {
        let entry = self.first.get();
        self.first.set(self.links.next(entry).get());
        entry
    }

    /// Takes `entry`, which is on this list, off it (`SLIST_REMOVE`). Goes through those before it.
    pub fn remove(&self, entry: E::Link) {
        let mut link = self.first;
        while link.get() != entry {
            link = self.links.next(link.get());
        }
        link.set(self.links.next(entry).get());
    }

    /// Takes `entry` off this list if it is there: whether it was.
    pub fn remove_if_there(&self, entry: E::Link) -> bool {
        let link = self.link_to(|at| at == entry);
        let there = link.get() == entry;
        if there {
            link.set(self.links.next(entry).get());
        }
        there
    }

    /// Takes all `unwanted` entries off, and then gives each to `removed`, which may put it on
    /// another list.
    pub fn remove_all(
        &self,
        mut unwanted: impl FnMut(E::Link) -> bool,
        mut removed: impl FnMut(E::Link),
    ) {
        let mut link = self.first;
        while let Some(entry) = link.get().entry() {
            let next = self.links.next(entry);
            if unwanted(entry) {
                link.set(next.get());
                removed(entry);
            } else {
                link = next;
            }
        }
    }

    /// The word that leads to the first entry that is `wanted`, or ends the list.
    fn link_to(&self, mut wanted: impl FnMut(E::Link) -> bool) -> &Field<E::Link> {
        let mut link = self.first;
        while let Some(entry) = link.get().entry() {
            if wanted(entry) {
                break;
            }
            link = self.links.next(entry);
        }
        link
    }
}
