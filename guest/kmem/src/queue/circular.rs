//! Lists that begin and end with a header, which is an entry itself: the entries of a `vm_map`.

use super::BackLinks;

/// The links of such lists. Each operation takes constant time, and serves whichever list the entry
/// is on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Circular<E: BackLinks> {
    links: E,
}

impl<E: BackLinks> Circular<E> {
    /// Lists that are linked by `links`.
    #[inline]
    pub fn new(links: E) -> Self {
        Self { links }
    }

    /// Makes `header` the header of an empty list.
    pub fn init(&self, header: E::Link) {
        self.links.prev(header).set(header);
        self.links.next(header).set(header);
    }

    /// Puts `entry` behind `before`, an entry of a list or its header (`vm_map_entry_link`).
    #[inline]
    pub fn insert_after(&self, before: E::Link, entry: E::Link) {
        let next = self.links.next(before).get();
        self.links.prev(entry).set(before);
        self.links.next(entry).set(next);
        self.links.next(before).set(entry);
        self.links.prev(next).set(entry);
    }

    /// Takes `entry` off its list (`vm_map_entry_unlink`).
    #[inline]
    pub fn remove(&self, entry: E::Link) {
        let (prev, next) = (self.links.prev(entry).get(), self.links.next(entry).get());
        self.links.next(prev).set(next);
        self.links.prev(next).set(prev);
    }

    /// Has the neighbours of `entry` name it: it was moved here, links and all, from where they
    /// think it is.
    #[inline]
    pub fn moved(&self, entry: E::Link) {
        let (prev, next) = (self.links.prev(entry).get(), self.links.next(entry).get());
        self.links.next(prev).set(entry);
        self.links.prev(next).set(entry);
    }
}
