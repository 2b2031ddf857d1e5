//! For operations that come one at a time: the work of a step, its expected result, and its change
//! of the model.

use vmkern_abi::addr::{GuestVirt, PAGE_SIZE};
use vmkern_abi::control::{KernReturn, MallocFlags, MapId, MapKind, Op, Outcome};
use vmkern_abi::layout::MapHome;

use super::explain::Entries;
use super::naive::{Allows, Content, NaiveMap, Range, What, pages, rounded, touched};
use super::script::Who;
use super::step::{FreeBy, How, On, Part, Size, Step, Stray};
use super::world::{Cause, Verdict, World, store};
use crate::sim::threads::perform;

const KERNEL: usize = 0;
const KMEM: usize = 1;
/// More pages than this are requested only where there is no room for them.
const MOST: u64 = 4096;

fn is(address: u64) -> Verdict {
    Verdict::Is(Outcome::Value(address))
}

const NULL: Verdict = Verdict::Is(Outcome::Null);
pub const OK: Verdict = Verdict::Is(Outcome::Ok);
pub const INVALID: Verdict = Verdict::Is(Outcome::Error(KernReturn::InvalidArgument));
pub const SHORTAGE: Verdict = Verdict::Is(Outcome::Error(KernReturn::ResourceShortage));

/// A range that a step may use.
#[derive(Clone, Copy, Debug)]
pub struct Picked {
    pub map: usize,
    pub start: u64,
    pub range: Range,
}

impl World {
    /// Performs a step, if it is possible now, and compares.
    pub fn step(&mut self, on: On, step: &Step) {
        if self.over {
            return;
        }
        self.turn += 1;
        match *step {
            Step::Allocate { map, size, how } => self.allocate(on, map, size, how),
            Step::Free { pick, part, by } => self.free_some(on, pick, part, by),
            Step::Stray { pick, stray } => self.stray(on, pick, stray),
            Step::Touch { pick, part } => self.touch(on, pick, part),
            Step::Protect { pick, place, allows } => self.protect(on, pick, place, allows),
            Step::Access { pick, page, access } => self.access(on, pick, page, access),
            Step::Enter { pick, from, count } => self.enter(on, pick, from, count),
            Step::Remove { pick, from, count } => self.remove(on, pick, from, count),
            Step::Suballoc { map, size, kind } => self.suballoc(map, size, kind),
            Step::Lowmem { pick } => self.store(pick),
            Step::Reclaim => drop(self.perform(on, Op::UmaReclaim, &[OK])),
            Step::Drain { left } => self.drain(on, left),
            Step::Wait => self.wait(),
            Step::Check => self.check(),
            Step::Panic { pick, fault } => self.panic(pick, fault),
        }
        if !self.over {
            self.settle();
        }
    }

    /// A range that `fits`, among those that no other operation will use.
    pub fn pick(&self, pick: u16, fits: impl Fn(&NaiveMap, &Range) -> bool) -> Option<Picked> {
        let all: Vec<Picked> = (0..self.naive.maps.len())
            .flat_map(|map| {
                let ranges = self.naive.maps[map].ranges.iter();
                ranges.map(move |(&start, &range)| Picked { map, start, range })
            })
            .filter(|at| {
                !matches!(at.range.what, What::Fixed | What::Submap)
                    && !self.pinned.contains(&at.start)
            })
            .filter(|at| fits(&self.naive.maps[at.map], &at.range))
            .collect();
        (!all.is_empty()).then(|| all[usize::from(pick) % all.len()])
    }

    /// Bytes for a request to this map.
    pub fn bytes(&self, map: usize, size: Size) -> u64 {
        let m = &self.naive.maps[map];
        match size {
            Size::Bytes(bytes) | Size::Absurd(bytes) => bytes,
            Size::Map(more) => {
                (m.max - m.min).saturating_add_signed(i64::from(more) * PAGE_SIZE as i64)
            }
        }
    }

    /// Pages that an allocation may need besides its own: page tables, entries.
    pub fn overhead(&self, map: usize, pages: u64, how: How) -> u64 {
        let ranges = &self.naive.maps[map].ranges;
        let plain = |range: &Range| !matches!(range.what, What::Kernel | What::Kmem);
        // Entries in use, the reserve, and the new one.
        let at_home =
            ranges.len() as u64 + crate::vm::map::reserve::FLOOR < MapHome::ENTRIES as u64;
        let known =
            map == KMEM && matches!(how, How::Malloc(_)) && at_home && !ranges.values().any(plain);
        if known { 0 } else { 12 + pages / 128 }
    }

    fn allocate(&mut self, on: On, map: u8, size: Size, how: How) {
        let map = usize::from(map) % self.naive.maps.len();
        let size = self.bytes(map, size);
        let (id, kind) = (self.naive.maps[map].id, self.naive.maps[map].kind);
        let op = match how {
            How::Alloc => Op::KmemAlloc { map: id, size },
            How::Nofault => Op::KmemAllocNofault { map: id, size },
            How::Malloc(flags) => Op::KmemMalloc { map: id, size, flags },
            How::Wait => Op::KmemAllocWait { map: id, size },
        };
        let Some(allowed) = self.expected(map, size, how) else { return };
        // An allocation that sleeps for pages has its room already.
        let room = rounded(size).and_then(|bytes| Some((self.naive.maps[map].hole(bytes)?, bytes)));
        let Some((tid, outcome)) = self.perform(on, op, &allowed) else { return };
        let (what, zeroed) = match how {
            How::Alloc => (What::Kernel, true),
            How::Nofault => (What::Nofault, false),
            How::Malloc(flags) => (What::Kmem, flags.contains(MallocFlags::ZERO)),
            How::Wait => (What::Pageable, false),
        };
        let content = if zeroed { Content::Zero } else { Content::Unknown };
        match (outcome, room, kind) {
            (Outcome::Value(_), Some((start, bytes)), _) => {
                self.naive.take(map, start, bytes, what);
                if matches!(what, What::Kernel | What::Kmem) {
                    self.arrived(start, bytes, what, content);
                }
            }
            (Outcome::Blocked { .. }, _, MapKind::User) if matches!(how, How::Wait) => {
                let bytes = rounded(size).expect("who waits for room wants some");
                self.fall_asleep(tid, op, Cause::Room { map, bytes });
            }
            (Outcome::Blocked { .. }, Some((start, bytes)), _) => {
                self.naive.take(map, start, bytes, what);
                self.pinned.insert(start);
                self.fall_asleep(tid, op, Cause::Memory { map, start, bytes, what, content });
            }
            _ => {}
        }
    }

    /// The possible results of an allocation now; `None` when they are not known, or it would
    /// panic.
    pub fn expected(&self, map: usize, size: u64, how: How) -> Option<Vec<Verdict>> {
        let m = &self.naive.maps[map];
        match (how, m.kind) {
            (How::Malloc(_), MapKind::User) | (How::Wait, MapKind::System) => {
                return Some(vec![INVALID]);
            }
            _ => {}
        }
        let Some(bytes) = rounded(size) else { return Some(vec![NULL]) };
        let pages = bytes / PAGE_SIZE;
        let free = self.sim.free_pages();
        let hole = m.hole(bytes);
        let more = self.overhead(map, pages, how);
        let cnt = self.sim.vm().cnt();
        if let How::Wait = how {
            // Entries need pages too.
            let Some(hole) = hole else {
                let never = bytes > m.max - m.min;
                return (free >= 8)
                    .then(|| vec![if never { NULL } else { Verdict::Sleeps("vmmaps") }]);
            };
            return (free >= 8).then(|| vec![is(hole)]);
        }
        let Some(hole) = hole else {
            let panics = matches!(how, How::Malloc(flags) if !flags.contains(MallocFlags::NOWAIT));
            return (!panics).then(|| vec![NULL]);
        };
        let floor = match how {
            How::Alloc => cnt.v_free_reserved.get(),
            How::Malloc(flags)
                if flags & (MallocFlags::NOWAIT | MallocFlags::USE_RESERVE)
                    != MallocFlags::NOWAIT =>
            {
                2
            }
            _ => 0,
        };
        // A page table maps 512 pages.
        if map == KERNEL && pages / 512 > cnt.v_page_count.get() {
            return Some(vec![NULL]);
        }
        let sleeps = how.may_sleep();
        let wanted = if matches!(how, How::Nofault) { 0 } else { pages + floor };
        // It may wait for the other pages that it needs, before it has a place.
        if sleeps && (pages > MOST || free < more) {
            return None;
        }
        let otherwise = if sleeps { Verdict::Sleeps("vmwait") } else { NULL };
        Some(if free >= wanted + more {
            vec![is(hole)]
        } else if free < wanted && (!sleeps || self.doomed.is_empty()) {
            vec![otherwise]
        } else {
            vec![is(hole), otherwise]
        })
    }

    /// The bytes of a part of a range.
    pub fn part(at: &Picked, part: Part) -> (u64, u64) {
        match part {
            Part::Whole => (at.start, at.range.bytes),
            Part::Bytes(from, size) => {
                let from = from % at.range.bytes;
                (at.start + from, size.min(at.range.bytes - from).max(1))
            }
        }
    }

    /// The pages of a part of a range: first address, and the one behind them.
    pub fn whole_pages(at: &Picked, part: Part) -> (u64, u64) {
        let (addr, size) = Self::part(at, part);
        touched(addr, size).expect("a range does not wrap")
    }

    fn free_some(&mut self, on: On, pick: u16, part: Part, by: FreeBy) {
        let Some(at) = self.pick(pick, |_, _| true) else { return };
        let (addr, size) = Self::part(&at, part);
        self.free_range(on, at.map, addr, size, by);
    }

    fn free_range(&mut self, on: On, map: usize, addr: u64, size: u64, by: FreeBy) {
        let Some((start, end)) = touched(addr, size) else { return };
        let end = end.min(self.naive.maps[map].max);
        self.verify(start, end);
        self.take_down(start, end - start);
        let (id, addr) = (self.naive.maps[map].id, GuestVirt::new(addr));
        let op = match by {
            FreeBy::Free => Op::KmemFree { map: id, addr, size },
            FreeBy::Wakeup => Op::KmemFreeWakeup { map: id, addr, size },
        };
        if self.perform(on, op, &[OK]).is_none() {
            return;
        }
        self.naive.free(map, start, end);
        self.freed = Some((map, addr.get(), size));
        match by {
            FreeBy::Free => drop(self.quiet.insert(map)),
            FreeBy::Wakeup => drop(self.quiet.remove(&map)),
        }
        for va in [start, end - 1] {
            self.perform(On::Driver, Op::Vtop { addr: GuestVirt::new(va) }, &[NULL]);
        }
    }

    fn stray(&mut self, on: On, pick: u16, stray: Stray) {
        if let Stray::Again = stray {
            let Some((map, addr, size)) = self.freed else { return };
            let Some((start, end)) = touched(addr, size) else { return };
            if self.naive.maps[map].overlapping(start, end).is_empty() {
                let id = self.naive.maps[map].id;
                self.perform(on, Op::KmemFree { map: id, addr: GuestVirt::new(addr), size }, &[OK]);
            }
            return;
        }
        let Some(at) = self.pick(pick, |_, _| true) else { return };
        let addr = GuestVirt::new(at.start);
        let own = self.naive.maps[at.map].id;
        match stray {
            Stray::Again => {}
            Stray::WrongMap => {
                let end = at.start + at.range.bytes;
                let Some(other) =
                    self.naive.maps.iter().find(|m| m.max <= at.start || m.min >= end)
                else {
                    return;
                };
                let op = Op::KmemFree { map: other.id, addr, size: at.range.bytes };
                self.perform(on, op, &[OK]);
            }
            Stray::Nothing => {
                let middle = at.start + at.range.bytes / PAGE_SIZE / 2 * PAGE_SIZE;
                let op = Op::KmemFree { map: own, addr: GuestVirt::new(middle), size: 0 };
                if self.perform(on, op, &[OK]).is_some() {
                    self.naive.free(at.map, middle, middle);
                }
            }
            Stray::Wraps => {
                self.perform(on, Op::KmemFree { map: own, addr, size: u64::MAX - at.start }, &[OK]);
            }
            Stray::Across(size) => {
                let over =
                    self.naive.maps[at.map].overlapping(at.start, at.start + size + PAGE_SIZE);
                let is_ours = |(start, range): &(u64, Range)| {
                    !matches!(range.what, What::Fixed | What::Submap)
                        && !self.pinned.contains(start)
                };
                if over.iter().all(is_ours) {
                    self.free_range(on, at.map, at.start, size, FreeBy::Wakeup);
                }
            }
        }
    }

    fn touch(&mut self, on: On, pick: u16, part: Part) {
        let has_memory = |range: &Range| range.what != What::Nofault && range.allows.writes();
        let Some(at) = self.pick(pick, |_, range| has_memory(range)) else { return };
        let (addr, size) = Self::part(&at, part);
        let Some((start, end)) = touched(addr, size) else { return };
        let missing = pages(start, end - start)
            .filter(|va| !self.naive.memory.contains_key(va))
            .count() as u64;
        let (free, severe) = (self.sim.free_pages(), self.sim.vm().cnt().v_free_severe.get());
        let sleeps = Verdict::Sleeps("pfault");
        let allowed = if missing == 0 || free >= severe + missing + 8 {
            vec![OK]
        } else if free + 1 < severe + missing && self.doomed.is_empty() {
            vec![sleeps]
        } else {
            vec![OK, sleeps]
        };
        let op = Op::Touch { addr: GuestVirt::new(addr), size };
        match self.perform(on, op, &allowed) {
            Some((_, Outcome::Ok)) if missing == 0 => self.fill(start, end - start),
            Some((_, Outcome::Ok)) => self.touched(start, end - start),
            Some((tid, _)) => {
                self.pinned.insert(at.start);
                let cause = Cause::Touch { pin: at.start, start, bytes: end - start };
                self.fall_asleep(tid, op, cause);
            }
            None => {}
        }
    }

    /// A part of a range of address space alone, in a map whose page tables all exist.
    fn window(&self, pick: u16, from: u8, count: u8) -> Option<(u64, u64)> {
        let at = self
            .pick(pick, |map, range| range.what == What::Nofault && map.kind == MapKind::System)?;
        let pages = at.range.bytes / PAGE_SIZE;
        let from = u64::from(from) % pages;
        Some((at.start + from * PAGE_SIZE, u64::from(count).min(pages - from)))
    }

    fn enter(&mut self, on: On, pick: u16, from: u8, count: u8) {
        let Some((start, count)) = self.window(pick, from, count) else { return };
        // A request of the SYSTEM class does not come from an interrupt.
        let on = if on == On::Interrupt { On::Driver } else { on };
        let allowed = if count == 0 || self.sim.free_pages() >= count + 2 { OK } else { SHORTAGE };
        let op = Op::PmapQenter { addr: GuestVirt::new(start), count };
        if let Some((_, Outcome::Ok)) = self.perform(on, op, &[allowed]) {
            self.naive.back(start, count * PAGE_SIZE, What::Nofault, Content::Unknown);
            self.fill(start, count * PAGE_SIZE);
        }
        if let Some(wired) = self.pick(pick, |_, range| {
            // Otherwise nothing may be mapped there.
            matches!(range.what, What::Kmem | What::Kernel) && range.allows == Allows::All
        }) {
            let op = Op::PmapQenter { addr: GuestVirt::new(wired.start), count: 1 };
            let allowed = if self.sim.free_pages() == 0 { SHORTAGE } else { INVALID };
            self.perform(on, op, &[allowed]);
        }
    }

    fn remove(&mut self, on: On, pick: u16, from: u8, count: u8) {
        let Some((start, count)) = self.window(pick, from, count) else { return };
        self.verify(start, start + count * PAGE_SIZE);
        let op = Op::PmapQremove { addr: GuestVirt::new(start), count };
        if self.perform(on, op, &[OK]).is_some() {
            for va in pages(start, count * PAGE_SIZE) {
                self.naive.memory.remove(&va);
            }
        }
    }

    fn suballoc(&mut self, map: u8, size: Size, kind: MapKind) {
        let systems: Vec<usize> = (0..self.naive.maps.len())
            .filter(|&map| self.naive.maps[map].kind == MapKind::System)
            .collect();
        let map = systems[usize::from(map) % systems.len()];
        let size = self.bytes(map, size);
        let Some(bytes) = rounded(size).filter(|bytes| bytes / PAGE_SIZE <= MOST) else { return };
        let Some(hole) = self.naive.maps[map].hole(bytes) else { return };
        if self.naive.maps.len() >= 12 || self.sim.free_pages() < 16 + bytes / PAGE_SIZE / 128 {
            return;
        }
        let op = Op::KmemSuballoc { parent: self.naive.maps[map].id, size, kind };
        let id = self.execute_for_map(op);
        let made = NaiveMap {
            id: MapId(id),
            min: hole,
            max: hole + bytes,
            kind,
            ranges: Default::default(),
        };
        self.naive.take(map, hole, bytes, What::Submap);
        self.naive.maps.push(made);
    }

    /// Creates a map, wherever its structure lies, and returns its address. A refusal makes it
    /// wait.
    fn execute_for_map(&mut self, op: Op) -> u64 {
        let refusal = self.start_refusing(&op);
        let outcome = self.drive(op, perform);
        self.script.borrow_mut().note(Who::Thread(0), &op, &outcome);
        assert!(!self.is_clean_failure(&op, refusal, outcome), "kmem_suballoc never fails");
        match outcome {
            Outcome::Value(map) => map,
            other => panic!("{op:?} gave {other:?}"),
        }
    }

    /// Makes the next shortage free a range.
    fn store(&mut self, pick: u16) {
        let plain = |map: &NaiveMap, range: &Range| {
            map.kind == MapKind::System && range.what != What::Nofault
        };
        let Some(at) = self.pick(pick, plain) else { return };
        if self.sim.free_pages() < 4 {
            return;
        }
        self.verify(at.start, at.start + at.range.bytes);
        let (map, addr) = (self.naive.maps[at.map].id, GuestVirt::new(at.start));
        let op = Op::KmemFree { map, addr, size: at.range.bytes };
        let refusal = self.start_refusing(&op);
        let outcome = self.drive(op, store);
        self.script.borrow_mut().note(Who::Lowmem, &op, &outcome);
        if self.is_clean_failure(&op, refusal, outcome) {
            return;
        }
        assert_eq!(outcome, Outcome::Ok, "{op:?} stored");
        // Storing it takes memory, which may cause a shortage before it is stored.
        if Entries::look(&self.sim, &self.naive.maps).cover(at.map, at.start) {
            self.count_events();
        }
        self.doomed.push((at.map, at.start, at.start + at.range.bytes));
        self.pinned.insert(at.start);
    }

    fn drain(&mut self, on: On, left: u8) {
        let free = self.sim.free_pages();
        let wanted =
            |more: u64| free.checked_sub(u64::from(left) + more).filter(|&pages| pages > 0);
        let how = How::Malloc(MallocFlags::NOWAIT);
        for (map, number) in [(KMEM, 1), (KERNEL, 0)] {
            let Some(pages) = wanted(self.overhead(map, free, how)) else { continue };
            if self.naive.maps[map].hole(pages * PAGE_SIZE).is_some() {
                self.script.borrow_mut().remark(&format!(
                    "Takes all pages but about {left}: (v_free_count - {left})*4K."
                ));
                return self.allocate(on, number, Size::Bytes(pages * PAGE_SIZE), how);
            }
        }
    }

    fn panic(&mut self, pick: u16, fault: bool) {
        let dies = match pick % 4 {
            0 => self.fatal_by_protection(pick),
            1 => self.fatal_in_hole(pick),
            _ => false,
        };
        if dies {
            return;
        }
        let plain =
            |_: &NaiveMap, range: &Range| range.what == What::Nofault && range.allows.reads();
        if let Some(at) =
            self.pick(pick, plain).filter(|at| fault && !self.naive.memory.contains_key(&at.start))
        {
            let text = format!("vm_fault: fault on nofault entry, addr: {:x}", at.start);
            return self.panics(Op::Read { addr: GuestVirt::new(at.start) }, &text);
        }
        let m = &self.naive.maps[KMEM];
        let (id, size) = (m.id, m.max - m.min + PAGE_SIZE);
        let used =
            m.size() - self.doomed.iter().filter(|d| d.0 == KMEM).map(|d| d.2 - d.1).sum::<u64>();
        let text = format!("kmem_malloc({size}): kmem_map too small: {used} total allocated");
        self.panics(Op::KmemMalloc { map: id, size, flags: MallocFlags::WAITOK }, &text);
    }
}
