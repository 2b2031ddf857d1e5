//! The index of an object: its pages in a tree, in order of page index, linked through themselves.
//!
//! FreeBSD of 2008 has a splay tree whose links lie in `vm_page`. The links are there here too, so
//! an entry in the tree needs no memory besides the page. But searches do not change the tree:
//! which page is above which follows from their indices alone ([`index_above`]), and with
//! consecutive or equally spaced pages the tree is balanced to within one level.
//!
//! The object's `before` and `after`, the two neighbouring pages between which the last search
//! ended, replace the root of a splay tree for searches of neighbours. A search between them, or
//! for `after`, needs no descent. So entering, finding or removing pages in order takes constant
//! time each, and a page is entered without a second search after a look-up has not found it.
//!
//! Everything here needs the object's lock, searches included.

use vmkern_abi::layout::{VmObject, VmPage, index_above};

use super::Object;
use crate::machine::{Cpu, PhysMem};

/// A place between two neighbouring pages of an index, as page numbers; 0 if there is no page on
/// that side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Gap {
    before: u32,
    after: u32,
}

/// A subtree that has lost the page above it, or a place for a subtree.
#[derive(Clone, Copy, Debug)]
enum Place {
    Root,
    LeftOf(u32),
    RightOf(u32),
}

impl<M: PhysMem + Cpu> Object<M> {
    /// Number of the page at `pindex`.
    pub(crate) fn index_lookup(&self, obj: &VmObject, pindex: u64) -> Option<u32> {
        let Gap { before, .. } = self.index_seek(obj, pindex);
        (before != 0 && self.page_by_number(before).pindex.get() == pindex).then_some(before)
    }

    /// Number of the first page at or after `pindex`.
    pub(super) fn index_from(&self, obj: &VmObject, pindex: u64) -> Option<u32> {
        let Gap { before, after } = self.index_seek(obj, pindex);
        let is_there = before != 0 && self.page_by_number(before).pindex.get() == pindex;
        Some(if is_there { before } else { after }).filter(|&pfn| pfn != 0)
    }

    /// Enters page number `pfn`, whose `pindex` says where. Panics when another page is there.
    pub(crate) fn index_insert(&self, obj: &VmObject, pfn: u32) {
        // 1. The neighbours in the order of indices.
        let page = self.page_by_number(pfn);
        let pindex = page.pindex.get();
        let Gap { before, after } = self.index_seek(obj, pindex);
        let hangs_before = before != 0 && {
            let neighbour = self.page_by_number(before);
            if neighbour.pindex.get() == pindex {
                self.panic(format_args!("vm_page_insert: offset already allocated"));
            }
            neighbour.right.get() == 0
        };
        // 2. Of two neighbours the lower one in the tree has nothing on the side of the other: the
        // way up begins there. The pages below the new page go to its left or right, each with the
        // subtree on its far side.
        let mut above = if hangs_before { before } else { after };
        let (mut left, mut right) = (0, 0);
        let place = loop {
            if above == 0 {
                break Place::Root;
            }
            let upper = self.page_by_number(above);
            let is_before = upper.pindex.get() < pindex;
            if !index_above(pindex, upper.pindex.get()) {
                break if is_before { Place::RightOf(above) } else { Place::LeftOf(above) };
            }
            if is_before {
                self.index_hang(obj, Place::RightOf(above), left);
                left = above;
            } else {
                self.index_hang(obj, Place::LeftOf(above), right);
                right = above;
            }
            above = upper.parent.get();
        };
        // 3. The page takes its place, with what was collected on both sides.
        self.index_hang(obj, Place::LeftOf(pfn), left);
        self.index_hang(obj, Place::RightOf(pfn), right);
        self.index_hang(obj, place, pfn);
        obj.before.set(pfn);
    }

    /// Removes page number `pfn`.
    pub(crate) fn index_remove(&self, obj: &VmObject, pfn: u32) {
        if obj.before.get() == pfn {
            obj.before.set(self.index_prev(pfn));
        }
        if obj.after.get() == pfn {
            obj.after.set(self.index_next(pfn));
        }
        let page = self.page_by_number(pfn);
        let (mut left, mut right) = (page.left.get(), page.right.get());
        let mut place = self.index_place(page, pfn);
        // Both subtrees become one, from above.
        while left != 0 && right != 0 {
            let (lefts, rights) = (self.page_by_number(left), self.page_by_number(right));
            if index_above(lefts.pindex.get(), rights.pindex.get()) {
                self.index_hang(obj, place, left);
                place = Place::RightOf(left);
                left = lefts.right.get();
            } else {
                self.index_hang(obj, place, right);
                place = Place::LeftOf(right);
                right = rights.left.get();
            }
        }
        self.index_hang(obj, place, left | right);
        page.left.set(0);
        page.right.set(0);
        page.parent.set(0);
    }

    /// The gap that contains `pindex`: `before` is at or before it, `after` is after it. The object
    /// remembers the gap.
    fn index_seek(&self, obj: &VmObject, pindex: u64) -> Gap {
        let last = Gap { before: obj.before.get(), after: obj.after.get() };
        if last.before | last.after != 0 && self.index_ends(last.before, |before| before <= pindex)
        {
            if self.index_ends(last.after, |after| pindex < after) {
                return last;
            }
            if self.page_by_number(last.after).pindex.get() == pindex {
                return index_remember(obj, last.after, self.index_next(last.after));
            }
        }
        self.index_descend(obj, pindex)
    }

    /// [`Object::index_seek`] from the root down.
    fn index_descend(&self, obj: &VmObject, pindex: u64) -> Gap {
        let (mut before, mut after, mut at) = (0, 0, obj.root.get());
        while at != 0 {
            let page = self.page_by_number(at);
            let found = page.pindex.get();
            if found == pindex {
                return index_remember(obj, at, self.index_next(at));
            }
            if found < pindex {
                before = at;
                at = page.right.get();
            } else {
                after = at;
                at = page.left.get();
            }
        }
        index_remember(obj, before, after)
    }

    /// Whether `pfn` is 0, or the index of its page is on the side `side`.
    #[inline]
    fn index_ends(&self, pfn: u32, side: impl Fn(u64) -> bool) -> bool {
        pfn == 0 || side(self.page_by_number(pfn).pindex.get())
    }

    /// Number of the page that follows page number `pfn`, or 0.
    fn index_next(&self, pfn: u32) -> u32 {
        let mut below = self.page_by_number(pfn).right.get();
        if below == 0 {
            return self.index_up(pfn, |upper| &upper.left);
        }
        loop {
            match self.page_by_number(below).left.get() {
                0 => return below,
                left => below = left,
            }
        }
    }

    /// Number of the page that precedes page number `pfn`, or 0.
    fn index_prev(&self, pfn: u32) -> u32 {
        let mut below = self.page_by_number(pfn).left.get();
        if below == 0 {
            return self.index_up(pfn, |upper| &upper.right);
        }
        loop {
            match self.page_by_number(below).right.get() {
                0 => return below,
                right => below = right,
            }
        }
    }

    /// Number of the first page above page number `pfn` that has the page, or an ancestor of it, on
    /// that side; or 0.
    fn index_up(
        &self,
        mut pfn: u32,
        side: impl Fn(&VmPage) -> &vmkern_abi::field::Field<u32>,
    ) -> u32 {
        loop {
            let upper = self.page_by_number(pfn).parent.get();
            if upper == 0 || side(self.page_by_number(upper)).get() == pfn {
                return upper;
            }
            pfn = upper;
        }
    }

    /// The link that points to page number `pfn`.
    fn index_place(&self, page: &VmPage, pfn: u32) -> Place {
        match page.parent.get() {
            0 => Place::Root,
            upper if self.page_by_number(upper).left.get() == pfn => Place::LeftOf(upper),
            upper => Place::RightOf(upper),
        }
    }

    /// Attaches the subtree of page number `pfn`, or nothing (0), at `place`.
    #[inline]
    fn index_hang(&self, obj: &VmObject, place: Place, pfn: u32) {
        let upper = match place {
            Place::Root => {
                obj.root.set(pfn);
                0
            }
            Place::LeftOf(upper) => {
                self.page_by_number(upper).left.set(pfn);
                upper
            }
            Place::RightOf(upper) => {
                self.page_by_number(upper).right.set(pfn);
                upper
            }
        };
        if pfn != 0 {
            self.page_by_number(pfn).parent.set(upper);
        }
    }
}

/// Stores the place where a search ended.
fn index_remember(obj: &VmObject, before: u32, after: u32) -> Gap {
    obj.before.set(before);
    obj.after.set(after);
    Gap { before, after }
}
