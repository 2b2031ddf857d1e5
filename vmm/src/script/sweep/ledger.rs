//! What a guest has at the end of a run: the leak rule.
//!
//! When everything is freed that a script held, the counts are those of a guest that has run
//! nothing, apart from what stays. Page tables stay once they are there, and so do the pages for
//! entries of maps and the slabs of zones; the check accounts for these page by page. So the ledger
//! counts the pages of the other owners. Threads stay with their stacks, and maps that
//! `kmem_suballoc` has made stay: both are subtracted. The entries of `kernel_map` are not counted,
//! because stacks and neighbouring ranges merge as their addresses fall.

use std::collections::BTreeMap;

use vmkern_abi::addr::PAGE_SIZE;
use vmkern_abi::control::MapId;

use crate::Guest;
use crate::inspect::report::{Body, Use};
use crate::inspect::{InspectError, What};

/// Owners whose pages are counted.
const COUNTED: [Use; 5] = [Use::Kernel, Use::Kmem, Use::Anonymous, Use::Kenter, Use::Other];

/// Pages of a thread's stack (`KSTACK_PAGES`), and of the guard below it.
const STACK_PAGES: u64 = 4;
const GUARD_PAGES: u64 = 1;

/// The counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ledger {
    /// Pages by owner, in the order of [`COUNTED`].
    pages: [u64; COUNTED.len()],
    /// Bytes in use and entries, by map.
    maps: BTreeMap<MapId, (u64, u64)>,
    /// Bytes of submaps that the script has made, by parent.
    submaps: BTreeMap<MapId, u64>,
    /// Threads.
    threads: u64,
}

impl Ledger {
    /// The counts of `guest`, whose script has made `submaps`.
    pub fn of(guest: &Guest, submaps: &BTreeMap<MapId, u64>) -> Result<Self, InspectError> {
        let mut ledger = Self { submaps: submaps.clone(), ..Self::default() };
        if let Body::Pages(report) = guest.inspect("", &What::Pages)?.body {
            ledger.pages = COUNTED.map(|kind| report.count(kind));
        }
        for (_, map) in MapId::NAMED {
            if let Ok(stats) = guest.map_stats(map) {
                ledger.maps.insert(map, (stats.size, stats.entries));
            }
        }
        ledger.threads = guest.threads()?.len() as u64;
        Ok(ledger)
    }

    /// The differences of `now` from this, one a line.
    pub fn differences(&self, now: &Self) -> Vec<String> {
        let mut found = Vec::new();
        let mut compare = |what: String, then: u64, now: u64| {
            if then != now {
                found.push(format!("{what}: {now}, and {then} in a fresh guest"));
            }
        };
        // 1. Pages, by owner.
        for (kind, (&then, &pages)) in COUNTED.into_iter().zip(self.pages.iter().zip(&now.pages)) {
            let stacks = |ledger: &Self| match kind {
                Use::Kenter => ledger.threads * STACK_PAGES,
                _ => 0,
            };
            let then = then.saturating_sub(stacks(self));
            compare(kind.words().to_owned(), then, pages.saturating_sub(stacks(now)));
        }
        // 2. Maps, without the stacks and the submaps in them.
        for (map, &(size, entries)) in &self.maps {
            let Some(&(size_now, entries_now)) = now.maps.get(map) else { continue };
            let submaps = |ledger: &Self| ledger.submaps.get(map).copied().unwrap_or(0);
            let stacks = |ledger: &Self| match *map {
                MapId::KERNEL => ledger.threads * (STACK_PAGES + GUARD_PAGES) * PAGE_SIZE,
                _ => 0,
            };
            let own =
                |ledger: &Self, size: u64| size.saturating_sub(submaps(ledger) + stacks(ledger));
            compare(format!("bytes of {map}"), own(self, size), own(now, size_now));
            if *map != MapId::KERNEL && submaps(self) == submaps(now) {
                compare(format!("entries of {map}"), entries, entries_now);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_is_left_is_named_with_its_owner() {
        let reference = Ledger { pages: [10, 20, 0, 4, 0], ..Ledger::default() };
        assert_eq!(reference.differences(&reference.clone()), [""; 0]);
        let now = Ledger { pages: [10, 21, 0, 4, 0], ..Ledger::default() };
        let found = reference.differences(&now);
        assert_eq!(found, ["kmem_object: 21, and 20 in a fresh guest"]);
    }

    #[test]
    fn the_stack_of_a_thread_is_not_a_leak() {
        let with = |threads| Ledger {
            pages: [0, 0, 0, 1 + threads * STACK_PAGES, 0],
            maps: BTreeMap::from([(MapId::KERNEL, ((9 + 5 * threads) * PAGE_SIZE, threads))]),
            threads,
            ..Ledger::default()
        };
        assert_eq!(with(3).differences(&with(5)), [""; 0]);
        let leaked = Ledger { threads: 4, ..with(5) };
        assert_eq!(with(3).differences(&leaked).len(), 2);
    }

    #[test]
    fn a_submap_that_was_not_made_is_not_a_leak() {
        let with = |size, submap| Ledger {
            maps: BTreeMap::from([(MapId::KERNEL, (size, 7))]),
            submaps: BTreeMap::from([(MapId::KERNEL, submap)]),
            ..Ledger::default()
        };
        assert_eq!(with(100, 40).differences(&with(60, 0)), [""; 0]);
        assert_eq!(with(100, 40).differences(&with(61, 0)).len(), 1);
    }
}
