//! Finds an order of concurrent operations that explains their results.
//!
//! The results alone do not show where an allocation that still sleeps for pages has its room: it
//! may have taken it before or after a concurrent free. The kernel's entries show it. While such an
//! allocation sleeps its entry is not wired, so nothing merges with it, and it has exactly the
//! allocation's ends.

use std::collections::BTreeSet;

use vmkern_abi::addr::KPtr;
use vmkern_abi::control::{KernReturn, Op, Outcome};
use vmkern_abi::layout::VmMapEntry;

use super::naive::{NaiveMap, What};
use super::protect::Planned;
use super::step::How;
use crate::sim::Sim;

/// The meaning of an operation of a round for the model.
#[derive(Clone, Copy, Debug)]
pub enum Effect {
    Allocate { map: usize, bytes: Option<u64>, how: How },
    Free { map: usize, start: u64, end: u64 },
    Protect(Planned),
    Touch { pin: u64, start: u64, bytes: u64 },
    Fill { start: u64, bytes: u64, seed: u64 },
}

/// An operation of a round with its outcome.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    pub tid: u32,
    pub op: Op,
    pub effect: Effect,
    /// `None` when its thread sleeps.
    pub outcome: Option<Outcome>,
    /// Whether it has its room from an earlier round.
    pub settled: bool,
}

/// Where an event has its room; `None` when it has none, or needs none.
pub type Place = Option<u64>;

impl Event {
    /// Applies the operation to `maps`, if the model allows exactly its result. Returns where an
    /// allocation is.
    fn replay(&self, maps: &mut [NaiveMap], scarce: bool) -> Option<Place> {
        match self.effect {
            _ if self.settled => Some(None),
            Effect::Touch { .. } | Effect::Fill { .. } => Some(None),
            Effect::Protect(Planned { map, start, end, allows }) => match self.outcome {
                Some(Outcome::Ok) => {
                    maps[map].protect(start, end, allows);
                    Some(None)
                }
                _ => scarce.then_some(None),
            },
            Effect::Free { map, start, end } => {
                maps[map].free(start, end);
                Some(None)
            }
            Effect::Allocate { map, bytes, how } => {
                let hole = bytes.and_then(|bytes| maps[map].hole(bytes));
                match (self.outcome, bytes) {
                    (Some(Outcome::Value(addr)), Some(bytes)) if hole == Some(addr) => {
                        maps[map].put(addr, bytes, kind(how));
                        Some(Some(addr))
                    }
                    (Some(Outcome::Null), _) if hole.is_none() || (scarce && !how.may_sleep()) => {
                        Some(None)
                    }
                    (Some(Outcome::Error(KernReturn::InvalidArgument)), _) => Some(None),
                    // It sleeps for room, and has none.
                    (None, _) if matches!(how, How::Wait) => Some(None),
                    (None, Some(bytes)) => {
                        maps[map].put(hole?, bytes, kind(how));
                        Some(hole)
                    }
                    _ => None,
                }
            }
        }
    }

    /// Whether the kernel's entries show that it has its room at `place`, if it sleeps there.
    fn is_at(&self, place: Place, entries: &Entries) -> bool {
        match (self.effect, self.outcome, place) {
            (Effect::Allocate { map, bytes: Some(bytes), how }, None, Some(start)) => {
                entries.has(map, start, bytes, kind(how))
            }
            _ => true,
        }
    }
}

/// The kind of range that a function allocates.
pub const fn kind(how: How) -> What {
    match how {
        How::Alloc => What::Kernel,
        How::Nofault => What::Nofault,
        How::Malloc(_) => What::Kmem,
        How::Wait => What::Pageable,
    }
}

/// An entry of the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    start: u64,
    end: u64,
    /// Its kind, if its object shows it.
    what: Option<What>,
}

/// The kernel's entries, for each map of the model.
#[derive(Clone, Debug)]
pub struct Entries(Vec<Vec<Entry>>);

impl Entries {
    /// Reads them now.
    pub fn look(sim: &Sim, maps: &[NaiveMap]) -> Self {
        let vm = sim.vm();
        let kernels = [(vm.kernel_object(), What::Kernel), (vm.kmem_object(), What::Kmem)];
        let entry = |entry: KPtr<VmMapEntry>| {
            let e = vm.get(entry);
            let what =
                kernels.iter().find(|kernels| kernels.0 == e.object.get()).map(|kernels| kernels.1);
            Entry { start: e.start.get().get(), end: e.end.get().get(), what }
        };
        let of = |m: &NaiveMap| {
            vm.vm_map_entries(vm.map_by_id(m.id).expect("the map exists")).map(entry).collect()
        };
        Self(maps.iter().map(of).collect())
    }

    /// Whether one entry of `map` is exactly this range.
    pub fn has(&self, map: usize, start: u64, bytes: u64, what: What) -> bool {
        self.0[map].contains(&Entry { start, end: start + bytes, what: Some(what) })
    }

    /// Whether an entry of `map` has this address.
    pub fn cover(&self, map: usize, addr: u64) -> bool {
        self.0[map].iter().any(|e| (e.start..e.end).contains(&addr))
    }

    /// The ends of the entry of `map` that has `addr` inside, and not at one of them.
    pub fn around(&self, map: usize, addr: u64) -> Option<(u64, u64)> {
        let entry = self.0[map].iter().find(|e| e.start < addr && addr < e.end)?;
        Some((entry.start, entry.end))
    }

    /// Where entries of `map` meet.
    pub fn seams(&self, map: usize) -> BTreeSet<u64> {
        let pairs = self.0[map].windows(2);
        pairs.filter(|pair| pair[0].end == pair[1].start).map(|pair| pair[1].start).collect()
    }

    /// Whether something is exactly where the model has something.
    pub fn fit(&self, maps: &[NaiveMap]) -> bool {
        self.0.iter().zip(maps).all(|(entries, m)| {
            let ranges = m.ranges.iter().map(|(&start, range)| (start, start + range.bytes));
            joined(entries.iter().map(|e| (e.start, e.end))).eq(joined(ranges))
        })
    }
}

/// Sorted ranges, with neighbours merged.
fn joined(ranges: impl Iterator<Item = (u64, u64)>) -> impl Iterator<Item = (u64, u64)> {
    let mut ranges = ranges.peekable();
    std::iter::from_fn(move || {
        let (start, mut end) = ranges.next()?;
        while let Some((_, further)) = ranges.next_if(|&(next, _)| next == end) {
            end = further;
        }
        Some((start, end))
    })
}

/// An order of the events that explains them, with the places of allocations.
pub fn explain(
    events: &[Event],
    maps: &[NaiveMap],
    scarce: bool,
    entries: &Entries,
) -> Option<Vec<(usize, Place)>> {
    let mut order = Vec::new();
    search(events, maps, scarce, entries, &mut order).map(|()| order)
}

fn search(
    events: &[Event],
    maps: &[NaiveMap],
    scarce: bool,
    entries: &Entries,
    order: &mut Vec<(usize, Place)>,
) -> Option<()> {
    if order.len() == events.len() {
        return entries.fit(maps).then_some(());
    }
    for next in 0..events.len() {
        if order.iter().any(|&(done, _)| done == next) {
            continue;
        }
        let mut maps = maps.to_vec();
        let Some(place) = events[next].replay(&mut maps, scarce) else { continue };
        if !events[next].is_at(place, entries) {
            continue;
        }
        order.push((next, place));
        if search(events, &maps, scarce, entries, order).is_some() {
            return Some(());
        }
        order.pop();
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use vmkern_abi::addr::{GuestVirt, PAGE_SIZE};
    use vmkern_abi::control::{MallocFlags, MapId, MapKind};

    use super::super::naive::Range;
    use super::*;

    const WAITOK: How = How::Malloc(MallocFlags::WAITOK);

    fn map(ranges: &[(u64, u64)]) -> NaiveMap {
        let ranges: BTreeMap<u64, Range> = ranges
            .iter()
            .map(|&(start, end)| {
                (start * PAGE_SIZE, Range::new((end - start) * PAGE_SIZE, What::Kmem))
            })
            .collect();
        NaiveMap { id: MapId::KMEM, min: 0, max: 100 * PAGE_SIZE, kind: MapKind::System, ranges }
    }

    fn entries(ends: &[(u64, u64)]) -> Entries {
        let entry = |&(start, end)| Entry {
            start: start * PAGE_SIZE,
            end: end * PAGE_SIZE,
            what: Some(What::Kmem),
        };
        Entries(vec![ends.iter().map(entry).collect()])
    }

    /// Thread 1 allocates `pages` and sleeps; thread 2 frees pages 2 to 6.
    fn allocation_and_free(pages: u64) -> [Event; 2] {
        let (size, flags) = (pages * PAGE_SIZE, MallocFlags::WAITOK);
        let allocation = Event {
            tid: 1,
            op: Op::KmemMalloc { map: MapId::KMEM, size, flags },
            effect: Effect::Allocate { map: 0, bytes: Some(size), how: WAITOK },
            outcome: None,
            settled: false,
        };
        let (start, end) = (2 * PAGE_SIZE, 6 * PAGE_SIZE);
        let free = Event {
            tid: 2,
            op: Op::KmemFree { map: MapId::KMEM, addr: GuestVirt::new(start), size: end - start },
            effect: Effect::Free { map: 0, start, end },
            outcome: Some(Outcome::Ok),
            settled: false,
        };
        [allocation, free]
    }

    #[test]
    fn an_allocation_that_sleeps_came_before_a_free_or_after_it_as_its_entry_says() {
        let (events, before) = (allocation_and_free(3), [map(&[(0, 8)])]);
        let order = |after: &[(u64, u64)]| explain(&events, &before, false, &entries(after));
        assert_eq!(
            order(&[(0, 2), (6, 8), (8, 11)]),
            Some(vec![(0, Some(8 * PAGE_SIZE)), (1, None)])
        );
        assert_eq!(
            order(&[(0, 2), (2, 5), (6, 8)]),
            Some(vec![(1, None), (0, Some(2 * PAGE_SIZE))])
        );
    }

    #[test]
    fn nothing_explains_an_allocation_that_sleeps_without_an_entry_of_its_own() {
        let (events, before) = (allocation_and_free(3), [map(&[(0, 8)])]);
        let order = |after: &[(u64, u64)]| explain(&events, &before, false, &entries(after));
        assert_eq!(order(&[(0, 2), (6, 8)]), None, "no room");
        assert_eq!(order(&[(0, 2), (6, 11)]), None, "merged");
        assert_eq!(order(&[(0, 2), (3, 6), (6, 8)]), None, "not the lowest");
        assert_eq!(order(&[(0, 2), (2, 5), (6, 8), (9, 10)]), None, "something else");
    }
}
