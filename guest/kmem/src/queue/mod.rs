//! Lists whose links lie in their entries (queue(3), `sys/queue.h`).
//!
//! The words of a list, its head and the links in its entries, are words of the structures that
//! others look at, too. A type of this module owns none of them. It is a view: which words are the
//! head, and a way to the links of an entry ([`Links`]). It costs nothing, and is made where it is
//! used.
//!
//! | here | `sys/queue.h` | head | links |
//! |---|---|---|---|
//! | [`List`] | `LIST` | first | both ways |
//! | [`SList`] | `SLIST` | first | onwards |
//! | [`TailQ`] | `TAILQ` | first and last | both ways |
//! | [`Circular`] | none; entries of a `vm_map` | an entry | both ways |
//!
//! The last link is [`Link::NONE`], except in a circular list. As in FreeBSD, an entry that leaves
//! a list keeps its old links; a caller that needs them clear clears them. Unlike FreeBSD's, the
//! link back names the entry before, not that entry's link.
//!
//! **Protocol.** Every operation needs the lock of the list, and an entry is on one list at most
//! for each pair of links. The words of an entry are written before those that lead to it, so that
//! a look from outside that goes forward finds a list at every instant, the old or the new one.
//! CPUs that follow a list without its lock need [`SList::publish_head`] or
//! [`SList::publish_tail`], and entries that stay.

mod circular;
mod list;
mod slist;
mod tailq;
#[cfg(test)]
mod tests;

use vmkern_abi::addr::KPtr;
use vmkern_abi::field::{Field, Word};

pub(crate) use self::circular::Circular;
pub(crate) use self::list::List;
pub(crate) use self::slist::SList;
pub(crate) use self::tailq::TailQ;

/// The word by which a list names an entry, or none.
pub(crate) trait Link: Word + Eq {
    /// No entry.
    const NONE: Self;

    /// The entry, if there is one.
    #[inline]
    fn entry(self) -> Option<Self> {
        (self != Self::NONE).then_some(self)
    }
}

/// The number of a page: number 0 is never on a list.
impl Link for u32 {
    const NONE: Self = 0;
}

impl<T> Link for KPtr<T> {
    const NONE: Self = Self::NULL;
}

/// The links of a list's entries, and how an entry is reached: the `field` of FreeBSD's macros.
pub(crate) trait Links {
    /// What the links hold.
    type Link: Link;

    /// The link of `entry` to the entry after it.
    fn next(&self, entry: Self::Link) -> &Field<Self::Link>;
}

/// Links that lead both ways.
pub(crate) trait BackLinks: Links {
    /// The link of `entry` to the entry before it.
    fn prev(&self, entry: Self::Link) -> &Field<Self::Link>;
}
