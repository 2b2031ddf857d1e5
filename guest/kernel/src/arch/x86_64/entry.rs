//! From the PVH entry to the kernel body.
//!
//! The loader enters [`pvh_entry`] in 32-bit protected mode without paging, EBX pointing at `hvm_start_info` (PVH boot
//! protocol, `xen/include/public/arch-x86/hvm/start_info.h`). Each CPL0 instruction may cost a microsecond, so there are
//! few: all descriptor and page tables are static data of the image, and everything that can wait runs in the body.
//!
//! What the body finds: long mode, paging by `boot_pml4` with the image at KERNBASE, no identity mapping, GDT, IDT, TSS
//! and GS base set, interrupts enabled, RDI = physical address of `hvm_start_info`, RSI = cycles that 16 CPL0
//! instructions took, RDX = TSC at entry; CPL as decided: the command line's first word when it is
//! `privilege=supervisor` or `privilege=user`, else by those cycles.

use core::arch::global_asm;

use vmkern_abi::control::TIMED_INSTRUCTIONS;

/// More cycles than this for [`TIMED_INSTRUCTIONS`] mean that CPL0 is emulated: more than a processor needs for them even
/// when it is interrupted meanwhile, less than any emulation.
const EMULATED_CYCLES: u32 = 10_000;
const _: () = assert!(TIMED_INSTRUCTIONS == 16);

// The note that names the entry point (type 18, XEN_ELFNOTE_PHYS32_ENTRY).
global_asm!(
    ".pushsection .note.pvh, \"a\", @note",
    ".balign 4",
    ".long 4, 4, 18",
    ".asciz \"Xen\"",
    ".long pvh_entry - {KERNBASE}",
    ".popsection",
    KERNBASE = const KERNBASE,
);

/// `vmkern_abi::kva::KERNBASE` as the assembler wants it.
const KERNBASE: u64 = vmkern_abi::kva::KERNBASE.get();

// The upper page tables. `boot_pml4[0]` maps the image a second time, at its physical address, for the few instructions
// around the switch to paging. Entry 510 of `kernel_pdpt` is KERNBASE's GiB.
global_asm!(
    ".pushsection .tables, \"aw\", @progbits",
    ".balign 4096",
    ".global boot_pml4, dmap_pdpt, dmap_pd0, kernel_pdpt",
    "boot_pml4: .quad identity_pdpt - {K} + 0x27",
    ".zero 509 * 8",
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

global_asm!(
    ".pushsection .nucleus, \"ax\", @progbits",
    ".code32",
    ".global pvh_entry",
    "pvh_entry:",
    "rdtsc",
    "mov esi, eax",
    "mov ebp, edx",
    "lgdt [gdt_pointer - {K}]",
    "mov eax, 0x620", // PAE, OSFXSR, OSXMMEXCPT
    "mov cr4, eax",
    "mov eax, offset boot_pml4 - {K}",
    "mov cr3, eax",
    "mov ecx, 0xc0000080", // EFER
    "mov eax, 0x900",      // LME, NXE
    "xor edx, edx",
    "wrmsr",
    "mov eax, 0x80010033", // PG, WP, NE, ET, MP, PE
    "mov cr0, eax",
    // A far jump through memory: LLVM's Intel syntax has no direct one in 32-bit code.
    "jmp fword ptr [long_mode_pointer - {K}]",
    ".code64",
    "long_mode:",
    "movabs rax, offset high_half",
    "jmp rax",
    "high_half:",
    "mov rsp, offset boot_stack_top",
    "lgdt [rip + gdt_pointer64]",
    "lidt [rip + idt_pointer]",
    "xor eax, eax",
    "mov ds, eax",
    "mov es, eax",
    "mov fs, eax",
    "mov gs, eax",
    "mov ss, eax",
    "mov al, 0x30",
    "ltr ax",
    "mov ecx, 0xc0000101", // GS base
    "mov rax, offset PERCPU0",
    "mov edx, -1",
    "wrmsr",
    "mov qword ptr [rip + boot_pml4], 0",
    "mov eax, 0x6a0", // PGE in addition: drops the identity mapping
    "mov cr4, rax",
    "mov edi, ebx",
    "shl rbp, 32",
    "or rbp, rsi", // TSC at entry
    // How fast is CPL0? 16 instructions, between two readings.
    "rdtsc",
    "mov ecx, 8",
    "mov esi, eax",
    "2: dec ecx",
    "jnz 2b",
    "rdtsc",
    "sub eax, esi",
    "mov esi, eax",
    // The decision. `hvm_start_info` + 24 is the command line's physical address; -0x80000000 is KERNBASE.
    "mov eax, dword ptr [rbx - 0x80000000 + 24]",
    "cmp dword ptr [rax - 0x80000000], 0x76697270", // "priv"
    "jne 5f",
    "mov al, byte ptr [rax - 0x80000000 + 10]", // after "privilege="
    "cmp al, 0x75",                             // 'u'
    "je 4f",
    "cmp al, 0x73", // 's'
    "je 3f",
    "5: cmp esi, {EMULATED}",
    "ja 4f",
    // Supervisor: the whole of the kernel's address space loses U, at the root.
    "3:",
    "and qword ptr [rip + boot_pml4 + 510 * 8], -5",
    "and qword ptr [rip + boot_pml4 + 511 * 8], -5",
    "mov rax, cr3",
    "mov cr3, rax",
    "mov rdx, rbp",
    "xor ebp, ebp",
    "push rbp", // the end of the chain of frames, and the alignment that a call would give
    "sti",
    "jmp {body}",
    // User: the per-CPU selectors say CPL3 already.
    "4:",
    "mov rdx, rbp",
    "xor ebp, ebp",
    "mov dword ptr gs:[{BODY_CS}], 0x23",
    "mov dword ptr gs:[{BODY_SS}], 0x1b",
    "push 0", // becomes the end of the chain of frames
    "mov rax, rsp",
    "push 0x1b",
    "push rax",
    "push 0x202",
    "push 0x23",
    "push offset {body}",
    "iretq",
    ".balign 8",
    "gdt_pointer: .word 0x3f",
    ".long gdt - {K}",
    ".balign 8",
    "gdt_pointer64: .word 0x3f",
    ".quad gdt",
    ".balign 8",
    "idt_pointer: .word 0xfff",
    ".quad idt",
    "long_mode_pointer: .long long_mode - {K}",
    ".word 8",
    ".popsection",
    K = const KERNBASE,
    EMULATED = const EMULATED_CYCLES,
    BODY_CS = const super::percpu::BODY_CS,
    BODY_SS = const super::percpu::BODY_SS,
    body = sym crate::body,
);
