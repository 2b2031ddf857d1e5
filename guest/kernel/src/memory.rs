//! The memory system on the real CPU.

use core::fmt;
use core::ops::Range;
use core::ptr::NonNull;

use kmem::kern::Kern;
use kmem::machine::{Cpu, Mmu, PhysMem, ThreadStart};
use kmem::vm::{BootMemory, PhysRange, Vm, Zeroed};
use vmkern_abi::addr::{GuestPhys, GuestVirt, KPtr, PAGE_SIZE, trunc_page};
use vmkern_abi::boot::BootArgs;
use vmkern_abi::fail::FailPoints;
use vmkern_abi::kva::{KERNBASE, MAX_PHYS, phys_to_dmap};
use vmkern_abi::layout::{Pcpu, Thread};
use vmkern_abi::paging::Paging;
use vmkern_abi::pte::PteFlags;

use crate::arch::clock::Clock;
use crate::arch::percpu::PerCpu;
use crate::arch::{IMAGE_WINDOW_BYTES, cpus, instr, interrupt, tlb};
use crate::direct_map;
use crate::host::backtrace::Backtrace;
use crate::host::pvh::BootData;
use crate::host::{log, region};
use crate::once::Once;
use crate::threads;

/// The memory system of this kernel.
pub type KernelVm = Vm<KernelMachine>;

/// The kernel's one memory system. The page-fault handler finds it here.
static VM: Once<KernelVm> = Once::new();

/// The memory system, once it is up.
#[inline]
pub fn vm() -> Option<&'static KernelVm> {
    VM.get()
}

/// Brings up the memory system with all RAM that is not in use otherwise.
pub fn boot(boot: &BootData, args: &BootArgs) -> &'static KernelVm {
    let tables_end = direct_map::build(boot.memory_map, &args.devices);
    let nothing = PhysRange { start: GuestPhys::new(0), end: GuestPhys::new(0) };
    let mut few = [nothing; 16];
    let (ranges, first_free) = range_table(&mut few, boot.memory_map.len(), tables_end);
    let mut count = 0;
    for entry in boot.memory_map.iter().filter(|entry| entry.is_ram()) {
        let start = entry.start.get().max(first_free.get()).next_multiple_of(PAGE_SIZE);
        let end = trunc_page(entry.start.get().saturating_add(entry.size).min(MAX_PHYS.get()));
        if start < end {
            ranges[count] = PhysRange { start: GuestPhys::new(start), end: GuestPhys::new(end) };
            count += 1;
        }
    }
    VM.set(Vm::boot(
        KernelMachine,
        &BootMemory {
            ranges: &ranges[..count],
            pml4: direct_map::pml4(),
            virtual_avail: KERNBASE.add(IMAGE_WINDOW_BYTES),
            zeroed: if args.zeroed { Zeroed::Yes } else { Zeroed::No },
            tunables: args.tunables,
        },
    ))
}

/// Room for `count` ranges, and the first address past it: in `few` if that is enough, otherwise at
/// `at`, where RAM is free. Loaders may describe any number of ranges, but usually few, and
/// touching another page would slow the boot.
fn range_table(
    few: &mut [PhysRange],
    count: usize,
    at: GuestPhys,
) -> (&mut [PhysRange], GuestPhys) {
    if count <= few.len() {
        return (few, at);
    }
    let bytes = size_of::<PhysRange>() * count;
    let table = phys_to_dmap(at).get() as *mut PhysRange;
    // SAFETY: RAM behind the image that nothing else uses, mapped by the direct map; each entry is
    // written before the slice is made.
    let ranges = unsafe {
        for index in 0..count {
            table.add(index).write(PhysRange { start: at, end: at });
        }
        core::slice::from_raw_parts_mut(table, count)
    };
    (ranges, at.add((bytes as u64).next_multiple_of(PAGE_SIZE)))
}

/// The real CPU and its direct map.
#[derive(Debug)]
pub struct KernelMachine;

// SAFETY: the direct map maps all RAM for the kernel's whole life, and only the memory system uses
// RAM beyond the image.
unsafe impl PhysMem for KernelMachine {
    #[inline]
    fn frame(&self, pa: GuestPhys) -> NonNull<u8> {
        let va = phys_to_dmap(pa).get() as *mut u8;
        // SAFETY: no direct-map address is 0.
        unsafe { NonNull::new_unchecked(va) }
    }

    #[inline]
    fn zero_page(&self, pa: GuestPhys) {
        // SAFETY: the page is managed memory that its caller owns.
        unsafe { self.frame(pa).write_bytes(0, 4096) };
    }
}

impl Mmu for KernelMachine {
    #[inline]
    fn invalidate_range(&self, start: GuestVirt, end: GuestVirt) {
        tlb::invalidate_range(start, end);
    }

    #[inline]
    fn paging(&self) -> Paging {
        region::paging()
    }

    #[inline]
    fn pte_flags_base(&self) -> PteFlags {
        if PerCpu::current().body_is_user() { PteFlags::U } else { PteFlags::empty() }
    }
}

impl Cpu for KernelMachine {
    type System = KernelVm;

    #[inline]
    fn cycles(&self) -> u64 {
        instr::rdtsc_unordered()
    }

    #[cfg(not(feature = "no-fail-sites"))]
    #[inline(always)]
    fn fail_armed(&self) -> u64 {
        region::fail_armed()
    }

    fn fail_points(&self) -> Option<&FailPoints> {
        region::get().map(|region| &region.fail)
    }

    fn call_stack(&self) -> impl Iterator<Item = GuestVirt> {
        Backtrace::here()
    }

    fn delay(&self, usec: u64) {
        threads::clock().inspect(|clock| clock.delay(usec));
    }

    fn log(&self, line: fmt::Arguments<'_>) {
        // A line that the log drops is counted there.
        let _ = log::line(line);
    }

    fn panic(&self, message: fmt::Arguments<'_>) -> ! {
        panic!("{message}")
    }

    fn ticks(&self) -> u64 {
        threads::clock().map_or(0, Clock::ticks)
    }

    fn micros(&self) -> u64 {
        threads::clock().map_or(0, Clock::micros)
    }

    fn cpu_init(&self, pcpu: KPtr<Pcpu>) {
        PerCpu::current().set_pcpu(pcpu);
    }

    #[inline]
    fn pcpu(&self) -> KPtr<Pcpu> {
        PerCpu::pcpu()
    }

    #[inline]
    fn current_thread(&self) -> KPtr<Thread> {
        PerCpu::thread()
    }

    fn cpu_interrupt(&self, pcpu: &Pcpu) {
        cpus::reschedule(pcpu.cpuid.get());
    }

    #[inline]
    fn cpu_spinwait(&self, spins: u64) {
        tlb::spin(spins);
    }

    fn cpu_adopt(&self, thread: KPtr<Thread>) {
        threads::adopt(PerCpu::current(), thread);
    }

    fn cpu_fork(
        &self,
        thread: KPtr<Thread>,
        stack: Range<GuestVirt>,
        start: ThreadStart<KernelVm>,
        arg: u64,
    ) {
        threads::fork(thread, &stack, start, arg);
    }

    fn cpu_switch(&self, from: KPtr<Thread>, to: KPtr<Thread>) {
        threads::switch(from, to);
    }

    fn cpu_throw(&self, _: KPtr<Thread>, to: KPtr<Thread>) -> ! {
        threads::throw(to)
    }

    fn cpu_idle(&self, kern: &Kern<Self>) {
        threads::idle(kern);
    }

    fn clock_needed(&self, pcpu: &Pcpu, due: Option<u64>) {
        threads::need_timer(pcpu, due);
    }

    #[inline]
    fn intr_point(&self) {
        interrupt::point();
    }

    #[inline]
    fn intr_disable(&self) {
        interrupt::defer();
    }

    #[inline]
    fn intr_restore(&self) {
        interrupt::allow();
    }
}

/// Number of the running thread, once there are threads.
pub fn current_tid() -> Option<u32> {
    let thread = PerCpu::thread().non_null()?;
    vm().map(|vm| vm.get(thread).tid.get())
}
