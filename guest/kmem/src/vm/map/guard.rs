//! Locked maps, as values: dropping one releases the lock.
//!
//! They are for functions that hold the lock to their end, or to one of many early returns. A
//! function that unlocks the map in between, to wait for pages, room or a transition, calls
//! [`Map::vm_map_lock`] and [`Map::vm_map_unlock`], as FreeBSD does; functions that are called
//! under such a guard use them in reverse order: unlock, then lock. The rules for panics in
//! [`crate::kern::guard`] hold here too.

use vmkern_abi::addr::KPtr;
use vmkern_abi::layout::VmMap;

use super::Map;
use crate::machine::Machine;

/// A map, locked.
#[must_use = "the lock is released when its guard is dropped"]
pub(in crate::vm) struct LockedMap<'a, M: Machine> {
    maps: &'a Map<M>,
    map: KPtr<VmMap>,
    /// Whether it was made while a panic was unwinding.
    in_unwinding: bool,
}

impl<M: Machine> LockedMap<'_, M> {
    /// Leaves the map locked: the caller passes it on to be unlocked.
    pub(super) fn leave_locked(self) {
        core::mem::forget(self);
    }
}

impl<M: Machine> Drop for LockedMap<'_, M> {
    fn drop(&mut self) {
        if self.in_unwinding || !self.maps.machine().is_unwinding() {
            self.maps.vm_map_unlock(self.map);
        }
    }
}

impl<M: Machine> Map<M> {
    /// Acquires the map's lock as [`Map::vm_map_lock`] does, until the guard is dropped.
    pub(in crate::vm) fn vm_map_locked(&self, map: KPtr<VmMap>) -> LockedMap<'_, M> {
        self.vm_map_lock(map);
        self.map_guard(map)
    }

    /// Acquires the map's lock as [`Map::vm_map_lock_read`] does, until the guard is dropped.
    pub(super) fn vm_map_locked_read(&self, map: KPtr<VmMap>) -> LockedMap<'_, M> {
        self.vm_map_lock_read(map);
        self.map_guard(map)
    }

    /// The guard of `map`, whose lock the running thread has just acquired.
    fn map_guard(&self, map: KPtr<VmMap>) -> LockedMap<'_, M> {
        LockedMap { maps: self, map, in_unwinding: self.machine().is_unwinding() }
    }
}
