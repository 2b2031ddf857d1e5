//! Two CPUs that allocate and free pages at the same time, through their caches and past them: the
//! code of [`crate::vm`] itself, over a machine that has nothing but pages.
//!
//! loom watches the words of the locks that take part and `v_free_count`; lists and pages are
//! guarded by those locks, and a page that was handed out twice, or lost, is told by comparing.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use loom::thread::{self, ThreadId};
use vmkern_abi::addr::{GuestPhys, GuestVirt, KPtr, PAGE_SIZE};
use vmkern_abi::atomic::watched::Watched;
use vmkern_abi::kva::phys_to_dmap;
use vmkern_abi::layout::{Pcpu, Thread, VmPage};

use super::bare::{self, Bare};
use crate::vm::Vm;
use crate::vm::page::{AllocClass, AllocFlags};

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

/// CPUs of which each is a thread of loom's.
#[derive(Default)]
struct Cpus {
    /// The threads that are not CPU 0.
    others: Mutex<Vec<ThreadId>>,
}

impl Cpus {
    fn number(&self) -> u64 {
        let others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        u64::from(others.contains(&thread::current().id()))
    }
}

impl bare::Cpus for Cpus {
    fn pcpu(&self) -> KPtr<Pcpu> {
        KPtr::new(phys_to_dmap(PCPUS.add(self.number() * PAGE_SIZE)))
    }

    fn current_thread(&self) -> KPtr<Thread> {
        KPtr::new(phys_to_dmap(THREADS.add(self.number() * size_of::<Thread>() as u64)))
    }
}

/// A system with pages, and what loom watches of it.
struct Pages {
    vm: Arc<Vm<Bare<Cpus>>>,
    all: u64,
    _watched: [Watched; 5],
}

impl Pages {
    /// One with `all` pages, of which NORMAL requests leave `reserved`, and caches of one page.
    fn new(all: u32, reserved: u64) -> Self {
        let vm = Arc::new(Vm::over_pages(Bare::new(Cpus::default(), OWN), ROOTS, ARRAY));
        let (state, cnt) = (vm.state(), vm.cnt());
        state.vm_phys_segs.set(KPtr::new(phys_to_dmap(SEGMENT)));
        state.vm_phys_nsegs.set(1);
        let seg = vm.vm_phys_seg(0);
        seg.start.set(FIRST);
        seg.fresh.set(FIRST);
        seg.end.set(FIRST + all);
        cnt.v_free_count.set(all.into());
        cnt.v_page_count.set(all.into());
        cnt.v_free_reserved.set(reserved);
        cnt.ncpu.set(CPUS);
        // Nobody is there who could be woken.
        state.vm_pageout_pages_needed.set(0);
        let pcpu = |cpu: u64| KPtr::<Pcpu>::new(phys_to_dmap(PCPUS.add(cpu * PAGE_SIZE)));
        state.cpuhead.set(pcpu(0));
        vm.get(pcpu(0)).allcpu_next.set(pcpu(1));
        for cpu in 0..CPUS {
            let thread = THREADS.add(cpu * size_of::<Thread>() as u64);
            vm.at::<Thread>(thread).tid.set(u32::try_from(cpu).expect("it is small"));
        }
        state.page_cache_max.set(1);
        vm.free_queue_lock();
        vm.page_caches_enable();
        vm.free_queue_unlock();
        let watched = [
            state.vm_page_queue_free_mtx.owner.watch(),
            state.vm_page_queue_mtx.owner.watch(),
            cnt.v_free_count.watch(),
            vm.get(pcpu(0)).page_cache.lock.owner.watch(),
            vm.get(pcpu(1)).page_cache.lock.owner.watch(),
        ];
        Self { vm, all: all.into(), _watched: watched }
    }

    /// Does `body` on CPU 1.
    fn spawn<T: 'static>(
        &self,
        body: impl FnOnce(&Vm<Bare<Cpus>>) -> T + 'static,
    ) -> thread::JoinHandle<T> {
        let vm = Arc::clone(&self.vm);
        thread::spawn(move || {
            let me = thread::current().id();
            vm.machine().others.lock().unwrap_or_else(PoisonError::into_inner).push(me);
            body(&vm)
        })
    }

    /// Nothing is lost or given twice when some have the pages `held`.
    fn check(&self, held: &[KPtr<VmPage>]) {
        let free = self.vm.cnt().v_free_count.get();
        assert_eq!(free + held.len() as u64, self.all, "the free count");
        let mut seen: BTreeSet<GuestVirt> = held.iter().map(|m| m.addr()).collect();
        assert_eq!(seen.len(), held.len(), "a page was handed out twice");
        for left in (0..free).rev() {
            let m = alloc(&self.vm, AllocClass::Interrupt).expect("what is counted can be had");
            assert!(seen.insert(m.addr()), "a page that somebody has was free");
            assert_eq!(self.vm.cnt().v_free_count.get(), left);
        }
    }
}

fn alloc(vm: &Vm<Bare<Cpus>>, class: AllocClass) -> Option<KPtr<VmPage>> {
    vm.vm_page_alloc(None, 0, class, AllocFlags::WIRED)
}

fn take(vm: &Vm<Bare<Cpus>>, class: AllocClass, most: usize) -> Vec<KPtr<VmPage>> {
    (0..most).map_while(|_| alloc(vm, class)).collect()
}

#[test]
fn two_cpus_leave_exactly_what_the_floor_says() {
    loom::model(|| {
        let pages = Pages::new(6, 2);
        // Both CPUs are refused a page, and neither is to look for somebody to wake.
        pages.vm.state().vm_pages_needed.set(1);
        let other = pages.spawn(|vm| take(vm, AllocClass::Normal, 4));
        let mut held = take(&pages.vm, AllocClass::Normal, 4);
        held.extend(other.join().expect("it ends well"));
        assert_eq!(pages.vm.cnt().v_free_count.get(), 2);
        pages.check(&held);
    });
}

#[test]
fn a_cpu_takes_every_page_of_the_others_cache_while_that_is_in_use() {
    loom::model(|| {
        let pages = Pages::new(6, 0);
        let other = pages.spawn(|vm| {
            let first = alloc(vm, AllocClass::Interrupt);
            first.into_iter().for_each(|m| vm.vm_page_unwire_free(m));
            alloc(vm, AllocClass::Interrupt)
        });
        let mut held = take(&pages.vm, AllocClass::Interrupt, 5);
        assert_eq!(held.len(), 5, "the other CPU has one page at most");
        held.extend(other.join().expect("it ends well"));
        assert_eq!(held.len(), 6, "there was one for the other CPU all the time");
        pages.check(&held);
    });
}
