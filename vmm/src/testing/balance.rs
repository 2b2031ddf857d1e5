//! Counters that come back when all is freed.

use vmkern_abi::control::MapId;

use crate::guest::Guest;

/// Counters that come back when everything that was allocated is freed. Take it before, and again
/// after: a leak shows as a difference.
///
/// ```
/// use vmkern::testing::{Balance, Calls as _, TestGuest};
/// use vmkern::{MallocFlags, MapId};
///
/// let mut guest = TestGuest::new();
/// let before = Balance::of(&guest);
/// let addr = guest.kmem_malloc(MapId::KMEM, 8192, MallocFlags::NOWAIT)?.expect("there is room");
/// assert_eq!(Balance::of(&guest).kmem_size, before.kmem_size + 8192);
/// guest.kmem_free(MapId::KMEM, addr, 8192)?;
/// before.assert_back(&guest);
/// # Ok::<(), vmkern::testing::CallError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Balance {
    /// `v_free_count`, in pages.
    pub free: u64,
    /// `v_wire_count`, in pages.
    pub wired: u64,
    /// Entries of kernel_map.
    pub kernel_entries: u64,
    /// Entries of kmem_map.
    pub kmem_entries: u64,
    /// Bytes in use in kmem_map.
    pub kmem_size: u64,
}

impl Balance {
    /// Reads the counters from the guest's memory.
    ///
    /// # Panics
    /// When they cannot be read.
    #[must_use]
    pub fn of(guest: &Guest) -> Self {
        let meter = guest.meter().expect("the counters can be read");
        let map = |id| guest.map_stats(id).expect("the map can be read");
        let (kernel, kmem) = (map(MapId::KERNEL), map(MapId::KMEM));
        Self {
            free: meter.v_free_count.get(),
            wired: meter.v_wire_count.get(),
            kernel_entries: kernel.entries,
            kmem_entries: kmem.entries,
            kmem_size: kmem.size,
        }
    }

    /// Checks that every counter of `guest` is what it was when this balance was taken.
    ///
    /// # Panics
    /// With the counters that differ, when one does.
    #[track_caller]
    pub fn assert_back(&self, guest: &Guest) {
        let differences = self.differences(&Self::of(guest));
        assert!(
            differences.is_empty(),
            "not everything was freed, or more than was allocated: {}; `vmkern inspect` on a dump \
             (`guest.save_dump`) shows what is left",
            differences.join(", ")
        );
    }

    /// What differs `now`, in words.
    fn differences(&self, now: &Self) -> Vec<String> {
        let rows = [
            ("free pages", self.free, now.free),
            ("wired pages", self.wired, now.wired),
            ("entries of kernel_map", self.kernel_entries, now.kernel_entries),
            ("entries of kmem_map", self.kmem_entries, now.kmem_entries),
            ("bytes of kmem_map", self.kmem_size, now.kmem_size),
        ];
        let differ = rows.into_iter().filter(|(_, then, now)| then != now);
        differ.map(|(name, then, now)| format!("{name} {now}, before {then}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_told() {
        let before =
            Balance { free: 10, wired: 5, kernel_entries: 3, kmem_entries: 0, kmem_size: 0 };
        assert!(before.differences(&before).is_empty());
        let after = Balance { free: 9, kmem_size: 4096, ..before };
        assert_eq!(
            before.differences(&after),
            ["free pages 9, before 10", "bytes of kmem_map 4096, before 0"]
        );
    }
}
