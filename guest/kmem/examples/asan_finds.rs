//! Misuses simulated memory, so `scripts/asan.sh` can prove that AddressSanitizer reports it. The
//! argument names the misuse; if it is not caught, the process ends with status 0.

use std::process::ExitCode;

use kmem::machine::PhysMem;
use kmem::sim::Sim;
use vmkern_abi::addr::{GuestPhys, GuestVirt, PAGE_SIZE};
use vmkern_abi::boot::Tunables;
use vmkern_abi::control::{MallocFlags, MapId, Op, Outcome};
use vmkern_abi::kva::phys_to_dmap;
use vmkern_abi::layout::SleepQueue;

/// A page in the middle of the simulated machine.
const SOME_PAGE: GuestPhys = GuestPhys::new((4 << 20) - PAGE_SIZE);

fn boot() -> Sim {
    Sim::boot(16 << 20, Tunables::default())
}

fn value(outcome: Outcome) -> u64 {
    match outcome {
        Outcome::Value(value) => value,
        other => panic!("no value, but {other:?}"),
    }
}

/// Reads past the end of an allocation of simulated physical memory.
#[expect(unsafe_code, reason = "the deed that is to be found")]
fn out_of_bounds() -> u64 {
    let sim = boot();
    let page = sim.machine().frame(SOME_PAGE);
    // SAFETY: none: the memory ends with this page. The sanitizer ends the process here.
    u64::from(unsafe { page.add(4096).read_volatile() })
}

/// Reads the memory of a machine that is gone.
#[expect(unsafe_code, reason = "the deed that is to be found")]
fn machine_gone() -> u64 {
    let sim = boot();
    let page = sim.machine().frame(SOME_PAGE);
    drop(sim);
    // SAFETY: none: the memory was freed with the machine. The sanitizer ends the process here.
    u64::from(unsafe { page.read_volatile() })
}

/// Reads a page that was freed, through the direct map.
fn freed_page() -> u64 {
    let sim = boot();
    let malloc = Op::KmemMalloc { map: MapId::KMEM, size: PAGE_SIZE, flags: MallocFlags::NOWAIT };
    let addr = GuestVirt::new(value(sim.execute(&malloc)));
    let page = GuestPhys::new(value(sim.execute(&Op::Vtop { addr })));
    assert_eq!(sim.execute(&Op::KmemFree { map: MapId::KMEM, addr, size: PAGE_SIZE }), Outcome::Ok);
    sim.read(phys_to_dmap(page))
}

/// Reads a page that was never allocated.
fn fresh_page() -> u64 {
    boot().read(phys_to_dmap(SOME_PAGE))
}

/// Reads a structure that was freed to its zone, in a slab with others.
fn freed_structure() -> u64 {
    let sim = boot();
    let queue = sim.vm().zone_alloc::<SleepQueue>().expect("memory");
    sim.vm().zone_free(queue);
    sim.vm().get(queue).wchan.get().get()
}

fn main() -> ExitCode {
    if !cfg!(asan) {
        eprintln!("asan_finds: not built by scripts/asan.sh");
        return ExitCode::from(2);
    }
    let value = match std::env::args().nth(1).as_deref() {
        Some("out-of-bounds") => out_of_bounds(),
        Some("machine-gone") => machine_gone(),
        Some("freed-page") => freed_page(),
        Some("fresh-page") => fresh_page(),
        Some("freed-structure") => freed_structure(),
        deed => panic!("no such deed: {deed:?}"),
    };
    println!("not caught; it read {value:#x}");
    ExitCode::SUCCESS
}
