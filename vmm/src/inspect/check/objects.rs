//! All objects with their pages, read off their indexes.
//!
//! An object is known by an entry that names it, or by the kernel's roots. Its index is a radix tree of whole pages; no
//! node is entered twice.

use std::collections::{BTreeMap, HashSet};
use std::mem::offset_of;
use std::sync::atomic::Ordering;

use vmkern_abi::addr::{GuestPhys, GuestVirt, KPtr};
use vmkern_abi::layout::{INDEX_LEVELS, INDEX_SHIFT, KernelRoots, ObjectFlags, VmObject};

use super::finding::{Findings, Updating};
use super::maps::{Entry, Maps};
use super::memory::Memory;

/// A page of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Resident {
    /// Its index.
    pub pindex: u64,
    /// Its number.
    pub pfn: u32,
}

/// A node of an object's index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Node {
    /// Its page number.
    pub pfn: u32,
    /// Its level, 0 for leaves.
    pub level: u32,
    /// The first page index below it.
    pub base: u64,
    /// Slots in use.
    pub used: u32,
}

/// A [`VmObject`], copied, with its pages.
#[derive(Debug)]
pub(super) struct Object {
    pub at: GuestVirt,
    /// What it is called.
    pub name: &'static str,
    /// Whether only maps that somebody was changing lead to it: then it may be no object at all, and is not read.
    pub is_doubtful: bool,
    pub lock_owner: u32,
    pub ref_count: u32,
    pub kind: u32,
    pub flags: ObjectFlags,
    pub size: u64,
    pub resident_page_count: u64,
    pub root: u32,
    pub index_pages: u32,
    pub index_levels: u32,
    /// Its pages, by index.
    pub pages: Vec<Resident>,
    /// The nodes of its index.
    pub nodes: Vec<Node>,
}

impl Object {
    /// Whether it is kernel_object or kmem_object.
    pub(super) fn is_kernels(&self) -> bool {
        self.name != ANONYMOUS
    }

    /// Whether nothing can be said of it: somebody was changing it, or what leads to it.
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
            kind: object.kind.get(),
            flags: object.flags.get(),
            size: object.size.get(),
            resident_page_count: object.resident_page_count.get(),
            root: object.root.get(),
            index_pages: object.index_pages.get(),
            index_levels: object.index_levels.get(),
            pages: Vec::new(),
            nodes: Vec::new(),
        }
    }
}

/// What an object is called that is not the kernel's own.
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
        roots_at: KPtr<KernelRoots>,
        roots: &KernelRoots,
        maps: &Maps,
        findings: &Findings,
    ) -> Self {
        let root = |offset: usize| roots_at.addr().checked_add(offset as u64).unwrap_or_default();
        let kernels = [
            Object::of(root(offset_of!(KernelRoots, kernel_object)), "kernel_object", &roots.kernel_object),
            Object::of(root(offset_of!(KernelRoots, kmem_object)), "kmem_object", &roots.kmem_object),
        ];
        let mut objects = Self { all: kernels.into_iter().map(|object| (object.at, object)).collect() };
        let mut unreadable = HashSet::new();
        // What a map that is still leads to comes first.
        let (updating, still): (Vec<_>, Vec<_>) = maps.all.iter().partition(|map| map.is_updating());
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
        let mut reader = Reader { memory, findings, seen: HashSet::new(), left: memory.ram_pages() };
        objects.all.values_mut().filter(|object| !object.is_doubtful).for_each(|object| reader.read(object));
        objects
    }
}

/// Reads indexes.
struct Reader<'r, 'a> {
    memory: &'r Memory<'a>,
    findings: &'r Findings,
    /// Nodes of all indexes.
    seen: HashSet<u32>,
    /// Pages that may still come: no more than there are.
    left: u64,
}

impl Reader<'_, '_> {
    fn read(&mut self, object: &mut Object) {
        if !(1..=INDEX_LEVELS).contains(&object.index_levels) {
            self.findings.add("object-levels", object.name, object.at, || {
                format!("its index has {} levels, not 1 to {INDEX_LEVELS}", object.index_levels)
            });
            return;
        }
        if object.root != 0 {
            self.visit(object, object.root, object.index_levels - 1, 0);
        }
    }

    fn visit(&mut self, object: &mut Object, pfn: u32, level: u32, base: u64) {
        if !self.seen.insert(pfn) {
            self.findings.add("object-index", object.name, object.at, || {
                format!("two slots lead to node {pfn:#x}, one of them for page index {base:#x}")
            });
            return;
        }
        let page = match self.memory.page("object index node", GuestPhys::from_pfn(pfn.into())) {
            Ok(page) => page,
            Err(error) => return self.findings.unreadable(&error),
        };
        let number = object.nodes.len();
        object.nodes.push(Node { pfn, level, base, used: 0 });
        let mut used = 0;
        for (pair, word) in (0u64..).zip(page) {
            let word = word.load(Ordering::Relaxed);
            if word == 0 {
                continue;
            }
            for (half, below) in [(0, word & u64::from(u32::MAX)), (1, word >> 32)] {
                let Some(below) = u32::try_from(below).ok().filter(|&below| below != 0) else { continue };
                used += 1;
                let pindex = base | (pair * 2 + half) << (INDEX_SHIFT * level);
                if level > 0 {
                    self.visit(object, below, level - 1, pindex);
                } else if let Some(left) = self.left.checked_sub(1) {
                    self.left = left;
                    object.pages.push(Resident { pindex, pfn: below });
                } else {
                    self.findings.add(
                        "object-pages",
                        object.name,
                        object.at,
                        || "objects have more pages than there are",
                    );
                    return;
                }
            }
        }
        object.nodes[number].used = used;
    }
}
