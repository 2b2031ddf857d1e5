//! Maps (`vm_map.c`): which ranges of the kernel's address space are taken, and by what.
//!
//! A [`VmMap`] keeps its entries twice: in a circular list through its header, in the order of
//! addresses, and in an [`index`], which finds an address or a gap in logarithmic time. An
//! operation changes both or none.
//!
//! **Protocol.** Every function here that takes a map needs its lock ([`Map::vm_map_lock`]), unless
//! it says that it takes the lock itself. Entries and index nodes come from the map's reserve
//! ([`mod@reserve`]), which is filled before a change begins; [`Map::vm_map_findspace`] allocates
//! page-table pages for kernel_map. A shortage therefore shows before anything has changed, and a
//! free needs nothing that could be short.
//!
//! A system map is locked by a mutex, any other map by an sx lock, which may be held across a
//! sleep. An entry that a thread works on while the map is unlocked is marked in transition: no
//! other thread merges, cuts away or deletes it, and a thread that wants to waits for the end of
//! the transition (`vm_map_unlock_and_wait`). After any wait the map may have changed.
//!
//! When an entry leaves, another one may move to its place ([`mod@pool`]): a pointer to an entry is
//! valid until the next entry leaves, or the map is unlocked. The functions that remove entries
//! return the new place of the entry that matters.

mod check;
mod clip;
mod delete;
mod find;
mod guard;
pub mod index;
mod insert;
mod lookup;
mod merge;
pub mod pool;
mod protect;
pub mod reserve;
mod space;
mod submap;
#[cfg(test)]
mod tests;
mod transition;
mod unwire;

use core::mem::offset_of;
use core::ops::Deref;

use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::layout::{EntryFlags, PageFlags, Protection, Sx, VmMap, VmMapEntry, VmObject};

pub use self::lookup::{Allowed, FaultPlace};
pub use self::space::{FindSpace, NoRange};
pub(in crate::vm) use self::transition::Begun;
use super::page::Shortage;
use super::phys::phys_of;
use super::pmap::Pmap;
use crate::kern::guard::{Guard, Lock};
use crate::kern::lock::LockClass;
use crate::kern::queue::{PointerSList, Pointers, pointer_links};
use crate::kern::sched::PVM;
use crate::kern::sleepq::WaitChannel;
use crate::kern::synch::{Relock, Sleep};
use crate::machine::Machine;
use crate::queue::Circular;

/// The contents of a new entry, for [`Map::vm_map_insert`]. The entry takes over one reference to
/// the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntrySpec {
    /// The object, or null.
    pub object: KPtr<VmObject>,
    /// Offset in the object, in bytes, of the entry's start.
    pub offset: u64,
    /// The accesses that are allowed now.
    pub protection: Protection,
    /// The most that may be allowed.
    pub max_protection: Protection,
    /// The effect of a fault inside it.
    pub on_fault: OnFault,
}

/// The effect of a fault inside an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFault {
    /// `vm_fault` provides the page.
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

    /// The entry flags for these arguments.
    fn eflags(&self) -> EntryFlags {
        match self.on_fault {
            OnFault::Resolve => EntryFlags::empty(),
            OnFault::Panic => EntryFlags::NOFAULT,
        }
    }
}

/// The place of an address among a map's entries.
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

pointer_links! {
    /// The entries of a map, in the order of addresses.
    EntryLinks: VmMapEntry { next: next, prev: prev }
    /// All maps.
    MapListLinks: VmMap { next: next_map }
}

/// The kind of the interlock of waits for maps.
enum MapSleepLock {}

impl Lock for MapSleepLock {
    const CLASS: LockClass = LockClass::MapSleep;
}

/// The interlock of waits for maps, and the list of all maps, locked.
type MapSleep<'a, M> = Guard<'a, M, MapSleepLock>;

/// Maps, over the page tables into which they are entered: the layer below [`crate::vm::Vm`].
#[derive(Debug)]
pub struct Map<M> {
    pmap: Pmap<M>,
}

impl<M> Deref for Map<M> {
    type Target = Pmap<M>;

    #[inline]
    fn deref(&self) -> &Pmap<M> {
        &self.pmap
    }
}

impl<M: Machine> Map<M> {
    /// Maps over `pmap`, none so far.
    pub(in crate::vm) const fn new(pmap: Pmap<M>) -> Self {
        Self { pmap }
    }

    /// Makes an empty map of `[min, max)`, page aligned, `min <= max`, of at most
    /// [`vmkern_abi::layout::MapNode::MAX_PAGES`] pages, on the kernel's pmap (`vm_map_create`). It
    /// is not a system map until the caller sets `system_map`, before the first use. Locks: takes
    /// `map_sleep_mtx`, which guards the list of all maps.
    ///
    /// # Errors
    /// [`Shortage`] when there is no page for the map.
    pub fn vm_map_create(&self, min: GuestVirt, max: GuestVirt) -> Result<KPtr<VmMap>, Shortage> {
        let map = self.map_home_alloc()?;
        let m = self.get(map);
        m.header.start.set(min);
        m.header.end.set(max);
        self.map_entries().init(header(map));
        m.pmap.set(self.state().kernel_pmap.pml4.get());
        self.map_nodes(m).index().create(header(map));
        self.map_publish(map);
        Ok(map)
    }

    /// The lists of entries of all maps.
    #[inline]
    fn map_entries(&self) -> Circular<Pointers<'_, M, EntryLinks>> {
        Circular::new(self.links())
    }

    /// All maps, the youngest first.
    fn map_list(&self) -> PointerSList<'_, M, MapListLinks> {
        self.slist(&self.state().map_list)
    }

    /// Puts `map` at the head of the list of all maps, and marks its page as one. Who only reads
    /// the list or the mark needs no lock: a map that is found there is whole, and stays.
    fn map_publish(&self, map: KPtr<VmMap>) {
        let _sleep = self.map_sleep();
        self.map_list().publish_head(map);
        if let Some(home) = phys_of(map).and_then(|pa| self.phys_to_vm_page(pa)) {
            self.page(home).flags.update_locked(|flags| flags | PageFlags::MAP_HOME);
        }
    }

    /// Acquires the interlock of waits for maps (`map_sleep_mtx`), which also guards the list of
    /// all maps.
    fn map_sleep(&self) -> MapSleep<'_, M> {
        self.mtx_guard(&self.state().map_sleep_mtx)
    }

    /// Acquires the map's lock for changes (`vm_map_lock`). May sleep, unless the map is a system
    /// map.
    pub fn vm_map_lock(&self, map: KPtr<VmMap>) {
        self.vm_map_lock_read(map);
        self.get(map).timestamp.update_locked(|timestamp| timestamp.wrapping_add(1));
    }

    /// Acquires the map's lock for look-ups (`vm_map_lock_read`): the same exclusive lock, but no
    /// new timestamp.
    pub fn vm_map_lock_read(&self, map: KPtr<VmMap>) {
        let m = self.get(map);
        if m.system_map.is_set() {
            self.mtx_lock(LockClass::Map, &m.lock.owner);
        } else {
            self.sx_xlock(map_sx(map), "user map");
        }
    }

    /// Acquires the lock of a map that is not a system map for look-ups, unless a thread owns it
    /// (`vm_map_trylock_read`). Returns whether it did. Never sleeps.
    #[must_use]
    pub(in crate::vm) fn vm_map_trylock_read(&self, map: KPtr<VmMap>) -> bool {
        self.sx_try_xlock(map_sx(map))
    }

    /// Releases the map's lock (`vm_map_unlock`, `vm_map_unlock_read`), after it has brought the
    /// map's reserve to its rules.
    pub fn vm_map_unlock(&self, map: KPtr<VmMap>) {
        let m = self.get(map);
        self.map_settle(m);
        if m.system_map.is_set() {
            self.mtx_unlock(LockClass::Map, &m.lock.owner);
        } else {
            self.sx_xunlock(map_sx(map));
        }
    }

    /// Releases the map's lock and sleeps until [`Map::vm_map_wakeup`] (`vm_map_unlock_and_wait`
    /// without a time-out). The map is unlocked afterwards, and may have changed in any way.
    pub(super) fn vm_map_unlock_and_wait(&self, map: KPtr<VmMap>) {
        let sleep = self.map_sleep();
        // A thread that changes the map from here on finds the interlock owned until this thread
        // sleeps.
        self.vm_map_unlock(map);
        // Room may have been freed, and taken by others that were woken at the same time.
        let (Sleep::Woken | Sleep::TimedOut) =
            self.msleep(map_channel(map), sleep.hand_over(), PVM, "vmmaps", 0, Relock::Drop);
    }

    /// Wakes all threads that sleep in [`Map::vm_map_unlock_and_wait`] for this map
    /// (`vm_map_wakeup`). The map may be locked or not.
    pub(super) fn vm_map_wakeup(&self, map: KPtr<VmMap>) {
        // A thread that has unlocked the map to sleep holds this lock until it sleeps.
        drop(self.map_sleep());
        self.wakeup(map_channel(map));
    }

    /// The map's entries in the order of addresses.
    pub fn vm_map_entries(&self, map: KPtr<VmMap>) -> impl Iterator<Item = KPtr<VmMapEntry>> {
        let next = move |entry: KPtr<VmMapEntry>| {
            Some(self.get(entry).next.get()).filter(|&e| e != header(map))
        };
        core::iter::successors(next(header(map)), move |&entry| next(entry))
    }

    /// Confines `[start, end)` to the map, without an error (`VM_MAP_RANGE_CHECK`). An empty result
    /// is at the end.
    fn map_range_clamp(
        &self,
        map: &VmMap,
        start: GuestVirt,
        end: GuestVirt,
    ) -> (GuestVirt, GuestVirt) {
        let (start, end) = (start.max(map.min_offset()), end.min(map.max_offset()));
        (start.min(end), end)
    }

    /// Waits, with the map unlocked, until the thread that works on `entry` is done. The map is
    /// locked again afterwards, but may have changed in any way.
    fn map_wait_for_transition(&self, map: KPtr<VmMap>, entry: KPtr<VmMapEntry>) {
        self.get(entry).eflags.update_locked(|eflags| eflags | EntryFlags::NEEDS_WAKEUP);
        // The map may change in any way, and `entry` may be gone or elsewhere.
        self.vm_map_unlock_and_wait(map);
        self.vm_map_lock(map);
    }
}

/// The channel of threads that wait for a map (FreeBSD's `&map->root`).
fn map_channel(map: KPtr<VmMap>) -> WaitChannel {
    WaitChannel::from(map.addr().add(offset_of!(VmMap, index) as u64))
}

/// The lock of a map that is not a system map.
fn map_sx(map: KPtr<VmMap>) -> KPtr<Sx> {
    KPtr::new(map.addr().add(offset_of!(VmMap, sx) as u64))
}
