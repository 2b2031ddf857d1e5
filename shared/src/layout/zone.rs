//! Zones of equal items: one table defines their numbers, their names, and the size of their items.
//! Also the layout of a zone's slabs.
//!
//! A slab is a page: a [`SlabHeader`], then items one behind the other.

use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use super::eventhandler::{EventhandlerEntry, EventhandlerList, StoredOp};
use super::lock::Mtx;
use super::object::VmObject;
use super::pcpu::Pcpu;
use super::thread::{SleepQueue, Thread};
use crate::addr::{GuestVirt, KPtr, PAGE_SIZE};
use crate::codes::codes;
use crate::field::{Atomics, Code, Field};

/// A type with a zone of its own.
pub trait ZoneItem: FromBytes + Atomics {
    /// Its zone.
    const ZONE: Zone;
}

/// Makes [`Zone`] and the [`ZoneItem`]s from the table of zones. A row is
/// `Zone = NUMBER => "item": Type`.
macro_rules! zones {
    ($($(#[doc = $doc:literal])* $zone:ident = $number:literal => $name:literal: $item:ty,)+) => {
        codes! {
            /// The zones. `name` is the name of an item.
            pub enum Zone: u32 {
                $($(#[doc = $doc])* $zone = $number => $name,)+
            }
        }

        impl Zone {
            /// Bytes of the type of its items.
            const fn bytes(self) -> usize {
                match self {
                    $(Self::$zone => size_of::<$item>(),)+
                }
            }
        }

        $(impl ZoneItem for $item {
            const ZONE: Zone = Zone::$zone;
        })+
    };
}

zones! {
    /// Objects.
    Object = 0 => "vm_object": VmObject,
    /// Lists of event handlers.
    EventList = 1 => "event": EventhandlerList,
    /// Event handlers.
    EventHandler = 2 => "event handler": EventhandlerEntry,
    /// Stored operations.
    StoredOp = 3 => "stored operation": StoredOp,
    /// Threads.
    Thread = 4 => "thread": Thread,
    /// Sleep queues.
    SleepQueue = 5 => "sleep queue": SleepQueue,
    /// CPUs.
    Cpu = 6 => "CPU": Pcpu,
}

/// The number of zones.
pub const ZONE_COUNT: usize = Zone::ALL.len();

/// Bytes of a slab's header, and of the unit of item sizes: a cache line.
const LINE: usize = size_of::<SlabHeader>();

impl Zone {
    /// Its index in [`super::KernelRoots::zones`].
    #[must_use]
    #[inline]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Bytes of an item, a multiple of 64.
    #[must_use]
    pub const fn item_size(self) -> u64 {
        self.bytes().next_multiple_of(LINE) as u64
    }

    /// Items of a slab.
    #[must_use]
    pub const fn items_per_slab(self) -> u64 {
        (PAGE_SIZE - LINE as u64) / self.item_size()
    }

    /// Whether an item can begin at `at`.
    #[must_use]
    pub fn fits(self, at: GuestVirt) -> bool {
        let (offset, header) = (at.page_offset(), LINE as u64);
        offset >= header
            && (offset - header).is_multiple_of(self.item_size())
            && offset + self.item_size() <= PAGE_SIZE
    }

    /// The start of the item that contains `at`, if any does.
    #[must_use]
    pub fn item_around(self, at: GuestVirt) -> GuestVirt {
        let offset = at.page_offset().saturating_sub(LINE as u64);
        at.page().add(LINE as u64 + offset - offset % self.item_size())
    }
}

// The numbers are indexes.
const _: () = {
    let mut index = 0;
    while index < ZONE_COUNT {
        assert!(Zone::ALL[index].index() == index);
        index += 1;
    }
};

/// First line of a slab: one page of equal items.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct SlabHeader {
    /// The next slab with free items.
    pub next: Field<KPtr<SlabHeader>>,
    /// The slab before it.
    pub prev: Field<KPtr<SlabHeader>>,
    /// Its first free item.
    pub free: Field<KPtr<SlabItem>>,
    /// Its free items.
    pub free_count: Field<u32>,
    /// The zone.
    pub zone: Field<Code<Zone>>,
    #[doc(hidden)]
    pub _pad: [Field<u64>; 4],
}

const _: () = assert!(size_of::<SlabHeader>() == 64);

/// A free item of a slab.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct SlabItem {
    /// The next free item of the same slab.
    pub next: Field<KPtr<SlabItem>>,
}

/// A zone of equal items in slabs of the direct map.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct SlabZone {
    /// Guards the zone and its slabs.
    pub lock: Mtx,
    /// Bytes of an item, a multiple of 64.
    pub item_size: Field<u32>,
    /// The first slab that has free items.
    pub partial: Field<KPtr<SlabHeader>>,
    /// Slabs.
    pub slabs: Field<u64>,
    /// Free items.
    pub free: Field<u64>,
    /// Items handed out.
    pub used: Field<u64>,
}
