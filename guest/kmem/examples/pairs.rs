//! Allocates and frees on the simulated machine, for counts of instructions
//! (`scripts/fail-cost.sh`).
//!
//!     pairs malloc|alloc COUNT

use std::process::ExitCode;

use kmem::sim::Sim;
use vmkern_abi::addr::PAGE_SIZE;
use vmkern_abi::boot::Tunables;
use vmkern_abi::control::{Allocator, MapId, Op, Outcome, Workload};

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let (allocator, map) = match args.next().as_deref() {
        Some("malloc") => (Allocator::Malloc, MapId::KMEM),
        Some("alloc") => (Allocator::Alloc, MapId::KERNEL),
        _ => return usage(),
    };
    let Some(count) = args.next().and_then(|count| count.parse().ok()) else { return usage() };
    let sim = Sim::boot(16 << 20, Tunables::default());
    match sim.execute(&Op::Work(Workload::Pairs { map, size: PAGE_SIZE, count, allocator })) {
        Outcome::Ok => ExitCode::SUCCESS,
        other => {
            eprintln!("pairs gave {other:?}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: pairs malloc|alloc COUNT");
    ExitCode::from(2)
}
