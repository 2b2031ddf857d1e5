//! Page faults that are resolved: a check for each such row of the table in `docs/faults.md`. The
//! fatal rows are in `fault_test`.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use kmem::kern::sched::PUSER;
use kmem::vm::thread::ThreadSpec;
use vmkern_abi::addr::{GuestVirt, KPtr, PAGE_SIZE};
use vmkern_abi::control::{MapId, Op, WaitMessage};
use vmkern_abi::layout::{Thread, VmPage};
use vmkern_abi::pte::PteFlags;

use super::kmem::{free, malloc};
use super::paging::translate;
use super::{Bench, Failure, Verdict, same};
use crate::fault_test::lose_page;
use crate::memory::KernelVm;

/// Number of the first thread of these checks.
const TID: u32 = 210;
/// Pages on which several threads fault.
const PAGES: u64 = SHARED as u64;
/// The same, as the length of an array.
const SHARED: usize = 24;
/// Most threads that do.
const PARTIES: u64 = 4;

impl Bench<'_> {
    /// A range of exec_map, of which nothing is there yet.
    fn pageable(&self, pages: u64) -> Result<GuestVirt, Failure> {
        self.address(&Op::KmemAllocWait { map: MapId::EXEC, size: pages * PAGE_SIZE })
    }

    fn free_pageable(&self, addr: GuestVirt, pages: u64) -> Verdict {
        let size = pages * PAGE_SIZE;
        self.ok("kmem_free_wakeup", &Op::KmemFreeWakeup { map: MapId::EXEC, addr, size })
    }

    /// The faults so far, and the pages that they have cleared.
    fn faults(&self) -> [u64; 2] {
        let cnt = self.vm.cnt();
        [cnt.v_faults.get(), cnt.v_zfod.get()]
    }

    /// The page that is mapped at `addr`.
    fn page(&self, addr: GuestVirt) -> Result<KPtr<VmPage>, Failure> {
        let m = self.vm.pmap_extract(addr).and_then(|pa| self.vm.phys_to_vm_page(pa));
        m.ok_or(Failure { what: "pages mapped", got: 0, want: 1 })
    }

    /// Creates thread `tid`.
    fn thread(
        &self,
        tid: u32,
        start: fn(&KernelVm, u64),
        arg: u64,
    ) -> Result<KPtr<Thread>, Failure> {
        let spec = ThreadSpec { tid, name: "fault", priority: PUSER, start, arg };
        self.vm.kthread_create(&spec).map_err(|_| Failure { what: "threads", got: 0, want: 1 })
    }

    /// Lets other threads run until `done`.
    fn until(&self, done: impl Fn() -> bool) {
        while !done() {
            self.vm.sched_yield();
            core::hint::spin_loop();
        }
    }

    /// Waits until there are `count` threads, and frees the others' memory.
    fn until_threads_are(&self, count: u64) {
        self.until(|| self.vm.cnt().thread_count.get() == count);
        self.vm.thread_reap();
    }
}

pub fn demand_zero(bench: &Bench<'_>) -> Verdict {
    let addr = bench.pageable(4)?;
    let [faults, zeroed] = bench.faults();
    same("mapped before the first touch", translate(addr).is_some().into(), 0)?;
    bench.ok("zeros", &Op::VerifyZero { addr, size: 3 * PAGE_SIZE })?;
    let [faults_now, zeroed_now] = bench.faults();
    same("faults", faults_now - faults, 3)?;
    same("pages cleared", zeroed_now - zeroed, 3)?;
    same("mapped untouched", translate(addr.add(3 * PAGE_SIZE)).is_some().into(), 0)?;
    bench.free_pageable(addr, 4)
}

pub fn soft_fault(bench: &Bench<'_>) -> Verdict {
    let addr = bench.pageable(2)?;
    let (vm, size) = (bench.vm, 2 * PAGE_SIZE);
    bench.ok("fill", &Op::Fill { addr, size, seed: 3 })?;
    let (page, [faults, zeroed]) = (bench.page(addr)?, bench.faults());
    vm.tlb_flush(vm.pmap_remove(addr, addr.add(PAGE_SIZE)));
    bench.ok("the same contents", &Op::Verify { addr, size, seed: 3 })?;
    let [faults_now, zeroed_now] = bench.faults();
    same("faults", faults_now - faults, 1)?;
    same("pages cleared", zeroed_now - zeroed, 0)?;
    same("page", bench.page(addr)?.addr().get(), page.addr().get())?;
    bench.free_pageable(addr, 2)
}

pub fn wired_page_missing(bench: &Bench<'_>) -> Verdict {
    let (vm, size) = (bench.vm, 3 * PAGE_SIZE);
    let addr = bench.address(&malloc(size))?;
    let lost = addr.add(PAGE_SIZE);
    bench.ok("fill", &Op::Fill { addr, size, seed: 7 })?;
    lose_page(vm, lost);
    let [_, zeroed] = bench.faults();
    bench.ok("a new page is zero", &Op::VerifyZero { addr: lost, size: PAGE_SIZE })?;
    same("pages that count as cleared", bench.faults()[1] - zeroed, 0)?;
    let m = bench.page(lost)?;
    let is_wired = translate(lost).is_some_and(|mapping| mapping.flags.contains(PteFlags::W));
    same("wired translation", is_wired.into(), 1)?;
    same("wire_count", vm.page(m).wire_count.get().into(), 0)?;
    for kept in [addr, lost.add(PAGE_SIZE)] {
        bench.ok("the neighbours stay", &Op::Verify { addr: kept, size: PAGE_SIZE, seed: 7 })?;
    }
    // To free it now would be a panic. The wiring that was lost with the page is made up for.
    vm.vm_page_wire(&vm.page_queues(), m);
    bench.ok("kmem_free", &free(addr, size))
}

/// The word that [`read`] has read.
static READ: AtomicU64 = AtomicU64::new(0);

/// Reads the word at `va`, which is not 0.
fn read(_: &KernelVm, va: u64) {
    // SAFETY: memory of exec_map that a check has allocated, and frees after this read.
    READ.store(unsafe { (va as *const u64).read_volatile() }, Ordering::Release);
}

pub fn collided_fault_waits(bench: &Bench<'_>) -> Verdict {
    const WORD: u64 = 0x636f_6c6c_6964_6564;
    let vm = bench.vm;
    let threads = vm.cnt().thread_count.get();
    let addr = bench.pageable(1)?;
    bench.ok("write", &Op::Write { addr, value: WORD })?;
    // 1. This thread works on the page, as a fault that is not over would.
    let m = bench.page(addr)?;
    let object = vm.page(m).object.get();
    let locked = vm.vm_object_lock(object);
    vm.vm_page_busy(m);
    // No other thread knows of the range yet.
    drop(locked);
    vm.tlb_flush(vm.pmap_remove(addr, addr.add(PAGE_SIZE)));
    // 2. Another thread faults on it, and sleeps.
    READ.store(0, Ordering::Relaxed);
    let zeroed = bench.faults()[1];
    let thread = bench.thread(TID, read, addr.get())?;
    let vmpfw = Some(WaitMessage::new("vmpfw"));
    bench.until(|| vm.get(thread).wait_message() == vmpfw || READ.load(Ordering::Acquire) != 0);
    same("read while the page is busy", READ.load(Ordering::Acquire), 0)?;
    // 3. It goes on when the work is done, with the same page.
    let locked = vm.vm_object_lock(object);
    vm.vm_page_wakeup(m);
    // From here on the other thread may go on.
    drop(locked);
    bench.until(|| READ.load(Ordering::Acquire) != 0);
    same("word", READ.load(Ordering::Acquire), WORD)?;
    same("pages cleared", bench.faults()[1] - zeroed, 0)?;
    bench.until_threads_are(threads);
    same("page", bench.page(addr)?.addr().get(), m.addr().get())?;
    bench.free_pageable(addr, 1)
}

/// The range that the parties fault on.
static RANGE: AtomicU64 = AtomicU64::new(0);
/// Parties in all.
static JOINED: AtomicU64 = AtomicU64::new(0);
/// Parties that have come to each page.
static ARRIVED: [AtomicU32; SHARED] = [const { AtomicU32::new(0) }; SHARED];

/// Writes the word of party `me` in each page of the range, each when all parties have come to it.
fn fault_together(vm: &KernelVm, me: u64) {
    for (page, arrived) in (0..PAGES).zip(&ARRIVED) {
        arrived.fetch_add(1, Ordering::AcqRel);
        while u64::from(arrived.load(Ordering::Acquire)) < JOINED.load(Ordering::Relaxed) {
            vm.sched_yield();
            core::hint::spin_loop();
        }
        let word = RANGE.load(Ordering::Relaxed) + page * PAGE_SIZE + me * 8;
        // SAFETY: memory of exec_map that the check frees when all parties have ended; each party
        // has a word of its own.
        unsafe { (word as *mut u64).write_volatile(me + 1) };
    }
}

pub fn collided_faults_get_one_page(bench: &Bench<'_>) -> Verdict {
    let vm = bench.vm;
    let threads = vm.cnt().thread_count.get();
    let parties = vm.cnt().ncpu.get().clamp(2, PARTIES);
    // 1. The pages that are allocated next must be cleared.
    let size = 4 * PAGES * PAGE_SIZE;
    let dirty = bench.address(&malloc(size))?;
    bench.ok("fill", &Op::Fill { addr: dirty, size, seed: 1 })?;
    bench.ok("kmem_free", &free(dirty, size))?;
    // 2. All parties fault on each page at the same time.
    let addr = bench.pageable(PAGES)?;
    let zeroed = bench.faults()[1];
    RANGE.store(addr.get(), Ordering::Relaxed);
    JOINED.store(parties, Ordering::Relaxed);
    ARRIVED.iter().for_each(|arrived| arrived.store(0, Ordering::Relaxed));
    // Each would take the CPU from this thread, the idle one, and wait for the next.
    vm.critical_enter();
    let made = (0..parties)
        .zip(TID..)
        .try_for_each(|(me, tid)| bench.thread(tid, fault_together, me).map(|_| ()));
    vm.critical_exit();
    made?;
    bench.until_threads_are(threads);
    // 3. Each page was made once, and has what each party has written.
    same("pages cleared", bench.faults()[1] - zeroed, PAGES)?;
    for page in 0..PAGES {
        for me in 0..parties {
            let word = addr.add(page * PAGE_SIZE + me * 8);
            // SAFETY: as for the writes, which are over.
            let got = unsafe { (word.get() as *const u64).read_volatile() };
            same("the word of a party", got, me + 1)?;
        }
    }
    bench.free_pageable(addr, PAGES)
}
