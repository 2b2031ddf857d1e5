//! Allocates a block in a guest, fills it, verifies it and frees it, and shows the kernel's
//! counters.
//!
//! `cargo run --example kmem_pair`

use std::error::Error;

use vmkern::{Guest, GuestVirt, MallocFlags, MapId, Op, Outcome, ThreadId};

const SIZE: u64 = 12 << 10;
const SEED: u64 = 7;

fn main() -> Result<(), Box<dyn Error>> {
    let mut guest = Guest::builder().memory(64 << 20).launch()?;
    let environment = guest.environment();
    println!("{:?} KVM, kernel body at {:?} privilege", environment.kvm, environment.privilege);
    let free_pages =
        |guest: &Guest| -> Result<u64, Box<dyn Error>> { Ok(guest.meter()?.v_free_count.get()) };

    println!("{} pages are free", free_pages(&guest)?);
    let flags = MallocFlags::NOWAIT | MallocFlags::ZERO;
    let Outcome::Value(block) =
        guest.call(ThreadId::MAIN, Op::KmemMalloc { map: MapId::KMEM, size: SIZE, flags })?.outcome
    else {
        return Err("kmem_malloc returned null".into());
    };
    let addr = GuestVirt::new(block);
    println!("kmem_malloc returned {addr}; {} pages are free", free_pages(&guest)?);
    for op in [
        Op::VerifyZero { addr, size: SIZE },
        Op::Fill { addr, size: SIZE, seed: SEED },
        Op::Verify { addr, size: SIZE, seed: SEED },
    ] {
        println!("{op:?} gave {:?}", guest.call(ThreadId::MAIN, op)?.outcome);
    }
    let map = guest.map_stats(MapId::KMEM)?;
    println!(
        "kmem_map [{}, {}) has {} entries, {} bytes are in use",
        map.min, map.max, map.entries, map.size
    );
    if let Some(mapping) = guest.vtop(addr)?.mapping {
        println!(
            "the page tables map {addr} to physical {} with {:?}",
            mapping.phys, mapping.flags
        );
    }
    guest.call(ThreadId::MAIN, Op::KmemFree { map: MapId::KMEM, addr, size: SIZE })?;
    println!("kmem_free is done; {} pages are free", free_pages(&guest)?);
    Ok(())
}
