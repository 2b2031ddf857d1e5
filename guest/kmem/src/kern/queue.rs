//! Lists of structures that name each other by pointer, over [`crate::queue`].
//!
//! A kind of links ([`PointerLinks`]) says which fields of a structure they are. It has no values:
//! it stands where FreeBSD's macros have the name of the field.

use core::marker::PhantomData;

use vmkern_abi::addr::KPtr;
use vmkern_abi::field::Field;

use super::Globals;
use crate::machine::{Cpu, PhysMem};
use crate::queue::{BackLinks, Links, List, SList, TailQ};
use crate::window::Shared;

/// Links of structures of one type.
pub(crate) trait PointerLinks {
    /// The structure.
    type Entry: Shared;

    /// The link to the entry after `entry`.
    fn next(entry: &Self::Entry) -> &Field<KPtr<Self::Entry>>;
}

/// Links of structures of one type that lead both ways.
pub(crate) trait PointerBackLinks: PointerLinks {
    /// The link to the entry before `entry`.
    fn prev(entry: &Self::Entry) -> &Field<KPtr<Self::Entry>>;
}

/// The links `L` in the memory of a system.
#[derive(Debug)]
pub(crate) struct Pointers<'a, M, L> {
    globals: &'a Globals<M>,
    kind: PhantomData<L>,
}

/// A list with two ends of structures that are linked by `L`.
pub(crate) type PointerTailQ<'a, M, L> = TailQ<'a, Pointers<'a, M, L>>;

/// A list with one end of structures that are linked by `L`.
pub(crate) type PointerSList<'a, M, L> = SList<'a, Pointers<'a, M, L>>;

/// A list with one end of structures that are linked by `L` both ways.
pub(crate) type PointerList<'a, M, L> = List<'a, Pointers<'a, M, L>>;

impl<M: PhysMem + Cpu, L: PointerLinks> Links for Pointers<'_, M, L> {
    type Link = KPtr<L::Entry>;

    #[inline]
    fn next(&self, entry: Self::Link) -> &Field<Self::Link> {
        L::next(self.globals.get(entry))
    }
}

impl<M: PhysMem + Cpu, L: PointerBackLinks> BackLinks for Pointers<'_, M, L> {
    #[inline]
    fn prev(&self, entry: Self::Link) -> &Field<Self::Link> {
        L::prev(self.globals.get(entry))
    }
}

impl<M: PhysMem + Cpu> Globals<M> {
    /// The links `L`.
    #[inline]
    pub(crate) fn links<L: PointerLinks>(&self) -> Pointers<'_, M, L> {
        Pointers { globals: self, kind: PhantomData }
    }

    /// The list, linked by `L`, that begins and ends where `first` and `last` say.
    #[inline]
    pub(crate) fn tailq<'a, L: PointerBackLinks>(
        &'a self,
        first: &'a Field<KPtr<L::Entry>>,
        last: &'a Field<KPtr<L::Entry>>,
    ) -> PointerTailQ<'a, M, L> {
        TailQ::new(self.links(), first, last)
    }

    /// The list, linked by `L` both ways, that begins where `first` says.
    #[inline]
    pub(crate) fn list<'a, L: PointerBackLinks>(
        &'a self,
        first: &'a Field<KPtr<L::Entry>>,
    ) -> PointerList<'a, M, L> {
        List::new(self.links(), first)
    }

    /// The list, linked by `L` one way, that begins where `first` says.
    #[inline]
    pub(crate) fn slist<'a, L: PointerLinks>(
        &'a self,
        first: &'a Field<KPtr<L::Entry>>,
    ) -> PointerSList<'a, M, L> {
        SList::new(self.links(), first)
    }
}

/// Makes kinds of links. A row is `Kind: Structure { next: field }`, with `, prev: field` behind it
/// where links lead both ways.
macro_rules! pointer_links {
    ($($(#[doc = $doc:literal])* $vis:vis $kind:ident: $entry:ty {
        next: $next:ident $(, prev: $prev:ident)?
    })+) => {$(
        $(#[doc = $doc])*
        #[derive(Clone, Copy, Debug)]
        $vis enum $kind {}

        impl $crate::kern::queue::PointerLinks for $kind {
            type Entry = $entry;

            #[inline]
            fn next(entry: &$entry) -> &vmkern_abi::field::Field<vmkern_abi::addr::KPtr<$entry>> {
                &entry.$next
            }
        }

        $(impl $crate::kern::queue::PointerBackLinks for $kind {
            #[inline]
            fn prev(entry: &$entry) -> &vmkern_abi::field::Field<vmkern_abi::addr::KPtr<$entry>> {
                &entry.$prev
            }
        })?
    )+};
}

pub(crate) use pointer_links;
