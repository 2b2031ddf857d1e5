//! The memory system on this CPU, through the operations that the host can request.

use kmem::ops::{self, Executed};
use vmkern_abi::addr::{GuestVirt, PAGE_SIZE};
use vmkern_abi::control::{MallocFlags, MapId, Op, Outcome};

use super::paging::translate;
use super::{Bench, Failure, Verdict, same};
use crate::access::KernelAccess;

impl Bench<'_> {
    pub(super) fn run(&self, op: &Op) -> Outcome {
        match ops::execute(self.vm, &KernelAccess, op) {
            Executed::Done(outcome) => outcome,
            Executed::Sleep { .. } | Executed::Settle | Executed::Join { .. } => Outcome::Ok,
        }
    }

    pub(super) fn address(&self, op: &Op) -> Result<GuestVirt, Failure> {
        match self.run(op) {
            Outcome::Value(address) => Ok(GuestVirt::new(address)),
            _ => Err(Failure { what: "an allocation failed", got: 0, want: 1 }),
        }
    }

    pub(super) fn ok(&self, what: &'static str, op: &Op) -> Verdict {
        match self.run(op) {
            Outcome::Ok => Ok(()),
            Outcome::Mismatch { got, want, .. } => Err(Failure { what, got, want }),
            _ => Err(Failure { what, got: 0, want: 1 }),
        }
    }

    fn free_pages(&self) -> u64 {
        self.vm.cnt().v_free_count.get()
    }
}

const ZEROED: MallocFlags = MallocFlags::NOWAIT.union(MallocFlags::ZERO);

pub(super) fn malloc(size: u64) -> Op {
    Op::KmemMalloc { map: MapId::KMEM, size, flags: ZEROED }
}

pub(super) fn free(addr: GuestVirt, size: u64) -> Op {
    Op::KmemFree { map: MapId::KMEM, addr, size }
}

pub fn malloc_fill_verify_free(bench: &Bench<'_>) -> Verdict {
    for round in 0..3 {
        let size = 24 * PAGE_SIZE;
        let addr = bench.address(&malloc(size))?;
        bench.ok("fresh memory is zero", &Op::VerifyZero { addr, size })?;
        bench.ok("fill", &Op::Fill { addr, size, seed: round })?;
        bench.ok("what was written is read", &Op::Verify { addr, size, seed: round })?;
        bench.ok("kmem_free", &free(addr, size))?;
        same("mapped after kmem_free", translate(addr).is_some().into(), 0)?;
    }
    Ok(())
}

pub fn nofault_and_qenter(bench: &Bench<'_>) -> Verdict {
    let size = 4 * PAGE_SIZE;
    let map = MapId::KERNEL;
    let window = bench.address(&Op::KmemAllocNofault { map, size })?;
    let backed = bench.address(&Op::KmemAlloc { map, size })?;
    same("mapped before pmap_qenter", translate(window).is_some().into(), 0)?;
    bench.ok("pmap_qenter", &Op::PmapQenter { addr: window, count: 4 })?;
    for (addr, seed) in [(window, 1), (backed, 2)] {
        bench.ok("fill", &Op::Fill { addr, size, seed })?;
    }
    for (addr, seed) in [(window, 1), (backed, 2)] {
        bench.ok("two ranges share no page", &Op::Verify { addr, size, seed })?;
    }
    bench.ok("pmap_qremove", &Op::PmapQremove { addr: window, count: 4 })?;
    same("mapped after pmap_qremove", translate(window).is_some().into(), 0)?;
    bench.ok("kmem_free of the window", &Op::KmemFree { map, addr: window, size })?;
    bench.ok("kmem_free of the backed range", &Op::KmemFree { map, addr: backed, size })
}

pub fn refault(bench: &Bench<'_>) -> Verdict {
    let addr = bench.address(&malloc(2 * PAGE_SIZE))?;
    bench.ok("fill", &Op::Fill { addr, size: 2 * PAGE_SIZE, seed: 5 })?;
    let page = translate(addr).map_or(0, |mapping| mapping.phys.get());
    bench.vm.tlb_flush(bench.vm.pmap_remove(addr, addr.add(PAGE_SIZE)));
    same("mapped after the removal", translate(addr).is_some().into(), 0)?;
    bench.ok(
        "the fault brings back the same page",
        &Op::Verify { addr, size: 2 * PAGE_SIZE, seed: 5 },
    )?;
    same("physical address", translate(addr).map_or(0, |mapping| mapping.phys.get()), page)?;
    bench.ok("kmem_free", &free(addr, 2 * PAGE_SIZE))
}

pub fn first_fit(bench: &Bench<'_>) -> Verdict {
    let a = bench.address(&malloc(PAGE_SIZE))?;
    let b = bench.address(&malloc(2 * PAGE_SIZE))?;
    let c = bench.address(&malloc(PAGE_SIZE))?;
    same("second follows first", b.get(), a.get() + PAGE_SIZE)?;
    same("third follows second", c.get(), b.get() + 2 * PAGE_SIZE)?;
    bench.ok("kmem_free", &free(b, 2 * PAGE_SIZE))?;
    let again = bench.address(&malloc(2 * PAGE_SIZE))?;
    same("the hole is taken", again.get(), b.get())?;
    bench.ok("kmem_free", &free(a, 4 * PAGE_SIZE))
}

pub fn counters_return(bench: &Bench<'_>) -> Verdict {
    let mut before = 0;
    for round in 0..1000u64 {
        // The first rounds may add page tables and index nodes, which stay.
        if round == 8 {
            before = bench.free_pages();
        }
        let size = (round % 8 + 1) * PAGE_SIZE;
        let addr = bench.address(&malloc(size))?;
        bench.ok("kmem_free", &free(addr, size))?;
    }
    same("v_free_count", bench.free_pages(), before)
}
