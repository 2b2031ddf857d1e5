//! A guest with a bit of everything in its memory.

use std::path::Path;
use std::thread::yield_now;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};
use vmkern::abi::addr::NBPDR;
use vmkern::abi::kva::NKPT;
use vmkern::abi::layout::ThreadState;
use vmkern::dump::Dump;
use vmkern::{Context, Guest, GuestVirt, MallocFlags, MapId, MapKind, Op, TimeMode};

use crate::{Run as _, launch_unchecked, t};

/// Memory of the guest, in bytes.
const MEMORY: u64 = 32 << 20;
const PAGE: u64 = 4096;

/// What the guest was doing when its memory was saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Every thread waits for work, or for a time-out.
    AtRest,
    /// Threads wait for room in maps, with operations half done, and two write to memory.
    Busy,
}

/// The memory of a guest with seed `seed`. Its file is already deleted.
///
/// # Panics
/// When there can be no guest, or no file.
#[must_use]
pub fn specimen(seed: u64, state: State) -> Dump {
    let directory = tempfile::tempdir().expect("there is a directory for temporary files");
    let path = directory.path().join("specimen.img");
    specimen_file(seed, state, &path);
    Dump::open(&path).expect("the image can be read")
}

/// Saves the memory of a guest of seed `seed` in the file at `path`.
///
/// # Panics
/// When there can be no guest, or no file.
pub fn specimen_file(seed: u64, state: State, path: &Path) {
    let vcpus = if seed.is_multiple_of(2) { 1 } else { 2 };
    let mut guest =
        launch_unchecked(Guest::builder().memory(MEMORY).vcpus(vcpus).time(TimeMode::Real));
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    populate(&mut guest, &mut random);
    sleepers(&mut guest, state);
    let large = guest.address(Op::KmemAlloc { map: MapId::KERNEL, size: 1 << 20 });
    wait_for_sleep(&mut guest);
    if state == State::Busy {
        for (thread, seed) in [(10, 1), (11, 2)] {
            let op = Op::Fill { addr: large.add((seed - 1) << 19), size: 1 << 19, seed };
            for _ in 0..8 {
                guest.submit(t(thread), op).expect("the guest lives");
            }
        }
    }
    let _pause = guest.pause().expect("the guest can be held");
    guest.save_dump(path).expect("the image can be written");
}

fn populate(guest: &mut Guest, random: &mut Xoshiro256PlusPlus) {
    let mut draw = |below: u64| random.next_u64() % below;
    let mut blocks: Vec<(GuestVirt, u64)> = Vec::new();
    for _ in 0..300 {
        let size = (1 + draw(4)) * PAGE;
        let zero = if draw(3) == 0 { MallocFlags::ZERO } else { MallocFlags::empty() };
        let op = Op::KmemMalloc { map: MapId::KMEM, size, flags: MallocFlags::NOWAIT | zero };
        blocks.push((guest.address(op), size));
    }
    for _ in 0..120 {
        let index = usize::try_from(draw(blocks.len() as u64)).expect("an index");
        let (addr, size) = blocks.swap_remove(index);
        guest.free(addr, size);
    }
    guest.address(Op::KmemAlloc { map: MapId::KERNEL, size: (4 + draw(20)) * PAGE });
    for map in [MapId::EXEC, MapId::PIPE] {
        let ranges: Vec<_> = (0..6)
            .map(|_| {
                let size = (2 + draw(12)) * PAGE;
                let addr = guest.address(Op::KmemAllocWait { map, size });
                guest.ok(Op::Touch { addr, size: (1 + draw(size / PAGE - 1)) * PAGE });
                (addr, size)
            })
            .collect();
        for &(addr, size) in ranges.iter().step_by(2) {
            guest.ok(Op::KmemFreeWakeup { map, addr, size });
        }
    }
    for _ in 0..3 {
        let pages = 3 + draw(6);
        let addr = guest.address(Op::KmemAllocNofault { map: MapId::KERNEL, size: pages * PAGE });
        guest.ok(Op::PmapQenter { addr, count: 1 + draw(pages - 1) });
    }
    // Larger than the range of the boot's page tables.
    let size = NKPT as u64 * NBPDR;
    let addr = guest.address(Op::KmemAllocNofault { map: MapId::KERNEL, size });
    guest.ok(Op::PmapQenter { addr: addr.add(size - 3 * PAGE), count: 1 + draw(3) });
    for kind in [MapKind::User, MapKind::System] {
        guest.address(Op::KmemSuballoc { parent: MapId::KERNEL, size: 1 << 20, kind });
    }
    for _ in 0..3 {
        let (addr, size) = blocks.pop().expect("there are that many");
        let op = Op::KmemFree { map: MapId::KMEM, addr, size };
        guest.call_in(Context::Lowmem, op).expect("the guest lives");
    }
}

/// Makes threads sleep: all but those that wait for room have a time-out.
fn sleepers(guest: &mut Guest, state: State) {
    for thread in 1..7 {
        guest
            .submit(t(thread), Op::Sleep { micros: u64::from(thread) * 3_600_000_000 })
            .expect("the guest lives");
    }
    for thread in [10, 11] {
        guest.call(t(thread), Op::Nop).expect("the guest lives");
    }
    if state == State::AtRest {
        return;
    }
    let map = guest.address(Op::KmemSuballoc {
        parent: MapId::KERNEL,
        size: 2 * PAGE,
        kind: MapKind::User,
    });
    let room = Op::KmemAllocWait { map: MapId(map.get()), size: 2 * PAGE };
    guest.address(room);
    for thread in 7..10 {
        guest.submit(t(thread), room).expect("the guest lives");
    }
}

/// Waits until every thread except the idle threads sleeps.
fn wait_for_sleep(guest: &mut Guest) {
    loop {
        let threads = guest.threads().expect("the list is sound");
        let awake =
            |t: &&vmkern::inspect::ThreadView| t.tid < 64 && t.state != ThreadState::Sleeping;
        if threads.iter().filter(|t| t.tid < 64).count() >= 9 && !threads.iter().any(|t| awake(&t))
        {
            return;
        }
        yield_now();
    }
}
