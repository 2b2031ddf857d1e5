//! Maps (`vm_map.c`): which ranges of the kernel's address space are taken, and by what.
//!
//! A [`VmMap`] keeps its entries twice: in a circular list through its header, in the order of addresses, and in an
//! [`index`], which finds an address or a gap in logarithmic time. An operation changes both or none.
//!
//! **Protocol.** Every function here that takes a map needs its lock ([`Vm::vm_map_lock`]), unless it says that it
//! takes the lock itself. Entries and index nodes come from the map's reserve ([`mod@reserve`]), which is filled before
//! a change begins; page-table pages for kernel_map are made by [`Vm::vm_map_findspace`]. A shortage therefore shows
//! before anything has changed, and giving a range back needs nothing that could be short.
//!
//! An entry that leaves lets another one move to its place ([`mod@pool`]): a pointer to an entry is good until the next
//! entry leaves. The functions that make entries leave give back where the one that matters is then.
//!
//! There is one thread so far. Where FreeBSD would wait for another thread's work on an entry, nobody can be at work,
//! and a panic says so.

mod check;
mod clip;
mod delete;
pub mod index;
mod insert;
mod lookup;
pub mod pool;
pub mod reserve;
mod space;
mod submap;
#[cfg(test)]
mod tests;
mod wire;

use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::layout::{EntryFlags, Protection, VmMap, VmMapEntry, VmObject};

pub use self::lookup::FaultPlace;
pub use self::space::FindSpace;
use super::{Shortage, Vm};
use crate::kern::lock::LockClass;
use crate::machine::Machine;

/// What [`Vm::vm_map_insert`] makes an entry of. The entry takes over one reference to the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntrySpec {
    /// The object, or null.
    pub object: KPtr<VmObject>,
    /// Byte of the object at the entry's start.
    pub offset: u64,
    /// What is allowed.
    pub protection: Protection,
    /// What can be allowed.
    pub max_protection: Protection,
    /// What a fault inside means.
    pub on_fault: OnFault,
}

/// What a fault inside an entry means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFault {
    /// `vm_fault` brings the page.
    Resolve,
    /// It is a panic (`MAP_NOFAULT`).
    Panic,
}

impl EntrySpec {
    /// A range without an object, in which a fault is a panic.
    pub const NOFAULT: Self = Self { on_fault: OnFault::Panic, ..Self::EMPTY };

    /// A range without an object.
    pub const EMPTY: Self = Self {
        object: KPtr::NULL,
        offset: 0,
        protection: Protection::ALL,
        max_protection: Protection::ALL,
        on_fault: OnFault::Resolve,
    };

    /// A range of `object` from byte `offset` on.
    #[must_use]
    pub const fn object(object: KPtr<VmObject>, offset: u64) -> Self {
        Self { object, offset, ..Self::EMPTY }
    }

    /// The entry flags that these arguments ask for.
    fn eflags(&self) -> EntryFlags {
        match self.on_fault {
            OnFault::Resolve => EntryFlags::empty(),
            OnFault::Panic => EntryFlags::NOFAULT,
        }
    }
}

/// Where an address stands among a map's entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Inside this entry.
    Inside(KPtr<VmMapEntry>),
    /// In the gap after this entry, or after the map's header.
    After(KPtr<VmMapEntry>),
}

/// The map's header, as the entry that the list begins and ends with.
#[must_use]
pub const fn header(map: KPtr<VmMap>) -> KPtr<VmMapEntry> {
    KPtr::new(map.addr())
}

impl<M: Machine> Vm<M> {
    /// Makes an empty map of `[min, max)`, page aligned, `min <= max`, of at most
    /// [`vmkern_abi::layout::MapNode::MAX_PAGES`] pages, on the kernel's pmap (`vm_map_create`). It is not a system map
    /// until its maker sets `system_map`, before first use. Takes no lock.
    ///
    /// # Errors
    /// [`Shortage`] when there is no page for the map.
    pub fn vm_map_create(&self, min: GuestVirt, max: GuestVirt) -> Result<KPtr<VmMap>, Shortage> {
        let map = self.map_home_alloc()?;
        let m = self.get(map);
        m.header.start.set(min);
        m.header.end.set(max);
        m.header.prev.set(header(map));
        m.header.next.set(header(map));
        m.pmap.set(self.state().kernel_pmap.pml4.get());
        self.map_nodes(m).index().create(header(map));
        Ok(map)
    }

    /// Acquires the map's lock for changes (`vm_map_lock`).
    pub fn vm_map_lock(&self, map: KPtr<VmMap>) {
        let m = self.get(map);
        self.mtx_lock(LockClass::Map, &m.lock.owner);
        m.timestamp.update(|timestamp| timestamp.wrapping_add(1));
    }

    /// Acquires the map's lock for look-ups (`vm_map_lock_read`): the same lock, but no new timestamp.
    pub fn vm_map_lock_read(&self, map: KPtr<VmMap>) {
        self.mtx_lock(LockClass::Map, &self.get(map).lock.owner);
    }

    /// Releases the map's lock (`vm_map_unlock`, `vm_map_unlock_read`). The map's reserve is as its rules say then.
    pub fn vm_map_unlock(&self, map: KPtr<VmMap>) {
        let m = self.get(map);
        self.map_settle(m);
        self.mtx_unlock(LockClass::Map, &m.lock.owner);
    }

    /// The map's entries in the order of addresses.
    pub fn vm_map_entries(&self, map: KPtr<VmMap>) -> impl Iterator<Item = KPtr<VmMapEntry>> {
        let next = move |entry: KPtr<VmMapEntry>| Some(self.get(entry).next.get()).filter(|&e| e != header(map));
        core::iter::successors(next(header(map)), move |&entry| next(entry))
    }

    /// Confines `[start, end)` to the map, silently (`VM_MAP_RANGE_CHECK`). An empty result is at the end.
    fn map_range_clamp(&self, map: &VmMap, start: GuestVirt, end: GuestVirt) -> (GuestVirt, GuestVirt) {
        let (start, end) = (start.max(map.min_offset()), end.min(map.max_offset()));
        (start.min(end), end)
    }

    /// Stops where FreeBSD would sleep until another thread is done with `entry` (`vm_map_unlock_and_wait`).
    fn map_wait_for_transition(&self, entry: &VmMapEntry) -> ! {
        let (start, end) = (entry.start.get(), entry.end.get());
        self.would_sleep(format_args!("vm_map: entry {start}..{end} is in transition"), "vmmaps")
    }
}
