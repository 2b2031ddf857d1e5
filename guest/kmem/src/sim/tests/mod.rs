//! The memory system as a whole, on the simulated machine.

mod balance;
mod balloon;
mod busy;
mod collisions;
mod contracts;
mod events;
mod fail;
mod faults;
mod histories;
mod index;
mod pageable;
mod pagecache;
mod physical;
mod points;
mod scale;
mod seize;
mod shortage;
mod stalls;
mod threads;
mod waits;
mod windows;
mod zeroidle;

use vmkern_abi::addr::{GuestVirt, KPtr, PAGE_SIZE};
use vmkern_abi::boot::Tunables;
use vmkern_abi::control::{MallocFlags, MapId, Op, Outcome};
use vmkern_abi::layout::Protection;
use vmkern_abi::layout::VmPage;

use super::Sim;
use super::check::{check, check_zeros};
use crate::vm::page::{AllocClass, AllocFlags};

const MIB: u64 = 1 << 20;
const NOWAIT: MallocFlags = MallocFlags::NOWAIT;
const ZEROED: MallocFlags = MallocFlags::NOWAIT.union(MallocFlags::ZERO);

fn boot() -> Sim {
    Sim::boot(64 * MIB, Tunables::default())
}

/// Short names for the common operations of the tests.
impl Sim {
    fn address(&self, op: &Op) -> Option<GuestVirt> {
        match self.execute(op) {
            Outcome::Value(value) => Some(GuestVirt::new(value)),
            Outcome::Null => None,
            other => panic!("{op:?} gave {other:?}"),
        }
    }

    fn malloc(&self, size: u64, flags: MallocFlags) -> Option<GuestVirt> {
        self.address(&Op::KmemMalloc { map: MapId::KMEM, size, flags })
    }

    fn alloc(&self, size: u64) -> Option<GuestVirt> {
        self.address(&Op::KmemAlloc { map: MapId::KERNEL, size })
    }

    fn nofault(&self, size: u64) -> Option<GuestVirt> {
        self.address(&Op::KmemAllocNofault { map: MapId::KERNEL, size })
    }

    /// Allocates the rest of the addresses for which the boot has made page tables: more of
    /// kernel_map costs pages.
    pub(crate) fn take_boot_tables(&self) {
        let end = self.vm().state().kernel_vm_end.get();
        let first = self.nofault(PAGE_SIZE).expect("there is room");
        assert!(self.nofault(end.since(first) - PAGE_SIZE).is_some());
        assert_eq!(self.vm().state().kernel_vm_end.get(), end, "the addresses are in a row");
    }

    /// Takes free pages until only `left` are left.
    pub(crate) fn hoard(&self, left: u64, hoard: &mut Vec<KPtr<VmPage>>) {
        while self.vm().cnt().v_free_count.get() > left {
            let page = self.vm().vm_page_alloc_noobj(AllocClass::Interrupt, AllocFlags::WIRED);
            hoard.push(page.expect("a page is free"));
        }
    }

    /// Frees the pages that [`Sim::hoard`] has taken, and lets all threads finish.
    pub(crate) fn relieve(&self, hoard: &mut Vec<KPtr<VmPage>>) {
        for page in hoard.drain(..) {
            self.vm().vm_page_unwire_free(page);
        }
        self.run();
    }

    fn free(&self, map: MapId, addr: GuestVirt, size: u64) {
        self.ok(&Op::KmemFree { map, addr, size });
    }

    fn ok(&self, op: &Op) {
        assert_eq!(self.execute(op), Outcome::Ok, "{op:?}");
    }

    fn fill(&self, addr: GuestVirt, size: u64, seed: u64) {
        self.ok(&Op::Fill { addr, size, seed });
    }

    fn verify(&self, addr: GuestVirt, size: u64, seed: u64) {
        self.ok(&Op::Verify { addr, size, seed });
    }

    /// The state that a failed or undone operation must not change.
    fn counters(&self) -> impl PartialEq + std::fmt::Debug + use<> {
        let state = self.vm().state();
        let maps = [MapId::KERNEL, MapId::KMEM]
            .map(|id| (self.map(id).size.get(), self.map(id).nentries.get()));
        let objects = [&state.kernel_object, &state.kmem_object]
            .map(|object| (object.ref_count.get(), object.resident_page_count.get()));
        let pmap = (state.kernel_pmap.resident_count.get(), state.kernel_pmap.wired_count.get());
        let cnt = self.vm().cnt();
        (
            maps,
            objects,
            pmap,
            cnt.v_free_count.get(),
            cnt.v_wire_count.get(),
            state.kernel_vm_end.get(),
        )
    }
}

#[test]
fn allocated_memory_keeps_what_is_written_and_goes_back_whole() {
    let sim = boot();
    check(&sim);
    let before = sim.counters();
    let size = 37 * PAGE_SIZE;
    for round in 0..3 {
        let addr = sim.malloc(size, ZEROED).expect("there is memory");
        sim.ok(&Op::VerifyZero { addr, size });
        sim.fill(addr, size, round);
        sim.verify(addr, size, round);
        check(&sim);
        sim.free(MapId::KMEM, addr, size);
        check(&sim);
        check_zeros(&sim);
    }
    assert_eq!(sim.counters(), before);
}

#[test]
fn kmem_alloc_returns_zeros_in_recycled_pages_as_well() {
    let sim = boot();
    for round in 0..4 {
        let size = 300 * PAGE_SIZE;
        let addr = sim.alloc(size).expect("there is memory");
        sim.ok(&Op::VerifyZero { addr, size });
        sim.fill(addr, size, round);
        check(&sim);
        sim.free(MapId::KERNEL, addr, size);
    }
    check_zeros(&sim);
}

#[test]
fn memory_that_was_never_used_is_not_cleared_again() {
    let sim = boot();
    let zeroings = sim.machine().zeroings();
    let size = 100 * PAGE_SIZE;
    let addr = sim.malloc(size, ZEROED).expect("there is memory");
    assert_eq!(sim.machine().zeroings(), zeroings);
    sim.fill(addr, size, 1);
    sim.free(MapId::KMEM, addr, size);
    let addr = sim.malloc(size, ZEROED).expect("there is memory");
    sim.ok(&Op::VerifyZero { addr, size });
    assert!(sim.machine().zeroings() > zeroings);
}

#[test]
fn a_whole_range_is_flushed_once_and_a_new_one_not_at_all() {
    let sim = boot();
    let flushes = sim.machine().flushes();
    let addr = sim.malloc(64 * PAGE_SIZE, NOWAIT).expect("there is memory");
    assert_eq!(sim.machine().flushes(), flushes);
    sim.free(MapId::KMEM, addr, 64 * PAGE_SIZE);
    assert_eq!(sim.machine().flushes(), flushes + 1);
    let addr = sim.nofault(64 * PAGE_SIZE).expect("there is room");
    sim.free(MapId::KERNEL, addr, 64 * PAGE_SIZE);
    assert_eq!(sim.machine().flushes(), flushes + 1, "nothing was mapped there");
}

#[test]
#[should_panic(expected = "through a stale translation")]
fn the_simulated_tlb_catches_a_forgotten_flush() {
    let sim = boot();
    let addr = sim.malloc(PAGE_SIZE, NOWAIT).expect("there is memory");
    sim.write(addr, 1);
    let forgotten = sim.vm().pmap_remove(addr, addr.add(PAGE_SIZE));
    assert_ne!(forgotten, crate::vm::pmap::TlbFlush::NONE);
    let _ = sim.read(addr);
}

#[test]
#[should_panic(expected = "through a stale translation")]
fn the_simulated_tlb_catches_a_forgotten_flush_of_a_permission() {
    let sim = boot();
    let addr = sim.malloc(PAGE_SIZE, NOWAIT).expect("there is memory");
    sim.write(addr, 1);
    let forgotten = sim.vm().pmap_protect(addr, addr.add(PAGE_SIZE), Protection::READ);
    assert_ne!(forgotten, crate::vm::pmap::TlbFlush::NONE);
    let _ = sim.read(addr);
}

#[test]
fn memory_full_of_garbage_boots_and_is_cleared_when_asked_for() {
    let sim = Sim::boot_with(64 * MIB, Tunables::default(), crate::vm::Zeroed::No);
    check(&sim);
    let addr = sim.malloc(9 * PAGE_SIZE, ZEROED).expect("there is memory");
    sim.ok(&Op::VerifyZero { addr, size: 9 * PAGE_SIZE });
    let addr = sim.alloc(9 * PAGE_SIZE).expect("there is memory");
    sim.ok(&Op::VerifyZero { addr, size: 9 * PAGE_SIZE });
    check(&sim);
    check_zeros(&sim);
}

#[test]
fn fill_and_verify_are_exact_at_unaligned_ends() {
    let sim = boot();
    let base = sim.malloc(4 * PAGE_SIZE, ZEROED).expect("there is memory");
    let (addr, size) = (base.add(4093), 4105);
    sim.fill(addr, size, 3);
    sim.verify(addr, size, 3);
    sim.ok(&Op::VerifyZero { addr: base, size: 4093 });
    let end = addr.add(size);
    sim.ok(&Op::VerifyZero { addr: end, size: base.add(4 * PAGE_SIZE).since(end) });
    sim.write(addr.add(11), 0);
    let Outcome::Mismatch { addr: at, got, want } =
        sim.execute(&Op::Verify { addr, size, seed: 3 })
    else {
        panic!("the damage went unnoticed");
    };
    assert_eq!(at, base.add(4104));
    assert_eq!(want, vmkern_abi::pattern::word(at.get(), 3));
    assert_eq!(got, 0);
    let partial = sim.execute(&Op::Verify { addr: base.add(4109), size: 2, seed: 3 });
    let want = (want >> 40) & 0xffff;
    assert_eq!(partial, Outcome::Mismatch { addr: base.add(4109), got: 0, want });
}
