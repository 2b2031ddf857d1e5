//! What a script holds: the results of its allocations that it has not freed.
//!
//! Addresses are those of whole pages. A range that the script has handed to a handler of the
//! vm_lowmem event may be freed at any time: the script cannot use it any more, and the sweep frees
//! it again at the end, which does nothing for a range that is free.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use vmkern_abi::addr::{GuestVirt, PAGE_SIZE, round_page};
use vmkern_abi::control::{Context, MallocFlags, MapId, Op, Outcome};

/// The pages of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pages {
    /// They are there, or come at the first touch.
    There,
    /// `pmap_qenter` brings them.
    Entered,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    map: MapId,
    end: u64,
    pages: Pages,
}

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Holdings {
    /// Ranges by their starts.
    ranges: BTreeMap<u64, Held>,
    /// Pages that `pmap_qenter` has mapped.
    entered: BTreeSet<u64>,
    /// Ranges that do not allow every access.
    restricted: Vec<Range<u64>>,
    /// Ranges that a handler frees.
    promised: Vec<(MapId, Range<u64>)>,
    /// Known contents: the pattern of a seed, or zeros.
    contents: Vec<(Range<u64>, Option<u64>)>,
    /// Maps in which handlers allocate, at addresses that nobody knows, with their ends.
    shared: BTreeMap<MapId, Range<u64>>,
    /// Bytes of submaps by their parents.
    pub submaps: BTreeMap<MapId, u64>,
}

/// The pages that `[addr, addr + size)` touches; `None` if it wraps.
fn pages(addr: GuestVirt, size: u64) -> Option<Range<u64>> {
    let end = addr.checked_add(size).and_then(|end| round_page(end.get()))?;
    Some(addr.page().get()..end)
}

/// The bytes `[addr, addr + size)`, if they do not wrap.
fn bytes(addr: GuestVirt, size: u64) -> Option<Range<u64>> {
    addr.checked_add(size).map(|end| addr.get()..end.get())
}

fn meet(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

impl Holdings {
    /// Notes that `op` has ended with `outcome` in `context`.
    pub fn note(&mut self, context: Context, op: &Op, outcome: Outcome) {
        // 1. A handler will do it, some time.
        if context == Context::Lowmem {
            if let Op::KmemFree { map, addr, size } | Op::KmemFreeWakeup { map, addr, size } = *op
                && let Some(range) = pages(addr, size)
            {
                self.forget(&range);
                self.promised.push((map, range));
            }
            return;
        }
        // 2. Ranges come and go.
        match (*op, outcome) {
            (Op::KmemAlloc { map, size } | Op::KmemAllocWait { map, size }, Outcome::Value(at)) => {
                self.take(map, at, size, Pages::There);
                self.contents.extend(bytes(GuestVirt::new(at), size).map(|range| (range, None)));
            }
            (Op::KmemMalloc { map, size, flags }, Outcome::Value(at)) => {
                self.take(map, at, size, Pages::There);
                if flags.contains(MallocFlags::ZERO) {
                    let range = bytes(GuestVirt::new(at), size);
                    self.contents.extend(range.map(|range| (range, None)));
                }
            }
            (Op::KmemAllocNofault { map, size }, Outcome::Value(at)) => {
                self.take(map, at, size, Pages::Entered);
            }
            (Op::KmemSuballoc { parent, size, .. }, Outcome::Value(_)) => {
                *self.submaps.entry(parent).or_default() += round_page(size).unwrap_or(0);
            }
            (
                Op::KmemFree { addr, size, .. } | Op::KmemFreeWakeup { addr, size, .. },
                Outcome::Ok | Outcome::Blocked { .. },
            ) => {
                if let Some(range) = pages(addr, size) {
                    self.forget(&range);
                }
            }
            // 3. Others change them.
            _ => self.note_change(op, outcome),
        }
    }

    /// Notes what changes mappings or contents.
    fn note_change(&mut self, op: &Op, outcome: Outcome) {
        match *op {
            Op::PmapQenter { addr, count } if outcome == Outcome::Ok => {
                self.entered.extend(whole(addr, count));
                self.changed(addr, count.saturating_mul(PAGE_SIZE));
            }
            Op::PmapQremove { addr, count } => {
                whole(addr, count).for_each(|page| {
                    self.entered.remove(&page);
                });
            }
            Op::Protect { addr, size, protection, .. } if outcome == Outcome::Ok => {
                let Some(range) = pages(addr, size) else { return };
                self.restricted.retain(|old| !(range.start <= old.start && old.end <= range.end));
                if !protection.contains(vmkern_abi::layout::Protection::WRITE) {
                    self.restricted.push(range);
                }
            }
            Op::Write { addr, .. } => self.changed(addr, 8),
            Op::Fill { addr, size, seed } => {
                self.changed(addr, size);
                if outcome == Outcome::Ok {
                    self.contents.extend(bytes(addr, size).map(|range| (range, Some(seed))));
                }
            }
            _ => {}
        }
    }

    fn take(&mut self, map: MapId, start: u64, size: u64, pages: Pages) {
        if let Some(size) = round_page(size).filter(|&size| size != 0) {
            let end = start.saturating_add(size);
            self.contents.retain(|(known, _)| !meet(known, &(start..end)));
            self.ranges.insert(start, Held { map, end, pages });
        }
    }

    /// The contents of a range are not known any more.
    fn changed(&mut self, addr: GuestVirt, size: u64) {
        if let Some(range) = bytes(addr, size) {
            self.contents.retain(|(known, _)| !meet(known, &range));
        }
    }

    /// The script does not hold `range` any more.
    fn forget(&mut self, range: &Range<u64>) {
        let met: Vec<_> = self
            .ranges
            .range(..range.end)
            .filter(|(_, held)| held.end > range.start)
            .map(|(&start, &held)| (start, held))
            .collect();
        for (start, held) in met {
            self.ranges.remove(&start);
            if start < range.start {
                self.ranges.insert(start, Held { end: range.start, ..held });
            }
            if range.end < held.end {
                self.ranges.insert(range.end, held);
            }
        }
        self.entered.retain(|page| !range.contains(page));
        self.restricted.retain(|old| !meet(old, range));
        self.contents.retain(|(known, _)| !meet(known, range));
    }

    /// Whether the script holds every page of `range`, and `is_usable` says yes to each part.
    fn holds(&self, range: &Range<u64>, is_usable: impl Fn(&Held, Range<u64>) -> bool) -> bool {
        let mut at = range.start;
        while at < range.end {
            let Some((_, held)) = self.ranges.range(..=at).next_back() else { return false };
            let end = held.end.min(range.end);
            if held.end <= at || !is_usable(held, at..end) {
                return false;
            }
            at = end;
        }
        true
    }

    /// Whether the script holds everything that `op` uses.
    pub fn admits(&self, op: &Op) -> bool {
        match *op {
            Op::Read { addr } | Op::Write { addr, .. } => self.can_access(addr, 8),
            Op::Touch { addr, size }
            | Op::Fill { addr, size, .. }
            | Op::Verify { addr, size, .. }
            | Op::VerifyZero { addr, size } => self.can_access(addr, size),
            Op::KmemFree { map, addr, size } | Op::KmemFreeWakeup { map, addr, size } => {
                pages(addr, size).is_some_and(|range| {
                    self.holds(&range, |_, _| true) || self.shared.contains_key(&map)
                })
            }
            Op::Protect { addr, size, .. } => {
                pages(addr, size).is_some_and(|range| self.holds(&range, |_, _| true))
            }
            Op::PmapQenter { addr, count } | Op::PmapQremove { addr, count } => {
                let size = count.checked_mul(PAGE_SIZE);
                let range = size.and_then(|size| pages(addr, size));
                range
                    .is_some_and(|range| self.holds(&range, |held, _| held.pages == Pages::Entered))
            }
            _ => true,
        }
    }

    /// Whether each access to the range succeeds.
    fn can_access(&self, addr: GuestVirt, size: u64) -> bool {
        let Some(range) = pages(addr, size) else { return false };
        let is_usable = |held: &Held, part: Range<u64>| match held.pages {
            Pages::There => true,
            Pages::Entered => {
                let count = (part.end - part.start) / PAGE_SIZE;
                self.entered.range(part).count() as u64 == count
            }
        };
        self.holds(&range, is_usable) && !self.restricted.iter().any(|old| meet(old, &range))
    }

    /// Whether the contents that `op` verifies are known to be there.
    pub fn knows_contents(&self, op: &Op) -> bool {
        let (range, seed) = match *op {
            Op::Verify { addr, size, seed } => (bytes(addr, size), Some(seed)),
            Op::VerifyZero { addr, size } => (bytes(addr, size), None),
            _ => return false,
        };
        range.is_some_and(|range| {
            self.contents.iter().any(|(known, what)| {
                *what == seed && known.start <= range.start && range.end <= known.end
            })
        })
    }

    /// The operations that free everything, in an order in which they can be done.
    pub fn release(&self) -> Vec<Op> {
        let removed = self
            .entered
            .iter()
            .map(|&page| Op::PmapQremove { addr: GuestVirt::new(page), count: 1 });
        let held = self.ranges.iter().map(|(&start, held)| (held.map, start..held.end));
        let freed = held.chain(self.promised.iter().cloned()).map(|(map, range)| {
            let (addr, size) = (GuestVirt::new(range.start), range.end - range.start);
            // This one also wakes threads that wait for room.
            Op::KmemFreeWakeup { map, addr, size }
        });
        removed.chain(freed).collect()
    }

    /// Handlers allocate in `map`, which has these ends.
    pub fn share(&mut self, map: MapId, ends: Range<u64>) {
        self.shared.insert(map, ends);
    }

    /// The operations that free what handlers hold: everything in their maps.
    pub fn release_shared(&self) -> Vec<Op> {
        let freed = self.shared.iter().map(|(&map, ends)| {
            let (addr, size) = (GuestVirt::new(ends.start), ends.end - ends.start);
            Op::KmemFreeWakeup { map, addr, size }
        });
        freed.collect()
    }

    /// Everything is freed that is not shared with handlers.
    pub fn released(&mut self) {
        let submaps = std::mem::take(&mut self.submaps);
        let shared = std::mem::take(&mut self.shared);
        *self = Self { submaps, shared, ..Self::default() };
    }
}

/// The addresses of `count` pages from `addr` on.
fn whole(addr: GuestVirt, count: u64) -> impl Iterator<Item = u64> {
    let start = addr.page().get();
    (0..count).filter_map(move |page| start.checked_add(page.checked_mul(PAGE_SIZE)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 0xffff_ff80_0000_0000;

    fn at(page: u64) -> GuestVirt {
        GuestVirt::new(BASE + page * PAGE_SIZE)
    }

    fn held(pages: u64) -> Holdings {
        let mut holdings = Holdings::default();
        let op = Op::KmemAlloc { map: MapId::KERNEL, size: pages * PAGE_SIZE };
        holdings.note(Context::Thread(0), &op, Outcome::Value(BASE));
        holdings
    }

    #[test]
    fn a_free_in_the_middle_leaves_both_sides() {
        let mut holdings = held(3);
        let free = Op::KmemFree { map: MapId::KERNEL, addr: at(1), size: 1 };
        assert!(holdings.admits(&free));
        holdings.note(Context::Thread(0), &free, Outcome::Ok);
        assert!(!holdings.admits(&free));
        assert!(holdings.admits(&Op::Read { addr: at(0) }));
        assert!(!holdings.admits(&Op::Read { addr: at(1) }));
        assert!(!holdings.admits(&Op::Touch { addr: at(0), size: 3 * PAGE_SIZE }));
        assert_eq!(holdings.release().len(), 2);
        holdings.released();
        assert_eq!(holdings.release(), []);
    }

    #[test]
    fn a_range_without_pages_is_used_where_pages_were_entered() {
        let mut holdings = Holdings::default();
        let op = Op::KmemAllocNofault { map: MapId::KERNEL, size: 2 * PAGE_SIZE };
        holdings.note(Context::Thread(0), &op, Outcome::Value(BASE));
        assert!(!holdings.admits(&Op::Read { addr: at(0) }));
        let enter = Op::PmapQenter { addr: at(0), count: 1 };
        holdings.note(Context::Thread(0), &enter, Outcome::Ok);
        assert!(holdings.admits(&Op::Read { addr: at(0) }));
        assert!(!holdings.admits(&Op::Read { addr: at(1) }));
    }

    #[test]
    fn contents_are_known_from_a_fill_to_the_next_change() {
        let mut holdings = held(2);
        let verify = Op::Verify { addr: at(0), size: 100, seed: 7 };
        assert!(holdings.knows_contents(&Op::VerifyZero { addr: at(0), size: 2 * PAGE_SIZE }));
        assert!(!holdings.knows_contents(&verify));
        let fill = Op::Fill { addr: at(0), size: PAGE_SIZE, seed: 7 };
        holdings.note(Context::Thread(0), &fill, Outcome::Ok);
        assert!(holdings.knows_contents(&verify));
        let write = Op::Write { addr: at(0), value: 1 };
        holdings.note(Context::Thread(0), &write, Outcome::Ok);
        assert!(!holdings.knows_contents(&verify));
    }

    #[test]
    fn a_range_promised_to_a_handler_is_freed_at_the_end_and_not_used() {
        let mut holdings = held(1);
        let free = Op::KmemFree { map: MapId::KERNEL, addr: at(0), size: PAGE_SIZE };
        holdings.note(Context::Lowmem, &free, Outcome::Ok);
        assert!(!holdings.admits(&Op::Read { addr: at(0) }));
        assert_eq!(holdings.release().len(), 1);
    }
}
