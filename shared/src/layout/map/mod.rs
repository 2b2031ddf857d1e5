//! `vm_map`, `vm_map_entry` and the nodes of a map's index.
//!
//! A map is a circular list of entries through its header, in the order of addresses, and a B+-tree
//! over the same entries ([`MapNode`]). The two agree whenever the map's lock is free.

mod node;
mod pool;

use core::fmt::{self, Write as _};

use bitflags::bitflags;
use zerocopy::{FromBytes, IntoBytes, KnownLayout};

pub use self::node::MapNode;
pub use self::pool::{MapHome, MapPool, PoolPage};
use super::lock::{Mtx, Sx};
use super::object::VmObject;
use crate::addr::{GuestPhys, GuestVirt, KPtr};
use crate::field::{Field, Flag};
use crate::flags_word;

bitflags! {
    /// Flags of a map entry (`MAP_ENTRY_*`), with FreeBSD's values.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct EntryFlags: u32 {
        /// The object is a map.
        const IS_SUB_MAP = 0x0002;
        /// Copy on write.
        const COW = 0x0004;
        /// A fault inside is a panic.
        const NOFAULT = 0x0010;
        /// Being wired or unwired: it is neither clipped away, merged, nor deleted.
        const IN_TRANSITION = 0x0100;
        /// A thread waits for the end of the transition.
        const NEEDS_WAKEUP = 0x0200;
        /// In transition because it is being deleted: it only prevents reuse of its addresses until
        /// no CPU caches their translations. Not one of FreeBSD's.
        const DELETING = 0x0800;
    }
}

impl EntryFlags {
    /// The flags that an entry has only during an operation on it.
    pub const PASSING: Self = Self::IN_TRANSITION.union(Self::NEEDS_WAKEUP).union(Self::DELETING);
}

bitflags! {
    /// What may be done to a page (`VM_PROT_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct Protection: u8 {
        /// Read.
        const READ = 1;
        /// Write.
        const WRITE = 2;
        /// Execute.
        const EXECUTE = 4;
        /// All three.
        const ALL = 7;
    }
}

impl fmt::Display for Protection {
    /// As `rwx`, with `-` for each access that is not allowed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (access, letter) in [(Self::READ, 'r'), (Self::WRITE, 'w'), (Self::EXECUTE, 'x')] {
            f.write_char(if self.contains(access) { letter } else { '-' })?;
        }
        Ok(())
    }
}

flags_word!(EntryFlags, u32);
flags_word!(Protection, u8);

/// A range of a map: `[start, end)`, page aligned, all of one kind. Guarded by the map's lock.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct VmMapEntry {
    /// The entry below, or the map's header.
    pub prev: Field<KPtr<VmMapEntry>>,
    /// The entry above, or the map's header.
    pub next: Field<KPtr<VmMapEntry>>,
    /// First address.
    pub start: Field<GuestVirt>,
    /// First address past the range.
    pub end: Field<GuestVirt>,
    /// The object behind the range, or with [`EntryFlags::IS_SUB_MAP`] the submap (a
    /// `KPtr<VmMap>`), or null.
    pub object: Field<KPtr<VmObject>>,
    /// Offset in the object, in bytes, of the byte at `start`.
    pub offset: Field<u64>,
    /// Flags.
    pub eflags: Field<EntryFlags>,
    /// How often it is wired; [`VmMapEntry::WIRE_FAILED`] while a wiring that failed is undone.
    pub wired_count: Field<u32>,
    /// The accesses that are allowed now.
    pub protection: Field<Protection>,
    /// The most that may be allowed.
    pub max_protection: Field<Protection>,
    /// SHARE 0, COPY 1 (the default), NONE 2.
    pub inheritance: Field<u8>,
    #[doc(hidden)]
    pub _pad: Field<u8>,
    /// Number of the thread that deletes it plus 1, with [`EntryFlags::DELETING`]; else 0.
    pub deleter: Field<u32>,
}

impl VmMapEntry {
    /// [`VmMapEntry::wired_count`] of an entry whose wiring failed (FreeBSD's -1).
    pub const WIRE_FAILED: u32 = u32::MAX;
    /// `VM_INHERIT_DEFAULT`.
    pub const INHERIT_DEFAULT: u8 = 1;

    /// Bytes from `start` to `end`.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.end.get().since(self.start.get())
    }

    /// Whether the range is empty. Only a header's range is, and only in a map of size zero.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start.get() == self.end.get()
    }
}

const _: () = assert!(size_of::<VmMapEntry>() == 64);
const _: () = assert!(core::mem::offset_of!(VmMapEntry, object) == 32);
const _: () = assert!(core::mem::offset_of!(VmMapEntry, eflags) == 48);
const _: () = assert!(core::mem::offset_of!(VmMapEntry, protection) == 56);
const _: () = assert!(core::mem::offset_of!(VmMapEntry, deleter) == 60);

/// The B+-tree over a map's entries. Guarded by the map's lock. All zero means no tree: creating
/// the map makes the first node, which holds the header alone.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct MapIndex {
    /// The root node.
    pub root: Field<KPtr<MapNode>>,
    /// Levels of nodes, 1 while the root is a leaf.
    pub height: Field<u32>,
    #[doc(hidden)]
    pub _pad: Field<u32>,
    /// Nodes in the tree.
    pub nodes: Field<u64>,
}

/// The entries and nodes that a map owns, in use and in reserve, so a change of the map never has
/// to allocate. Guarded by the map's lock.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct MapReserve {
    /// The map itself, at the start of its home.
    pub home: Field<KPtr<MapHome>>,
    /// The entries.
    pub entries: MapPool,
    /// The index nodes.
    pub nodes: MapPool,
    /// Nodes that have left the tree but not yet the pool, linked by [`MapNode::spare_next`]; null
    /// between changes.
    pub unlinked: Field<KPtr<MapNode>>,
    /// Credits: merges of entries without an object that were not split again. This many entries
    /// are kept in reserve, because freeing such a range returns no page from which an entry could
    /// be made.
    pub credits: Field<u64>,
    /// Pages of entries without an object, submaps and the kernel image excluded: an upper bound of
    /// the credits that can be used.
    pub plain_pages: Field<u64>,
}

/// A map: the allocations of a part of the address space. Lives in the direct map, at the start of
/// its home ([`MapHome`]).
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct VmMap {
    /// Head of the list of entries. Its `start` is `min_offset` and its `end` is `max_offset`, for
    /// the map's life.
    pub header: VmMapEntry,
    /// Entries, the header not counted.
    pub nentries: Field<u64>,
    /// Bytes of all entries: bytes in use, not the capacity.
    pub size: Field<u64>,
    /// The lock of a system map.
    pub lock: Mtx,
    /// Exclusive acquisitions of the lock, modulo 2^32.
    pub timestamp: Field<u32>,
    /// Set when a thread sleeps in `kmem_alloc_wait`.
    pub needs_wakeup: Field<Flag>,
    /// Set for a system map: its lock is a mutex, and entries without an object never get one.
    pub system_map: Field<Flag>,
    /// Physical address of the pmap's root page table.
    pub pmap: Field<GuestPhys>,
    /// The tree over the entries.
    pub index: MapIndex,
    /// The entries and nodes from which changes are made.
    pub reserve: MapReserve,
    /// The map made before this one, or null: the list that begins at
    /// [`super::KernelRoots::map_list`].
    pub next_map: Field<KPtr<VmMap>>,
    /// The lock of a map that is not a system map.
    pub sx: Sx,
}

impl VmMap {
    /// First address of the map.
    #[must_use]
    pub fn min_offset(&self) -> GuestVirt {
        self.header.start.get()
    }

    /// First address past the map.
    #[must_use]
    pub fn max_offset(&self) -> GuestVirt {
        self.header.end.get()
    }
}

const _: () = assert!(size_of::<VmMap>() == 256);
const _: () = assert!(core::mem::offset_of!(VmMap, header) == 0);
const _: () = assert!(core::mem::offset_of!(VmMap, nentries) == 64);
const _: () = assert!(core::mem::offset_of!(VmMap, index) == 104);
const _: () = assert!(core::mem::offset_of!(VmMap, reserve) == 128);
