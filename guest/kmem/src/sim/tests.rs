//! The memory system as a whole, on the simulated machine.

use vmkern_abi::addr::{GuestVirt, PAGE_SIZE};
use vmkern_abi::boot::Tunables;
use vmkern_abi::control::{MallocFlags, MapId, Op, Outcome};

use super::Sim;

const MIB: u64 = 1 << 20;

fn boot() -> Sim {
    Sim::boot(64 * MIB, Tunables::default())
}

fn address(outcome: Outcome) -> GuestVirt {
    match outcome {
        Outcome::Value(value) => GuestVirt::new(value),
        other => panic!("no address but {other:?}"),
    }
}

#[test]
fn malloc_fill_verify_free_and_fault() {
    let sim = boot();
    let size = 3 * PAGE_SIZE;
    let before = sim.vm().cnt().v_free_count.get();
    let flags = MallocFlags::NOWAIT | MallocFlags::ZERO;
    let addr = address(sim.execute(&Op::KmemMalloc { map: MapId::KMEM, size, flags }));
    assert_eq!(sim.execute(&Op::VerifyZero { addr, size }), Outcome::Ok);
    assert_eq!(sim.execute(&Op::Fill { addr, size, seed: 7 }), Outcome::Ok);
    assert_eq!(sim.execute(&Op::Verify { addr, size, seed: 7 }), Outcome::Ok);
    assert_eq!(sim.execute(&Op::KmemFree { map: MapId::KMEM, addr, size }), Outcome::Ok);
    assert_eq!(sim.vm().cnt().v_free_count.get(), before);
}
