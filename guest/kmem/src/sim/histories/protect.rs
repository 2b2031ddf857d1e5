//! Protections of ranges, and accesses to what they allow and forbid.

use vmkern_abi::addr::{GuestVirt, PAGE_SIZE};
use vmkern_abi::control::{KernReturn, MapId, Op, Outcome};
use vmkern_abi::layout::Protection;

use super::apply::{INVALID, OK, Picked, SHORTAGE};
use super::explain::Entries;
use super::naive::{Allows, NaiveMap, Range, What};
use super::step::{Access, Extent, On};
use super::world::{Verdict, World};
use crate::vm::fault::FaultType;

/// What histories must have done in every large number of them.
pub const FORMS: [&str; 18] = [
    "rw",
    "r",
    "none",
    "a cut",
    "a merge",
    "across a hole",
    "across a submap",
    "unaligned",
    "outside of the map",
    "a soft fault",
    "a first write",
    "a first read",
    "a refused read",
    "a refused write",
    "a refused write to a window",
    "a fault in a hole",
    "a fatal fault by protection",
    "a fatal fault without page",
];

/// `allows` as the kernel knows it.
pub fn protection(allows: Allows) -> Protection {
    match allows {
        Allows::Nothing => Protection::empty(),
        Allows::Read => Protection::READ,
        Allows::ReadWrite => Protection::READ | Protection::WRITE,
        Allows::All => Protection::ALL,
    }
}

/// A protection of `[start, end)` of a map of the model.
#[derive(Clone, Copy, Debug)]
pub struct Planned {
    pub map: usize,
    pub start: u64,
    pub end: u64,
    pub allows: Allows,
}

impl World {
    /// Notes that something of [`FORMS`] has happened.
    fn saw(&self, form: &'static str) {
        debug_assert!(FORMS.contains(&form), "{form}");
        self.script.borrow_mut().saw(form);
    }

    /// The operation for a protection.
    pub fn protect_op(&self, planned: Planned) -> Op {
        Op::Protect {
            map: self.naive.maps[planned.map].id,
            addr: GuestVirt::new(planned.start),
            size: planned.end - planned.start,
            protection: protection(planned.allows),
        }
    }

    /// Protects a range, or tries to.
    pub fn protect(&mut self, on: On, pick: u16, place: Extent, allows: Allows) {
        let Some(at) = self.pick(pick, |_, _| true) else { return };
        let m = &self.naive.maps[at.map];
        let (map, start) = (at.map, at.start);
        match place {
            Extent::Part(part) => {
                let (start, end) = Self::whole_pages(&at, part);
                self.protect_range(on, Planned { map, start, end, allows });
            }
            Extent::Across(pages) => {
                let end = m.max.min(start + pages * PAGE_SIZE);
                self.protect_across(on, Planned { map, start, end, allows });
            }
            Extent::Unaligned(bytes) => {
                let (start, end) = (start + bytes, start + at.range.bytes);
                let op = self.protect_op(Planned { map, start, end, allows });
                self.saw("unaligned");
                self.perform(on, op, &[INVALID]);
            }
            Extent::Outside => {
                let addr = GuestVirt::new(m.max - PAGE_SIZE);
                let protection = protection(allows);
                let op = Op::Protect { map: m.id, addr, size: 2 * PAGE_SIZE, protection };
                let refused = Verdict::Is(Outcome::Error(KernReturn::InvalidAddress));
                self.saw("outside of the map");
                self.perform(on, op, &[refused]);
            }
        }
    }

    /// Protects what lies in a range, unless something in it must stay as it is.
    fn protect_across(&mut self, on: On, planned: Planned) {
        let Planned { map, start, end, .. } = planned;
        let over = self.naive.maps[map].overlapping(start, end);
        if over.iter().any(|(_, range)| range.what == What::Submap) {
            self.saw("across a submap");
            self.perform(on, self.protect_op(planned), &[INVALID]);
            return;
        }
        let is_ours =
            |(at, range): &(u64, Range)| range.what != What::Fixed && !self.pinned.contains(at);
        if !over.iter().all(is_ours) {
            return;
        }
        let covered: u64 = over.iter().map(|(at, range)| end.min(at + range.bytes) - at).sum();
        if covered < end - start {
            self.saw("across a hole");
        }
        self.protect_range(on, planned);
    }

    fn protect_range(&mut self, on: On, planned: Planned) {
        let Planned { start, end, allows, .. } = planned;
        if allows == Allows::Nothing {
            self.take_down(start, end - start);
        }
        let before = Entries::look(&self.sim, &self.naive.maps);
        let allowed: &[Verdict] = if self.sim.free_pages() >= 8 { &[OK] } else { &[OK, SHORTAGE] };
        let op = self.protect_op(planned);
        let Some((_, Outcome::Ok)) = self.perform(on, op, allowed) else { return };
        self.protected(planned);
        let now = Entries::look(&self.sim, &self.naive.maps);
        self.compare_seams(planned, &before, &now);
    }

    /// Changes the model as a protection has changed the machine.
    pub fn protected(&mut self, planned: Planned) {
        let Planned { map, start, end, allows } = planned;
        self.saw(match allows {
            Allows::Nothing => "none",
            Allows::Read => "r",
            Allows::ReadWrite | Allows::All => "rw",
        });
        self.naive.protect(map, start, end, allows);
    }

    /// Checks that a protection has cut entries at its ends and nowhere else, and has merged what
    /// is equal again.
    fn compare_seams(&self, planned: Planned, before: &Entries, now: &Entries) {
        let Planned { map, start, end, .. } = planned;
        let m = &self.naive.maps[map];
        let (old, new) = (before.seams(map), now.seams(map));
        // An entry that is cut at `start` is merged with its neighbours first.
        let touched =
            before.around(map, start).map_or(start..=end, |(below, above)| below..=above.max(end));
        for &at in old.union(&new).chain(&[start, end]) {
            let Some((low, high)) = m.around(at) else {
                assert!(!new.contains(&at), "a cut at {at:#x}, inside of a range");
                continue;
            };
            let must = if !low.continues(high) {
                true
            } else if !touched.contains(&at) {
                old.contains(&at)
            } else if self.may_stay_apart(m, at) && old.contains(&at) {
                continue;
            } else {
                false
            };
            assert_eq!(new.contains(&at), must, "a cut at {at:#x}: {low:?}, {high:?}");
        }
        if new.difference(&old).next().is_some() {
            self.saw("a cut");
        }
        if old.difference(&new).next().is_some() {
            self.saw("a merge");
        }
    }

    /// Whether equal entries that meet at `at` may have different objects, or one may be at work.
    fn may_stay_apart(&self, m: &NaiveMap, at: u64) -> bool {
        let asleep = |(start, range): &(u64, Range)| {
            self.pinned.contains(start) || self.pinned.contains(&(start + range.bytes))
        };
        m.kind == vmkern_abi::control::MapKind::User
            || m.overlapping(at - 1, at + 1).iter().any(asleep)
    }

    /// Accesses a page of a range, or the first after it: as the model allows.
    pub fn access(&mut self, on: On, pick: u16, page: u8, access: Access) {
        let Some(at) = self.pick(pick, |_, _| true) else { return };
        let pages = at.range.bytes / PAGE_SIZE;
        let va = at.start + u64::from(page) % (pages + 1) * PAGE_SIZE;
        if va == at.start + at.range.bytes {
            return self.access_hole(at.map, va, access);
        }
        let memory = self.naive.memory.get(&va).copied();
        let allows = memory.map_or(at.range.allows, |memory| memory.allows);
        let is_window = at.range.what == What::Nofault;
        let refused = match access {
            Access::Read => !allows.reads(),
            Access::Write => !allows.writes(),
        };
        match (refused, memory) {
            // With a right of the range, the fault is a panic.
            (true, _) if is_window && at.range.allows.writes() => {}
            (true, _) => self.refused(va, access, is_window),
            (false, None) if is_window => {}
            (false, None) => self.first_access(on, &at, va, access),
            (false, Some(_)) => {
                if self.sim.vm().pmap_extract(GuestVirt::new(va)).is_none() {
                    self.saw("a soft fault");
                }
                match access {
                    Access::Read => self.verify(va, va + PAGE_SIZE),
                    Access::Write => self.fill(va, PAGE_SIZE),
                }
            }
        }
    }

    /// The first access to a page of a pageable range brings a page of zeros.
    fn first_access(&mut self, on: On, at: &Picked, va: u64, access: Access) {
        if self.sim.free_pages() < self.sim.vm().cnt().v_free_severe.get() + 9 {
            return;
        }
        let (addr, size) = (GuestVirt::new(va), PAGE_SIZE);
        let (form, op) = match access {
            Access::Read => ("a first read", Op::VerifyZero { addr, size }),
            Access::Write => ("a first write", Op::Touch { addr, size }),
        };
        // It may sleep, which only a thread can; an interrupt cannot.
        let on = if on == On::Interrupt { On::Driver } else { on };
        if self.perform(on, op, &[OK]).is_some() {
            self.saw(form);
            self.exist(va, size, at.range.allows);
            self.verify(va, va + size);
        }
    }

    fn access_hole(&mut self, map: usize, va: u64, access: Access) {
        let m = &self.naive.maps[map];
        // The rest of the address space belongs to other maps.
        if va >= m.max || !m.overlapping(va, va + 1).is_empty() {
            return;
        }
        self.saw("a fault in a hole");
        self.fails(va, access, KernReturn::InvalidAddress);
    }

    fn refused(&mut self, va: u64, access: Access, is_window: bool) {
        self.saw(match access {
            Access::Write if is_window => "a refused write to a window",
            Access::Write => "a refused write",
            Access::Read => "a refused read",
        });
        self.fails(va, access, KernReturn::ProtectionFailure);
    }

    /// The fault of an access fails, which would be fatal. It changes nothing.
    fn fails(&self, va: u64, access: Access, code: KernReturn) {
        let fault = match access {
            Access::Read => FaultType::Read,
            Access::Write => FaultType::Write,
        };
        let result = self.sim.vm().trap_pfault(GuestVirt::new(va), fault);
        assert_eq!(result, Err(code), "{fault:?} at {va:#x}");
    }

    /// An access that a range forbids, which is fatal. Returns whether there is such a range.
    pub fn fatal_by_protection(&mut self, pick: u16) -> bool {
        let forbids = |_: &NaiveMap, range: &Range| !range.allows.writes();
        let Some(at) = self.pick(pick, forbids) else { return false };
        // A window's pages have their own permissions, and a page of a closed range has no
        // translation.
        let is_there = at.range.allows.reads() && self.naive.memory.contains_key(&at.start);
        if at.range.what == What::Nofault && self.naive.memory.contains_key(&at.start) {
            return false;
        }
        self.saw("a fatal fault by protection");
        let addr = GuestVirt::new(at.start);
        let why = if is_there && self.sim.vm().pmap_extract(addr).is_some() {
            "protection violation"
        } else {
            "not present"
        };
        let report = format!("page fault: write ({why}) at {addr:#x}");
        let code = KernReturn::ProtectionFailure;
        let simulated = format!("page fault at {addr:#x}: {code}");
        self.dies(Op::Write { addr, value: 1 }, &report, &simulated);
        true
    }

    /// An access in a hole of a map, which is fatal. Returns whether there is one.
    pub fn fatal_in_hole(&mut self, pick: u16) -> bool {
        let Some(at) = self.pick(pick, |map, _| map.id != MapId::KERNEL) else { return false };
        let (m, end) = (&self.naive.maps[at.map], at.start + at.range.bytes);
        if end >= m.max || !m.overlapping(end, end + 1).is_empty() {
            return false;
        }
        self.saw("a fatal fault without page");
        let addr = GuestVirt::new(end);
        let report = format!("page fault: read (not present) at {addr:#x}");
        let simulated = format!("page fault at {addr:#x}: {}", KernReturn::InvalidAddress);
        self.dies(Op::Read { addr }, &report, &simulated);
        true
    }
}
