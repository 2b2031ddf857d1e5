//! The memory system on the real CPU.

use core::fmt;
use core::ptr::NonNull;

use kmem::machine::Machine;
use kmem::vm::{BootMemory, PhysRange, Vm, Zeroed};
use vmkern_abi::addr::{GuestPhys, GuestVirt};
use vmkern_abi::boot::BootArgs;
use vmkern_abi::kva::{KERNBASE, MAX_PHYS, phys_to_dmap};
use vmkern_abi::pte::PteFlags;

use crate::arch::percpu::PerCpu;
use crate::arch::{IMAGE_WINDOW_BYTES, tlb};
use crate::direct_map;
use crate::host::pvh::BootData;
use crate::once::Once;

/// The memory system of this kernel.
pub type KernelVm = Vm<KernelMachine>;

/// The kernel's one memory system. The page-fault handler finds it here.
static VM: Once<KernelVm> = Once::new();

/// The memory system, once it is up.
pub fn vm() -> Option<&'static KernelVm> {
    VM.get()
}

/// Brings up the memory system with all RAM that nothing else lives in.
pub fn boot(boot: &BootData, args: &BootArgs) -> &'static KernelVm {
    let first_free = direct_map::build(boot.memory_map);
    let mut ranges = [NO_RANGE; MAX_RANGES];
    let mut count = 0;
    let managed = |start: u64| start.max(first_free.get());
    for entry in boot.memory_map.iter().filter(|entry| entry.is_ram()) {
        let start = managed(entry.start.get()).next_multiple_of(4096);
        let end = entry.start.get().saturating_add(entry.size).min(MAX_PHYS.get()) & !4095;
        if start < end {
            assert!(count < MAX_RANGES, "boot: more than {MAX_RANGES} ranges of RAM");
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

/// More ranges of RAM than this a PC's memory map does not have (FreeBSD's `PHYSMAP_SIZE` is 30 as well).
const MAX_RANGES: usize = 32;

const NO_RANGE: PhysRange = PhysRange { start: GuestPhys::new(0), end: GuestPhys::new(0) };

/// The real CPU and its direct map.
#[derive(Debug)]
pub struct KernelMachine;

// SAFETY: the direct map shows all RAM for the kernel's whole life, and RAM beyond the image belongs to the memory
// system alone.
unsafe impl Machine for KernelMachine {
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

    #[inline]
    fn invalidate_range(&self, start: GuestVirt, end: GuestVirt) {
        tlb::invalidate_range(start, end);
    }

    #[inline]
    fn pte_flags_base(&self) -> PteFlags {
        if PerCpu::current().body_is_user() { PteFlags::U } else { PteFlags::empty() }
    }

    fn panic(&self, message: fmt::Arguments<'_>) -> ! {
        panic!("{message}")
    }

    fn ticks(&self) -> u64 {
        vm().map_or(0, |vm| vm.cnt().ticks.get())
    }
}
