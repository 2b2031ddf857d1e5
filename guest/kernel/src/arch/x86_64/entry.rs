//! From the loader to the kernel body, in one of two ways.
//!
//! **Direct.** vmkern's own loader reads the [`EntryNote`] and enters [`direct_entry`] in long
//! mode, with every table loaded ([`vmkern_abi::entry`] is the protocol). A CPL0 instruction may
//! cost a microsecond. So there are only eleven: they time themselves, decide where the body runs,
//! and jump there.
//!
//! **By PVH.** Any other loader enters [`pvh_entry`] in 32-bit protected mode without paging, EBX
//! pointing at `hvm_start_info` (PVH boot protocol,
//! `xen/include/public/arch-x86/hvm/start_info.h`). It sets up the state in which the direct way
//! begins, and continues there. For both, all descriptor and page tables are static data of the
//! image.
//!
//! State at the start of the body: long mode, paging by `boot_pml4` with the image at KERNBASE, no
//! identity mapping, GDT, IDT, TSS and GS base set, interrupts enabled, RDI = physical address of
//! `hvm_start_info`, RSI = cycles that [`TIMED_INSTRUCTIONS`] took, RDX = TSC at the direct entry;
//! CPL as decided: the command line's first word when it is `privilege=supervisor` or
//! `privilege=user`, else by those cycles.

use core::arch::global_asm;

use vmkern_abi::boot::Privilege;
use vmkern_abi::entry::{self, EntryNote, TIMED_INSTRUCTIONS, user_from};

use super::percpu;

// The note that names the PVH entry (type 18, XEN_ELFNOTE_PHYS32_ENTRY).
global_asm!(
    ".pushsection .note.pvh, \"a\", @note",
    ".balign 4",
    ".long 4, 4, 18",
    ".asciz \"Xen\"",
    ".long pvh_entry - {KERNBASE}",
    ".popsection",
    KERNBASE = const KERNBASE,
);

// The note for vmkern's loader: an `EntryNote`, field by field.
global_asm!(
    ".pushsection .note.vmkern, \"a\", @note",
    ".balign 4",
    ".long 7, {LEN}, {TYPE}",
    ".asciz \"vmkern\"",
    ".balign 4",
    ".long {VERSION}, {TSS_LIMIT}",
    ".short {TSS}, {GDT_LIMIT}, {IDT_LIMIT}, 0",
    ".quad direct_entry",
    ".quad user_frame", // RSP
    ".quad boot_pml4 - {KERNBASE}",
    ".quad gdt, idt",
    ".quad PERCPU0", // TSS
    ".quad PERCPU0", // GS base
    ".popsection",
    LEN = const EntryNote::LEN,
    TYPE = const entry::NOTE_TYPE,
    VERSION = const entry::VERSION,
    TSS_LIMIT = const percpu::TSS_LIMIT,
    TSS = const TSS,
    GDT_LIMIT = const GDT_LIMIT,
    IDT_LIMIT = const IDT_LIMIT,
    KERNBASE = const KERNBASE,
);
const _: () = assert!(entry::NOTE_NAME.len() + 1 == 7);

/// Selector of the task-state segment.
const TSS: u16 = 0x30;
/// Limit of the global descriptor table: eight words.
const GDT_LIMIT: u16 = 8 * 8 - 1;
/// Limit of the interrupt descriptor table: 256 gates.
const IDT_LIMIT: u16 = 256 * 16 - 1;

/// `vmkern_abi::kva::KERNBASE` in the assembler's syntax.
const KERNBASE: u64 = vmkern_abi::kva::KERNBASE.get();

// The upper page tables. Entry 510 of `kernel_pdpt` is KERNBASE's GiB. `identity_pdpt` maps the
// image a second time, at its physical address: the PVH entry has it in `boot_pml4[0]` for the few
// instructions around the switch to paging.
global_asm!(
    ".pushsection .tables, \"aw\", @progbits",
    ".balign 4096",
    ".global boot_pml4, dmap_pdpt, dmap_pd0, kernel_pdpt",
    "boot_pml4: .zero 510 * 8",
    ".quad dmap_pdpt - {K} + 0x27",
    ".quad kernel_pdpt - {K} + 0x27",
    "kernel_pdpt: .zero 510 * 8",
    ".quad image_pd - {K} + 0x27",
    ".quad 0",
    "image_pd: .quad image_pt0 - {K} + 0x27",
    ".quad image_pt1 - {K} + 0x27",
    ".zero 510 * 8",
    "dmap_pdpt: .quad dmap_pd0 - {K} + 0x27",
    ".zero 511 * 8",
    "dmap_pd0: .zero 4096",
    "identity_pdpt: .quad image_pd - {K} + 0x27",
    ".zero 511 * 8",
    ".popsection",
    K = const KERNBASE,
);

// The direct way, and the end of the other.
global_asm!(
    ".pushsection .nucleus, \"ax\", @progbits",
    ".global direct_entry",
    "direct_entry:",
    "rdtsc",
    // How fast is CPL0? These four, between two readings.
    "shl rdx, 32",
    "or rdx, rax",
    "mov r8, rdx", // TSC at entry
    "rdtsc",
    "sub eax, r8d",
    "mov esi, eax",
    "mov rdx, r8",
    "cmp esi, ecx",
    "jb 2f",
    // User: RSP is at `user_frame`, and the per-CPU selectors say CPL3 already.
    "iretq",
    // Supervisor: the whole of the kernel's address space loses U, at the root.
    "2:",
    "and qword ptr [rip + boot_pml4 + 510 * 8], -5",
    "and qword ptr [rip + boot_pml4 + 511 * 8], -5",
    "mov rax, cr3",
    "mov cr3, rax",
    "mov dword ptr gs:[{BODY_CS}], 0x08",
    "mov dword ptr gs:[{BODY_SS}], 0x10",
    "mov rsp, offset boot_stack_top - 8",
    "sti",
    "jmp {body}",
    ".popsection",
    // The frame that leads to the body at CPL3. Its stack begins with the end of the chain of
    // frames, a zero that is already there; that also gives the alignment of a call.
    ".pushsection .user_frame, \"aw\", @progbits",
    ".balign 8",
    ".global user_frame",
    "user_frame: .quad {body}, 0x23, 0x202, boot_stack_top - 8, 0x1b",
    ".popsection",
    BODY_CS = const percpu::BODY_CS,
    BODY_SS = const percpu::BODY_SS,
    body = sym crate::body,
);
const _: () = assert!(TIMED_INSTRUCTIONS == 4);

global_asm!(
    ".pushsection .nucleus, \"ax\", @progbits",
    ".code32",
    ".global pvh_entry",
    "pvh_entry:",
    "lgdt [gdt_pointer - {K}]",
    "mov dword ptr [boot_pml4 - {K}], offset identity_pdpt - {K} + 0x27",
    "mov eax, {CR4_FIRST}",
    "mov cr4, eax",
    "mov eax, offset boot_pml4 - {K}",
    "mov cr3, eax",
    "mov ecx, 0xc0000080", // EFER
    "mov eax, {EFER}",
    "xor edx, edx",
    "wrmsr",
    "mov eax, {CR0}",
    "mov cr0, eax",
    // A far jump through memory: LLVM's Intel syntax has no direct one in 32-bit code.
    "jmp fword ptr [long_mode_pointer - {K}]",
    ".code64",
    "long_mode:",
    "movabs rax, offset high_half",
    "jmp rax",
    "high_half:",
    "mov rsp, offset user_frame",
    "lgdt [rip + gdt_pointer64]",
    "lidt [rip + idt_pointer]",
    "xor eax, eax",
    "mov ds, eax",
    "mov es, eax",
    "mov fs, eax",
    "mov gs, eax",
    "mov ss, eax",
    "mov al, {TSS}",
    "ltr ax",
    "mov ecx, 0xc0000101", // GS base
    "mov rax, offset PERCPU0",
    "mov edx, -1",
    "wrmsr",
    "mov qword ptr [rip + boot_pml4], 0",
    "mov eax, {CR4}", // PGE in addition: drops the identity mapping
    "mov cr4, rax",
    "mov edi, ebx",
    "xor ebp, ebp",
    // What the command line asks for. `hvm_start_info` + 24 is its physical address; -0x80000000 is
    // KERNBASE.
    "mov ecx, {AUTO}",
    "mov eax, dword ptr [rbx - 0x80000000 + 24]",
    "cmp dword ptr [rax - 0x80000000], 0x76697270", // "priv"
    "jne direct_entry",
    "mov al, byte ptr [rax - 0x80000000 + 10]", // after "privilege="
    "cmp al, 0x75",                             // 'u'
    "je 2f",
    "cmp al, 0x73", // 's'
    "jne direct_entry",
    "mov ecx, {SUPERVISOR}",
    "jmp direct_entry",
    "2: mov ecx, {USER}",
    "jmp direct_entry",
    ".balign 8",
    "gdt_pointer: .word {GDT_LIMIT}",
    ".long gdt - {K}",
    ".balign 8",
    "gdt_pointer64: .word {GDT_LIMIT}",
    ".quad gdt",
    ".balign 8",
    "idt_pointer: .word {IDT_LIMIT}",
    ".quad idt",
    "long_mode_pointer: .long long_mode - {K}",
    ".word {CS}",
    ".popsection",
    K = const KERNBASE,
    CR4_FIRST = const entry::CR4 & !(1 << 7),
    // The processor sets LMA itself.
    EFER = const entry::EFER & !(1 << 10),
    CR0 = const entry::CR0,
    CR4 = const entry::CR4,
    CS = const entry::CS,
    TSS = const TSS,
    GDT_LIMIT = const GDT_LIMIT,
    IDT_LIMIT = const IDT_LIMIT,
    AUTO = const user_from(Privilege::Auto),
    SUPERVISOR = const user_from(Privilege::Supervisor),
    USER = const user_from(Privilege::User),
);
