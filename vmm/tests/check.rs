//! The check, on guests that are stopped in the middle of operations.

use std::collections::VecDeque;
use std::time::Duration;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use vmkern::{
    Context, Guest, GuestVirt, MallocFlags, MapId, MapKind, Op, Outcome, Response, ThreadId,
};

/// Threads that work side by side.
const THREADS: usize = 8;

/// A thread of the guest, and its memory.
struct Worker {
    thread: ThreadId,
    /// Blocks of kmem_map, of kernel_map and of a pageable map, each with its size.
    blocks: Vec<(MapId, GuestVirt, u64)>,
    pending: VecDeque<(u32, Op)>,
    /// The operation in which it was reported to be blocked.
    blocked: Option<Op>,
}

struct Stress {
    guest: Guest,
    rng: Xoshiro256PlusPlus,
    workers: Vec<Worker>,
    pageable: MapId,
}

impl Stress {
    fn new(seed: u64) -> Self {
        let guest = Guest::builder().memory(16 << 20).timeout(Duration::from_secs(600));
        let mut guest = guest.launch().unwrap_or_else(|error| panic!("{error}"));
        let suballoc =
            Op::KmemSuballoc { parent: MapId::KERNEL, size: 64 << 12, kind: MapKind::User };
        let Outcome::Value(pageable) =
            guest.call(ThreadId::MAIN, suballoc).expect("the guest lives").outcome
        else {
            panic!("no room for a submap")
        };
        let worker =
            |thread| Worker { thread, blocks: Vec::new(), pending: VecDeque::new(), blocked: None };
        let rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        Self {
            guest,
            rng,
            workers: ThreadId::all().take(THREADS).map(worker).collect(),
            pageable: MapId(pageable),
        }
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.rng.next_u64() % limit
    }

    /// The next operation of `worker`: it frees its memory before memory runs out.
    fn next_op(&mut self, worker: usize) -> Op {
        let full =
            self.workers.iter().flat_map(|worker| &worker.blocks).map(|block| block.2).sum::<u64>()
                > 6 << 20;
        let size = (self.below(12) + 1) << 12;
        let owned = self.workers[worker].blocks.len() as u64;
        if owned > 0 && (full || owned > 24 || self.below(3) == 0) {
            let victim = self.below(owned);
            let index = usize::try_from(victim).expect("it is an index");
            let (map, addr, size) = self.workers[worker].blocks.swap_remove(index);
            return if map == self.pageable {
                Op::KmemFreeWakeup { map, addr, size }
            } else {
                Op::KmemFree { map, addr, size }
            };
        }
        match self.below(8) {
            0..=2 => Op::KmemMalloc { map: MapId::KMEM, size, flags: MallocFlags::NOWAIT },
            3 => Op::KmemMalloc {
                map: MapId::KMEM,
                size,
                flags: MallocFlags::WAITOK | MallocFlags::ZERO,
            },
            4 => Op::KmemAlloc { map: MapId::KERNEL, size },
            5 | 6 => Op::KmemAllocWait { map: self.pageable, size },
            _ => match self.workers[worker].blocks.last() {
                Some(&(_, addr, size)) => Op::Touch { addr, size },
                None => Op::Nop,
            },
        }
    }

    /// Gives every idle worker an operation, and sometimes adds an interrupt and a handler.
    fn submit(&mut self) {
        for index in 0..self.workers.len() {
            let worker = &self.workers[index];
            if !worker.pending.is_empty() {
                continue;
            }
            let thread = worker.thread;
            let op = if worker.blocked.is_some() {
                Op::Join { thread: thread.into() }
            } else {
                self.next_op(index)
            };
            let tag =
                self.guest.submit(thread, op).unwrap_or_else(|error| panic!("{op:?}: {error}"));
            self.workers[index].pending.push_back((tag, op));
        }
    }

    fn receive(&mut self) {
        let Response { tag, outcome, .. } =
            self.guest.next_response().unwrap_or_else(|error| panic!("{error}"));
        let Some(worker) =
            self.workers.iter_mut().find(|w| w.pending.front().is_some_and(|&(t, _)| t == tag))
        else {
            return;
        };
        let (_, op) = worker.pending.pop_front().expect("it was just there");
        let asked = if let Op::Join { .. } = op { worker.blocked.take() } else { Some(op) };
        match outcome {
            Outcome::Blocked { .. } => worker.blocked = asked,
            Outcome::Value(addr) => worker.keep(asked.expect("there was something to join"), addr),
            _ => {}
        }
    }
}

impl Worker {
    fn keep(&mut self, op: Op, addr: u64) {
        let (map, size) = match op {
            Op::KmemMalloc { map, size, .. }
            | Op::KmemAlloc { map, size }
            | Op::KmemAllocWait { map, size } => (map, size),
            _ => return,
        };
        self.blocks.push((map, GuestVirt::new(addr), size));
    }
}

#[test]
fn a_busy_guest_is_found_sound_at_a_thousand_moments() {
    let mut stress = Stress::new(41);
    let (mut checks, mut blocked) = (0, 0);
    while checks < 1000 {
        stress.submit();
        for _ in 0..stress.below(4) {
            stress.receive();
        }
        if stress.below(50) == 0 {
            let op = Op::KmemMalloc { map: MapId::KMEM, size: 4096, flags: MallocFlags::NOWAIT };
            stress.guest.submit_in(Context::Interrupt, op).expect("the guest lives");
        }
        let report = stress.guest.check().expect("the roots can be read");
        assert!(report.is_clean(), "check {checks}:\n{report}");
        checks += 1;
        blocked += stress.guest.blocked().count();
    }
    assert!(blocked > 0, "no thread ever waited for anything");
}
