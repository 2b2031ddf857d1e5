//! The operations of the control ring: the dispatch that the guest and the simulated machine share.
//!
//! Memory is accessed through [`Access`], page by page, so the inner loops are plain loops over
//! words on both sides. The implementation handles a fault inside an access: it ends in a panic, or
//! the access succeeds.

mod bytes;
mod lowmem;
mod pairs;
mod protect;
mod qenter;
mod spin;
mod stress;

pub use self::bytes::{Access, Intent};
pub use self::lowmem::register_lowmem;
use vmkern_abi::control::{KernReturn, MapId, MapKind, Op, Outcome, Workload};
use vmkern_abi::layout::VmMap;
use vmkern_abi::{addr::KPtr, pattern};

use crate::kern::func::WorkFn;
use crate::vm::{Vm, VmMachine};

/// A function that performs an operation of the control ring whose answer is discarded.
pub type OpFn<M> = WorkFn<Vm<M>, Op>;

/// The result of [`execute`] for an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Executed {
    /// The operation is done.
    Done(Outcome),
    /// The caller, which has the clock, lets this many microseconds pass; the answer is
    /// [`Outcome::Ok`].
    Sleep {
        /// Microseconds.
        micros: u64,
    },
    /// The caller, which knows the state of each thread, waits for the other thread's answer and
    /// returns it.
    Join {
        /// The other thread.
        thread: u16,
    },
    /// The caller, which has the scheduler, waits until the system is idle; the answer is
    /// [`Outcome::Ok`].
    Settle,
}

/// Performs `op` on the calling thread. Locks: none may be held. May sleep.
pub fn execute<M: VmMachine, A: Access>(vm: &Vm<M>, access: &A, op: &Op) -> Executed {
    Executed::Done(match *op {
        Op::Nop => Outcome::Ok,
        Op::KmemAlloc { map, size } => on_map(vm, map, |map| pointer(vm.kmem_alloc(map, size))),
        Op::KmemAllocNofault { map, size } => {
            on_map(vm, map, |map| pointer(vm.kmem_alloc_nofault(map, size)))
        }
        Op::KmemMalloc { map, size, flags } => {
            on_map(vm, map, |map| match vm.get(map).system_map.is_set() {
                false => Outcome::Error(KernReturn::InvalidArgument),
                true => pointer(vm.kmem_malloc(map, size, flags)),
            })
        }
        Op::KmemFree { map, addr, size } => on_map(vm, map, |map| {
            vm.kmem_free(map, addr, size);
            Outcome::Ok
        }),
        Op::Protect { map, addr, size, protection } => {
            on_map(vm, map, |map| protect::protect(vm, map, addr, size, protection))
        }
        Op::PmapQenter { addr, count } => qenter::enter(vm, addr, count),
        Op::PmapQremove { addr, count } => qenter::remove(vm, addr, count),
        Op::Read { addr } => Outcome::Value(bytes::read(access, addr)),
        Op::Write { addr, value } => {
            bytes::write(access, addr, value);
            Outcome::Ok
        }
        Op::Touch { addr, size } => bytes::touch(access, addr, size),
        Op::Fill { addr, size, seed } => {
            bytes::fill(access, addr, size, |at| pattern::word(at, seed))
        }
        Op::Verify { addr, size, seed } => {
            bytes::verify(access, addr, size, |at| pattern::word(at, seed))
        }
        Op::VerifyZero { addr, size } => bytes::verify(access, addr, size, |_| 0),
        Op::Vtop { addr } => {
            vm.pmap_extract(addr).map_or(Outcome::Null, |pa| Outcome::Value(pa.get()))
        }
        Op::Sleep { micros } => return Executed::Sleep { micros },
        Op::Settle => return Executed::Settle,
        Op::Join { thread } => return Executed::Join { thread },
        Op::KmemSuballoc { parent, size, kind } => on_map(vm, parent, |parent| {
            let map = vm.kmem_suballoc(parent, size);
            vm.get(map).system_map.set((kind == MapKind::System).into());
            Outcome::Value(map.addr().get())
        }),
        Op::KmemAllocWait { map, size } => {
            on_map(vm, map, |map| match vm.get(map).system_map.is_set() {
                false => pointer(vm.kmem_alloc_wait(map, size)),
                true => Outcome::Error(KernReturn::InvalidArgument),
            })
        }
        Op::KmemFreeWakeup { map, addr, size } => on_map(vm, map, |map| {
            vm.kmem_free_wakeup(map, addr, size);
            Outcome::Ok
        }),
        Op::Work(load) => work(vm, access, load),
        Op::UmaReclaim => {
            vm.uma_reclaim();
            Outcome::Ok
        }
    })
}

/// Does one thread's part of a test's or a benchmark's work.
fn work<M: VmMachine, A: Access>(vm: &Vm<M>, access: &A, load: Workload) -> Outcome {
    match load {
        Workload::Pairs { map, size, count, allocator } => {
            on_map(vm, map, |map| pairs::pairs(vm, map, size, count, allocator))
        }
        Workload::Stress { seed, operations, parties, pageable, system } => {
            stress::run(vm, access, seed, operations, parties, [pageable, system])
        }
        Workload::SpinRead { mailbox, rounds } => spin::read(vm, access, mailbox, rounds),
        Workload::SpinFree { mailbox, map } => {
            on_map(vm, map, |map| spin::free(vm, access, mailbox, map))
        }
    }
}

fn on_map<M: VmMachine>(vm: &Vm<M>, map: MapId, f: impl FnOnce(KPtr<VmMap>) -> Outcome) -> Outcome {
    vm.map_by_id(map).map_or(Outcome::Error(KernReturn::InvalidArgument), f)
}

fn pointer(address: Option<vmkern_abi::addr::GuestVirt>) -> Outcome {
    address.map_or(Outcome::Null, |va| Outcome::Value(va.get()))
}
