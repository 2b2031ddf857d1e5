//! All objects with their pages, read from their indexes.
//!
//! Objects are found through the entries that name them, or are in the kernel's roots. An object's
//! index is a tree of the pages themselves. A link is followed only to a page of the same object
//! whose index fits the place, so a cycle is impossible.

use std::collections::{BTreeMap, HashSet};
use std::mem::offset_of;

use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::layout::{KernelRoots, ObjectFlags, VmObject, index_above};

use super::finding::{Findings, Updating};
use super::maps::{Entry, Maps};
use super::memory::Memory;
use super::page_array::PageArray;
use super::rule::rules;

rules! {
    None;
    Objects {
        OBJECT_INDEX = "object-index":
            "a page is at the place of its index in the tree, and names the page above it as its \
             parent";
    }
}

/// A page of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Resident {
    /// Its index.
    pub pindex: u64,
    /// Its number.
    pub pfn: u32,
}

/// A [`VmObject`], copied, with its pages.
#[derive(Debug)]
pub(super) struct Object {
    pub at: GuestVirt,
    /// Its name.
    pub name: &'static str,
    /// Whether only maps that were being changed lead to it: then it may not be an object at all,
    /// and is not read.
    pub is_doubtful: bool,
    pub lock_owner: u32,
    pub ref_count: u32,
    pub kind: u32,
    pub flags: ObjectFlags,
    pub size: u64,
    pub resident_page_count: u64,
    pub root: u32,
    pub before: u32,
    pub after: u32,
    /// Its pages, by index.
    pub pages: Vec<Resident>,
}

impl Object {
    /// Whether it is kernel_object or kmem_object.
    pub(super) fn is_kernels(&self) -> bool {
        self.name != ANONYMOUS
    }

    /// Whether it cannot be checked: it was being changed, or the maps that lead to it were.
    pub(super) fn is_updating(&self) -> bool {
        self.lock_owner != 0 || self.is_doubtful
    }

    pub(super) fn updating(&self) -> Option<Updating> {
        let owner = self.lock_owner.checked_sub(1)?;
        Some(Updating { what: self.name.into(), at: self.at, owner: owner & 0xffff })
    }

    fn of(at: GuestVirt, name: &'static str, object: &VmObject) -> Self {
        Self {
            at,
            name,
            is_doubtful: false,
            lock_owner: object.lock.owner.get(),
            ref_count: object.ref_count.get(),
            kind: object.kind.get().raw(),
            flags: object.flags.get(),
            size: object.size.get(),
            resident_page_count: object.resident_page_count.get(),
            root: object.root.get(),
            before: object.before.get(),
            after: object.after.get(),
            pages: Vec::new(),
        }
    }
}

/// The name of all objects but the kernel's own.
const ANONYMOUS: &str = "vm_object";

/// All objects, by address.
#[derive(Debug, Default)]
pub(super) struct Objects {
    pub all: BTreeMap<GuestVirt, Object>,
}

impl Objects {
    /// Reads the kernel's objects and those that entries name.
    pub(super) fn read(
        memory: &Memory<'_>,
        pages: &PageArray,
        roots_at: KPtr<KernelRoots>,
        roots: &KernelRoots,
        maps: &Maps,
        findings: &Findings,
    ) -> Self {
        // 1. The kernel's own objects, which lie in its roots.
        let kernels = kernels(roots_at, roots);
        let mut objects =
            Self { all: kernels.into_iter().map(|object| (object.at, object)).collect() };
        // 2. Anonymous objects, through the entries that name them.
        let mut unreadable = HashSet::new();
        // Maps that are not being changed come first.
        let (updating, still): (Vec<_>, Vec<_>) =
            maps.all.iter().partition(|map| map.is_updating());
        for map in still.into_iter().chain(updating) {
            for at in map.entries.iter().filter_map(Entry::object) {
                if objects.all.contains_key(&at) || unreadable.contains(&at) {
                    continue;
                }
                match memory.get::<VmObject>(ANONYMOUS, KPtr::new(at)) {
                    Ok(object) => {
                        let mut object = Object::of(at, ANONYMOUS, &object);
                        object.is_doubtful = map.is_updating();
                        drop(objects.all.insert(at, object));
                    }
                    Err(_) if map.is_updating() => {}
                    Err(error) => {
                        findings.unreadable(&error);
                        unreadable.insert(at);
                    }
                }
            }
        }
        // 3. Their pages. An object that only a changing map leads to may be freed already.
        let known = objects.all.values_mut().filter(|object| !object.is_doubtful);
        known.for_each(|object| read_index(pages, findings, object));
        objects
    }
}

/// A link of an index, to be followed.
struct Link {
    /// The page that it leads to.
    to: u32,
    /// The page that contains it, or 0 for the root.
    from: u32,
    /// The first index that belongs there.
    first: u64,
    /// The first index that does not.
    end: u64,
}

/// The objects that lie in the roots.
fn kernels(roots_at: KPtr<KernelRoots>, roots: &KernelRoots) -> [Object; 2] {
    let root = |offset: usize| roots_at.addr().checked_add(offset as u64).unwrap_or_default();
    [
        Object::of(
            root(offset_of!(KernelRoots, kernel_object)),
            "kernel_object",
            &roots.kernel_object,
        ),
        Object::of(root(offset_of!(KernelRoots, kmem_object)), "kmem_object", &roots.kmem_object),
    ]
}

/// Reads the pages of `object` from its index.
fn read_index(array: &PageArray, findings: &Findings, object: &mut Object) {
    // 1. Descend the tree, with the range of indexes that is valid below each link.
    let is_still = !object.is_updating();
    let fault = |pfn: u32, detail: &dyn Fn() -> String| {
        if is_still {
            findings.add(&OBJECT_INDEX, "vm_page", array.address(pfn.into()), detail);
        }
    };
    let (name, at) = (object.name, object.at);
    let mut links = vec![Link { to: object.root, from: 0, first: 0, end: u64::MAX }];
    while let Some(Link { to: pfn, from, first, end }) = links.pop() {
        if pfn == 0 {
            continue;
        }
        // 2. The page: managed, of this object, with an index in the range of its place.
        let Some(page) = array.get(pfn.into()) else {
            fault(from, &|| {
                format!("the index of {name} at {at} leads to page {pfn:#x}, which is not managed")
            });
            continue;
        };
        let pindex = page.pindex;
        // A page of another object is claimed for both, but its links are not followed.
        if page.object.addr() != at {
            object.pages.push(Resident { pindex, pfn });
            continue;
        }
        if !(first..end).contains(&pindex) {
            fault(pfn, &|| {
                format!(
                    "page {pfn:#x} of {name} has index {pindex:#x}, but its place is for \
                     {first:#x} to {end:#x}"
                )
            });
            continue;
        }
        // 3. Its place: it links back to the page above, whose index belongs higher in the tree.
        if page.parent != from {
            let parent = page.parent;
            fault(pfn, &|| {
                format!("page {from:#x} leads to page {pfn:#x}, whose parent says {parent:#x}")
            });
        }
        let upper = array.get(from.into()).filter(|_| from != 0);
        if let Some(upper) = upper.filter(|upper| !index_above(upper.pindex, pindex)) {
            let over = upper.pindex;
            fault(pfn, &|| {
                format!(
                    "page {pfn:#x} at index {pindex:#x} of {name} belongs above {over:#x}, not \
                     below"
                )
            });
        }
        // 4. The two subtrees divide the range.
        object.pages.push(Resident { pindex, pfn });
        links.push(Link { to: page.right, from: pfn, first: pindex + 1, end });
        links.push(Link { to: page.left, from: pfn, first, end: pindex });
    }
    // 5. The rules need the pages in order.
    object.pages.sort_unstable_by_key(|resident| resident.pindex);
}
