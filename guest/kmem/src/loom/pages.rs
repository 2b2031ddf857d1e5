//! Two CPUs that allocate and free pages at the same time, through their caches and past them, and
//! a host that takes pages away meanwhile: the code of [`crate::vm`] and of [`vmkern_abi::seize`]
//! itself, over a machine that has only pages.
//!
//! The host holds the CPUs as [`vmkern_abi::control`] says: it raises a word, each CPU stops at the
//! next place where it owns no lock, and goes on when the word is clear again.
//!
//! loom watches the words of the locks that take part and `v_free_count`; lists and pages are
//! guarded by those locks, and a comparison finds a page that was allocated twice, or lost.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread::{self, ThreadId};
use vmkern_abi::addr::{GuestPhys, GuestVirt, KPtr, PAGE_SIZE};
use vmkern_abi::atomic::watched::Watched;
use vmkern_abi::kva::phys_to_dmap;
use vmkern_abi::layout::{KernelRoots, Pcpu, Thread, VmPage};
use vmkern_abi::seize::{Contents, Seize};

use super::bare::Bare;
use crate::kern::Kern;
use crate::machine::{self, AllocClass, ThreadStart};
use crate::num::to_usize;
use crate::vm::page::AllocFlags;
use crate::vm::phys::Phys;

/// The kernel's global variables.
const ROOTS: GuestPhys = GuestPhys::new(PAGE_SIZE);
/// The page array, of which element n is page n.
const ARRAY: GuestPhys = GuestPhys::new(2 * PAGE_SIZE);
/// The one segment.
const SEGMENT: GuestPhys = GuestPhys::new(3 * PAGE_SIZE);
/// The threads, one on each CPU.
const THREADS: GuestPhys = GuestPhys::new(4 * PAGE_SIZE);
/// The CPUs' structures, a page each.
const PCPUS: GuestPhys = GuestPhys::new(5 * PAGE_SIZE);
/// Pages of memory that the model itself needs.
const OWN: usize = 7;
/// The first page that can be allocated: no page before it is in the same block of two.
const FIRST: u32 = 8;
/// Number of CPUs.
const CPUS: u64 = 2;
/// The roots, in the direct map.
const ROOTS_POINTER: KPtr<KernelRoots> = KPtr::new(phys_to_dmap(ROOTS));
/// The most preemptions of a model with three threads: more take hours.
const HOST_PREEMPTIONS: usize = 2;

/// CPUs, each of which is a thread of loom.
#[derive(Default)]
struct Cpus {
    /// The threads that are not CPU 0.
    others: Mutex<Vec<ThreadId>>,
    /// How many locks each CPU owns.
    depth: [std::sync::atomic::AtomicU64; CPUS as usize],
    gate: OnceLock<Arc<Gate>>,
}

/// Where CPUs stand while the host holds them.
struct Gate {
    /// Set while they should stop.
    pausing: AtomicBool,
    /// CPUs that stand or have ended.
    standing: loom::sync::Mutex<u64>,
    moved: loom::sync::Condvar,
}

impl Gate {
    fn new() -> Self {
        Self {
            pausing: AtomicBool::new(false),
            standing: loom::sync::Mutex::new(0),
            moved: loom::sync::Condvar::new(),
        }
    }

    /// A CPU that owns no lock stands here while the host wants it to.
    fn pass(&self) {
        if !self.pausing.load(Ordering::Acquire) {
            return;
        }
        let mut standing = self.standing.lock().expect("no panic");
        *standing += 1;
        self.moved.notify_all();
        while self.pausing.load(Ordering::Acquire) {
            standing = self.moved.wait(standing).expect("no panic");
        }
        *standing -= 1;
    }

    /// A CPU has ended: it stands still for ever.
    fn end(&self) {
        *self.standing.lock().expect("no panic") += 1;
        self.moved.notify_all();
    }

    /// Calls `f` while all CPUs stand still.
    fn hold<T>(&self, f: impl FnOnce() -> T) -> T {
        self.pausing.store(true, Ordering::Release);
        let mut standing = self.standing.lock().expect("no panic");
        while *standing < CPUS {
            standing = self.moved.wait(standing).expect("no panic");
        }
        let result = f();
        self.pausing.store(false, Ordering::Release);
        self.moved.notify_all();
        result
    }
}

impl Cpus {
    fn number(&self) -> u64 {
        let others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        u64::from(others.contains(&thread::current().id()))
    }

    fn own_depth(&self) -> &std::sync::atomic::AtomicU64 {
        &self.depth[to_usize(self.number())]
    }
}

impl machine::Cpu for Bare<Cpus> {
    type System = Phys<Self>;

    fn is_unwinding(&self) -> bool {
        std::thread::panicking()
    }

    fn panic(&self, message: fmt::Arguments<'_>) -> ! {
        panic!("{message}")
    }

    fn ticks(&self) -> u64 {
        0
    }

    fn micros(&self) -> u64 {
        0
    }

    fn cpu_init(&self, pcpu: KPtr<Pcpu>) {
        unreachable!("CPUs are made by the model: {}", pcpu.addr())
    }

    fn pcpu(&self) -> KPtr<Pcpu> {
        KPtr::new(phys_to_dmap(PCPUS.add(self.number() * PAGE_SIZE)))
    }

    fn current_thread(&self) -> KPtr<Thread> {
        KPtr::new(phys_to_dmap(THREADS.add(self.number() * size_of::<Thread>() as u64)))
    }

    fn cpu_adopt(&self, thread: KPtr<Thread>) {
        unreachable!("threads are made by the model: {}", thread.addr())
    }

    fn cpu_spinwait(&self, _spins: u64) {
        thread::yield_now();
    }

    fn cpu_fork(
        &self,
        thread: KPtr<Thread>,
        _stack: Range<GuestVirt>,
        _start: ThreadStart<Self::System>,
        _arg: u64,
    ) {
        unreachable!("threads are made by the model: {}", thread.addr())
    }

    fn cpu_switch(&self, from: KPtr<Thread>, _to: KPtr<Thread>) {
        unreachable!("nobody sleeps: {}", from.addr())
    }

    fn cpu_throw(&self, from: KPtr<Thread>, _to: KPtr<Thread>) -> ! {
        unreachable!("nobody exits: {}", from.addr())
    }

    fn cpu_idle(&self, _kern: &Kern<Self>) {
        unreachable!("idle threads never sleep")
    }

    fn intr_disable(&self) {
        self.own_depth().fetch_add(1, Ordering::Relaxed);
    }

    fn intr_restore(&self) {
        if self.own_depth().fetch_sub(1, Ordering::Relaxed) == 1
            && let Some(gate) = self.gate.get()
        {
            gate.pass();
        }
    }
}

/// A system with pages, and what loom watches of it.
struct Pages {
    phys: Arc<Phys<Bare<Cpus>>>,
    all: u64,
    _watched: [Watched; 5],
}

impl Pages {
    /// One with `all` pages, of which NORMAL requests leave `reserved`, and caches of one page.
    fn new(all: u32, reserved: u64) -> Self {
        let kern = Kern::new(Bare::new(Cpus::default(), OWN), ROOTS);
        let phys = Arc::new(Phys::new(kern, ARRAY, 0));
        let (state, cnt) = (phys.state(), phys.cnt());
        state.vm_phys_segs.set(KPtr::new(phys_to_dmap(SEGMENT)));
        state.vm_phys_nsegs.set(1);
        state.vm_page_array.set(KPtr::new(phys_to_dmap(ARRAY)));
        state.vm_page_array_size.set(u64::from(FIRST + all));
        let seg = phys.vm_phys_seg(0);
        seg.start.set(FIRST);
        seg.fresh.set(FIRST);
        seg.end.set(FIRST + all);
        seg.limit.set(FIRST + all);
        cnt.v_free_count.set(all.into());
        cnt.v_page_count.set(all.into());
        cnt.v_free_reserved.set(reserved);
        cnt.ncpu.set(CPUS);
        // There is no thread that could be woken.
        state.vm_pageout_pages_needed.lower();
        let pcpu = |cpu: u64| KPtr::<Pcpu>::new(phys_to_dmap(PCPUS.add(cpu * PAGE_SIZE)));
        state.cpuhead.set(pcpu(0));
        phys.get(pcpu(0)).allcpu_next.set(pcpu(1));
        for cpu in 0..CPUS {
            let thread = THREADS.add(cpu * size_of::<Thread>() as u64);
            phys.at::<Thread>(thread).tid.set(u32::try_from(cpu).expect("it is small"));
        }
        state.page_cache_max.set(1);
        phys.page_caches_enable(&phys.free_queue());
        let watched = [
            state.vm_page_queue_free_mtx.owner.watch(),
            state.vm_page_queue_mtx.owner.watch(),
            cnt.v_free_count.watch(),
            phys.get(pcpu(0)).page_cache.lock.owner.watch(),
            phys.get(pcpu(1)).page_cache.lock.owner.watch(),
        ];
        Self { phys, all: all.into(), _watched: watched }
    }

    /// Does `body` on CPU 1.
    fn spawn<T: 'static>(
        &self,
        body: impl FnOnce(&Phys<Bare<Cpus>>) -> T + 'static,
    ) -> thread::JoinHandle<T> {
        let phys = Arc::clone(&self.phys);
        thread::spawn(move || {
            let me = thread::current().id();
            phys.machine().others.lock().unwrap_or_else(PoisonError::into_inner).push(me);
            body(&phys)
        })
    }

    /// Checks that no page is lost or allocated twice when the pages `held` are allocated.
    fn check(&self, held: &[KPtr<VmPage>]) {
        let free = self.phys.cnt().v_free_count.get();
        assert_eq!(free + held.len() as u64, self.all, "the free count");
        let mut seen: BTreeSet<GuestVirt> = held.iter().map(|m| m.addr()).collect();
        assert_eq!(seen.len(), held.len(), "a page was handed out twice");
        for left in (0..free).rev() {
            let m = alloc(&self.phys, AllocClass::Interrupt).expect("what is counted can be had");
            assert!(seen.insert(m.addr()), "a page that somebody has was free");
            assert_eq!(self.phys.cnt().v_free_count.get(), left);
        }
    }
}

fn alloc(phys: &Phys<Bare<Cpus>>, class: AllocClass) -> Option<KPtr<VmPage>> {
    phys.vm_page_alloc_noobj(class, AllocFlags::WIRED)
}

fn take(phys: &Phys<Bare<Cpus>>, class: AllocClass, most: usize) -> Vec<KPtr<VmPage>> {
    (0..most).map_while(|_| alloc(phys, class)).collect()
}

#[test]
fn two_cpus_leave_exactly_what_the_floor_says() {
    loom::model(|| {
        let pages = Pages::new(6, 2);
        // Both CPUs are refused a page, and neither may look for a thread to wake.
        pages.phys.state().vm_pages_needed.raise();
        let other = pages.spawn(|phys| take(phys, AllocClass::Normal, 4));
        let mut held = take(&pages.phys, AllocClass::Normal, 4);
        held.extend(other.join().expect("it ends well"));
        assert_eq!(pages.phys.cnt().v_free_count.get(), 2);
        pages.check(&held);
    });
}

#[test]
fn a_cpu_takes_every_page_of_the_others_cache_while_that_is_in_use() {
    loom::model(|| {
        let pages = Pages::new(6, 0);
        let other = pages.spawn(|phys| {
            let first = alloc(phys, AllocClass::Interrupt);
            first.into_iter().for_each(|m| phys.vm_page_unwire_free(m));
            alloc(phys, AllocClass::Interrupt)
        });
        let mut held = take(&pages.phys, AllocClass::Interrupt, 5);
        assert_eq!(held.len(), 5, "the other CPU has one page at most");
        held.extend(other.join().expect("it ends well"));
        assert_eq!(held.len(), 6, "there was one for the other CPU all the time");
        pages.check(&held);
    });
}

/// The host takes `pages` pages and gives them back, while all CPUs stand still each time.
fn seize_and_release(phys: &Phys<Bare<Cpus>>, gate: &Gate, pages: u64) {
    let host = || Seize::new(phys, ROOTS_POINTER).expect("no lock is owned where CPUs stand");
    let mut taken = Vec::new();
    gate.hold(|| host().take(pages, |frames| taken.extend(frames)).expect("nothing is damaged"));
    let given = gate.hold(|| {
        let frames = drop::<vmkern_abi::seize::Frames>;
        host().give_back(u64::MAX, Contents::Kept, frames).expect("nothing is damaged")
    });
    assert_eq!(given, taken.len() as u64, "what was taken stayed taken");
}

#[test]
fn a_host_takes_pages_from_two_cpus_that_allocate_and_free() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.map(|bound| bound.min(HOST_PREEMPTIONS));
    builder.check(|| {
        let pages = Pages::new(6, 0);
        let gate = Arc::new(Gate::new());
        assert!(pages.phys.machine().gate.set(Arc::clone(&gate)).is_ok());
        let (phys, theirs) = (Arc::clone(&pages.phys), Arc::clone(&gate));
        let host = thread::spawn(move || seize_and_release(&phys, &theirs, 4));
        let theirs = Arc::clone(&gate);
        let other = pages.spawn(move |phys| {
            let held = take(phys, AllocClass::Interrupt, 2);
            held.iter().take(1).for_each(|&m| phys.vm_page_unwire_free(m));
            theirs.end();
            held.into_iter().skip(1).collect::<Vec<_>>()
        });
        let mut held = take(&pages.phys, AllocClass::Interrupt, 2);
        held.drain(..held.len().min(1)).for_each(|m| pages.phys.vm_page_unwire_free(m));
        gate.end();
        host.join().expect("it ends well");
        held.extend(other.join().expect("it ends well"));
        pages.check(&held);
    });
}
