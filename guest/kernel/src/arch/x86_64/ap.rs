//! Starting the CPUs that did not boot.
//!
//! An application processor begins in real mode at a page that the start-up interrupt names (SDM
//! volume 3, section 9.4.4). [`AP_PAGE`] and the four pages below it, which the loader does not
//! use, hold a trampoline that enters long mode in one step, and page tables that map this one page
//! at its physical address; the processor needs them until it runs in the high half. They are
//! rewritten for each start; CPUs start one after the other.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use vmkern_abi::addr::{GuestPhys, PAGE_SIZE};
use vmkern_abi::boot::AP_END;
use vmkern_abi::kva::KERNBASE;
use vmkern_abi::pte::{Pte, PteFlags};

use super::percpu::{self, PerCpu};
use super::{apic, cpus, instr};
use crate::direct_map;

/// Physical address of the trampoline.
const AP_PAGE: u64 = 0x5000;
/// Page tables of the trampoline: PML4, PDPT, page directory, page table.
const TABLES: [GuestPhys; 4] = [
    GuestPhys::new(0x1000),
    GuestPhys::new(0x2000),
    GuestPhys::new(0x3000),
    GuestPhys::new(0x4000),
];
const _: () = assert!(AP_PAGE + PAGE_SIZE == AP_END.get());

/// Cycles after which a CPU is considered missing: seconds.
const START_LIMIT: u64 = 20_000_000_000;

// Copied to AP_PAGE. Real mode, CS = AP_PAGE / 16, interrupts off.
global_asm!(
    ".pushsection .rodata.ap, \"a\", @progbits",
    ".balign 16",
    ".global ap_trampoline, ap_trampoline_end",
    "ap_trampoline:",
    ".code16",
    "xorw %ax, %ax",
    "movw %ax, %ds",
    "lgdtl {PAGE} + ap_gdt_pointer - ap_trampoline",
    "movl $0x620, %eax", // PAE, OSFXSR, OSXMMEXCPT
    "movl %eax, %cr4",
    "movl ${PML4}, %eax",
    "movl %eax, %cr3",
    "movl $0xc0000080, %ecx", // EFER
    "movl $0x900, %eax",      // LME, NXE
    "xorl %edx, %edx",
    "wrmsr",
    "movl $0x80010033, %eax", // PG, WP, NE, ET, MP, PE
    "movl %eax, %cr0",
    "ljmpl $8, ${PAGE} + ap_long_mode - ap_trampoline",
    ".code64",
    "ap_long_mode:",
    "movabsq $ap_high_half, %rax",
    "jmpq *%rax",
    ".balign 8",
    "ap_gdt: .quad 0, 0x00af9b000000ffff",
    "ap_gdt_pointer: .word 15",
    ".long {PAGE} + ap_gdt - ap_trampoline",
    "ap_trampoline_end:",
    ".popsection",
    PAGE = const AP_PAGE,
    PML4 = const TABLES[0].get(),
    options(att_syntax),
);

// Where the trampoline leads. As `entry.rs` does for the CPU that boots, with the words of this
// CPU's `PerCpu`.
global_asm!(
    ".pushsection .nucleus, \"ax\", @progbits",
    "ap_high_half:",
    "mov rbx, [rip + {AP}]",
    "mov rax, [rip + {PML4}]",
    "mov cr3, rax",
    "lgdt [rbx + {GDT_POINTER}]",
    "lidt [rip + ap_idt_pointer]",
    "xor eax, eax",
    "mov ds, eax",
    "mov es, eax",
    "mov fs, eax",
    "mov gs, eax",
    "mov ss, eax",
    "mov al, 0x30",
    "ltr ax",
    "mov ecx, 0xc0000101", // GS base
    "mov rax, rbx",
    "mov rdx, rbx",
    "shr rdx, 32",
    "wrmsr",
    "mov eax, 0x6a0", // PGE in addition
    "mov cr4, rax",
    "mov rsp, [rbx + {STACK_HIGH}]",
    "xor ebp, ebp",
    "push rbp", // the end of the chain of frames, and the alignment that a call would give
    "mov rax, rsp",
    "push qword ptr [rbx + {BODY_SS}]",
    "push rax",
    "push qword ptr [rbx + {BODY_FLAGS}]",
    "push qword ptr [rbx + {BODY_CS}]",
    "push offset {body}",
    "iretq",
    ".balign 8",
    "ap_idt_pointer: .word 0xfff",
    ".quad idt",
    ".popsection",
    AP = sym STARTING,
    PML4 = sym PML4,
    GDT_POINTER = const percpu::GDT_POINTER,
    STACK_HIGH = const percpu::STACK_HIGH,
    BODY_SS = const percpu::BODY_SS,
    BODY_FLAGS = const percpu::BODY_FLAGS,
    BODY_CS = const percpu::BODY_CS,
    body = sym begin,
);

unsafe extern "C" {
    static ap_trampoline: u8;
    static ap_trampoline_end: u8;
}

/// The structure of the CPU that is starting.
static STARTING: AtomicU64 = AtomicU64::new(0);
/// The kernel's root page table.
static PML4: AtomicU64 = AtomicU64::new(0);

/// Low memory at `pa`, through the image's window.
fn low(pa: GuestPhys) -> *mut u64 {
    KERNBASE.add(pa.get()).get() as *mut u64
}

/// Writes trampoline and page tables.
fn prepare() {
    let set = |table: GuestPhys, index: usize, pte: Pte| {
        // SAFETY: a page of low memory that belongs to this module, mapped for the kernel's whole
        // life.
        unsafe { low(table).add(index).write_volatile(pte.bits()) };
    };
    let table = |pa| Pte::new(pa, PteFlags::V | PteFlags::RW | PteFlags::A);
    let [pml4, pdpt, pd, pt] = TABLES;
    for page in TABLES {
        // SAFETY: as above.
        unsafe { low(page).write_bytes(0, 512) };
    }
    set(pml4, 0, table(pdpt));
    set(pdpt, 0, table(pd));
    set(pd, 0, table(pt));
    let page = GuestPhys::new(AP_PAGE);
    set(pt, usize::try_from(page.pfn()).unwrap_or(0), Pte::new(page, PteFlags::V | PteFlags::A));
    for index in [510, 511] {
        set(pml4, index, direct_map::root_entry(index));
    }
    // SAFETY: the trampoline is shorter than the page that it is copied to, which belongs to this
    // module.
    unsafe {
        let (from, to) = (&raw const ap_trampoline, &raw const ap_trampoline_end);
        let length = to.offset_from_unsigned(from);
        core::ptr::copy_nonoverlapping(from, low(page).cast(), length.min(4096));
    }
}

/// Starts the CPU of `cpu`, and waits until it runs the body and `has_started` returns true.
///
/// # Errors
/// When it does not start in time.
pub fn start(cpu: &'static PerCpu, has_started: impl Fn() -> bool) -> Result<(), NotThere> {
    prepare();
    PML4.store(direct_map::pml4().get(), Ordering::Relaxed);
    STARTING.store(core::ptr::from_ref(cpu) as u64, Ordering::Release);
    let page = u8::try_from(AP_PAGE / PAGE_SIZE).unwrap_or(0);
    apic::reset_cpu(cpu.number());
    apic::start_cpu(cpu.number(), page);
    let begun = instr::rdtsc();
    while cpus::get(cpu.number()).is_none() || !has_started() {
        if instr::rdtsc() - begun > START_LIMIT {
            return Err(NotThere);
        }
        core::hint::spin_loop();
    }
    Ok(())
}

/// A CPU did not start.
#[derive(Clone, Copy, Debug)]
pub struct NotThere;

/// First function of the body on a started CPU, on the stack of its idle thread.
extern "C" fn begin() -> ! {
    apic::init();
    cpus::join(PerCpu::current());
    crate::threads::run_other_cpu()
}
