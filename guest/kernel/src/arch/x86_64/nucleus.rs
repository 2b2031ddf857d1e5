//! The CPL0 nucleus: all that runs at CPL0 when the kernel body runs at CPL3.
//!
//! It does three things.
//!
//! **Traps.** Each gate leads to a stub that completes the frame which the CPU began in the current
//! slot of the trap stack, moves the slot pointer (IST1 in the TSS) down by one slot, and enters
//! the body's handler ([`super::trap`]) with `iretq`, RSP at the frame. The same stubs serve both
//! privileges; only the selectors in [`PerCpu`](super::percpu::PerCpu) differ.
//!
//! **Masking.** RFLAGS.IF cannot be trusted at CPL3, so interrupts of the kernel's vectors are
//! masked by a count of deferrals, a word of the CPU
//! ([`PerCpu::mask`](super::percpu::PerCpu::mask)). While it is not 0 the stub sets the bit of the
//! vector ([`super::interrupt::Deferred`]), disarms the idle loop, signals the end of the interrupt
//! to the APIC, and returns without a frame or a handler. Otherwise it adds one deferral itself,
//! before the handler's first instruction. The code that undoes the last deferral handles the
//! recorded interrupts ([`super::interrupt`]). Both privileges work in the same way.
//!
//! So handlers never pile up, however many interrupts are pending. Nothing relies on the APIC for
//! that. On hardware it holds back interrupts of the same class as the interrupt in service. Where
//! CPL0 is emulated, five nested interrupts of one vector were observed, each before the first
//! instruction of the previous one's handler, and a thread's trap page has room for four frames.
//! Besides, a handler that is interrupted there can be moved to another CPU, which would then treat
//! the interrupt as its own: the timer of the CPU that was interrupted would never be started
//! again.
//!
//! **Calls.** The body at CPL3 executes the one `ud2` at `nucleus_gate` with a number in RAX; the
//! #UD stub knows it by its address.
//!
//! Frame, from the slot's end downward: SS, RSP, RFLAGS, CS, RIP, error code, vector, RAX, CR2
//! (garbage except for #PF).
//!
//! Vectors 2, 8 and 18 use IST2, the emergency stack, and a handler that never returns: a #DF is
//! what a trap-stack overflow or a fault inside a stub becomes.

use core::arch::{asm, global_asm};

use vmkern_abi::addr::GuestVirt;

use super::percpu::{self, SLOT};
use super::{apic, vectors};

/// Numbers of nucleus calls, the index into the table below.
#[derive(Clone, Copy)]
#[repr(u64)]
pub enum Call {
    /// Toggle CR4.PGE: RDI is CR4 without it, RSI with it. This drops all translations, including
    /// global ones.
    FlushAll = 0,
    /// Halt until an interrupt arrives, unless one has arrived since the idle loop armed itself.
    Halt = 1,
    /// `invlpg` on RDI; the next ones on RDI and RSI, and so on, up to [`INVLPG_MAX`] registers.
    Invlpg = 2,
    /// Not a call: the nucleus faults on its way there.
    Crash = 1 << 60,
}

global_asm!(
    ".pushsection .nucleus, \"ax\", @progbits",
    ".balign 16",
    ".global trap_stubs, pf_stub, ud_stub, nucleus_halted, nucleus_gate",
    "trap_stubs:",
    ".set vector, 0",
    ".rept 256",
    ".balign 16",
    // Vectors whose exception pushes an error code: #DF #TS #NP #SS #GP #PF #AC #CP #VC #SX.
    ".if !((vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) \
     || (vector == 21) || (vector == 29) || (vector == 30))",
    "push 0",
    ".endif",
    "push vector",
    ".if (vector == 2) || (vector == 8) || (vector == 18)",
    "jmp fatal_common",
    ".elseif (vector >= {FIRST_VECTOR}) && (vector <= {LAST_VECTOR})",
    "jmp interrupt_common",
    ".else",
    "jmp trap_common",
    ".endif",
    ".set vector, vector + 1",
    ".endr",
    ".balign 16",
    "interrupt_common:",
    "cmp dword ptr gs:[{MASK_DEPTH}], 0",
    "jne 2f",
    "inc dword ptr gs:[{MASK_DEPTH}]",
    "jmp trap_common",
    // Records it, prevents the CPU from halting, and signals the end of the interrupt to the APIC.
    "2:",
    "push rax",
    "mov eax, [rsp + 8]",
    "and eax, 31",
    "bts dword ptr gs:[{DEFERRED}], eax",
    "mov qword ptr gs:[{IDLE_ARMED}], 0",
    "mov dword ptr [{END_OF_INTERRUPT}], 0",
    "pop rax",
    "add rsp, 16",
    "iretq",
    ".balign 16",
    "pf_stub:",
    "push 14",
    "push rax",
    "mov rax, cr2",
    "push rax",
    "jmp 2f",
    ".balign 16",
    "trap_common:",
    "push rax",
    "push rax",
    "2:",
    "mov rax, rsp",
    "sub qword ptr gs:[{IST1}], {SLOT}",
    "push qword ptr gs:[{BODY_SS}]",
    "push rax",
    "push qword ptr gs:[{BODY_FLAGS}]",
    "push qword ptr gs:[{BODY_CS}]",
    "push qword ptr gs:[{TRAP_ENTRY}]",
    "iretq",
    "fatal_common:",
    "push rax",
    "mov rax, cr2",
    "push rax",
    "mov rax, rsp",
    "push qword ptr gs:[{BODY_SS}]",
    "push rax",
    "push qword ptr gs:[{BODY_FLAGS}]",
    "push qword ptr gs:[{BODY_CS}]",
    "push qword ptr gs:[{FATAL_ENTRY}]",
    "iretq",
    // Nucleus calls. RAX is a `Call`: the body is part of the same kernel.
    ".balign 16",
    "ud_stub:",
    "cmp qword ptr [rsp], offset nucleus_gate",
    "jne trap_stubs + 6 * 16",
    "jmp qword ptr [nucleus_calls + rax * 8]",
    "call_flush_all:",
    "mov cr4, rdi",
    "mov cr4, rsi",
    "add qword ptr [rsp], 2",
    "iretq",
    // Each enters the next. An instruction costs half a microsecond where CPL0 is emulated, the way
    // here and back forty times that.
    "call_invlpg_8: invlpg [r11]",
    "call_invlpg_7: invlpg [r10]",
    "call_invlpg_6: invlpg [r9]",
    "call_invlpg_5: invlpg [r8]",
    "call_invlpg_4: invlpg [rcx]",
    "call_invlpg_3: invlpg [rdx]",
    "call_invlpg_2: invlpg [rsi]",
    "call_invlpg_1: invlpg [rdi]",
    "add qword ptr [rsp], 2",
    "iretq",
    // The slot in use is kept while halted. The interrupt's handler sees RIP = nucleus_halted and
    // returns to the caller of this call itself, so the code after the `hlt` never runs at CPL3's
    // expense.
    "call_halt:",
    "cmp qword ptr gs:[{IDLE_ARMED}], 0",
    "je 3f",
    "sub qword ptr gs:[{IST1}], {SLOT}",
    "sti",
    "hlt",
    "nucleus_halted:",
    "cli",
    "add qword ptr gs:[{IST1}], {SLOT}",
    "3:",
    "add qword ptr [rsp], 2",
    "iretq",
    ".balign 8",
    "nucleus_calls: .quad call_flush_all, call_halt",
    ".quad call_invlpg_1, call_invlpg_2, call_invlpg_3, call_invlpg_4",
    ".quad call_invlpg_5, call_invlpg_6, call_invlpg_7, call_invlpg_8",
    ".popsection",
    // The body's side of a call: extern "C" fn(rdi, rsi, rdx = number). It has a frame, so
    // backtraces of a CPU that is halted in it include its caller.
    ".pushsection .text.nucleus_call, \"ax\", @progbits",
    ".global nucleus_call",
    "nucleus_call:",
    "push rbp",
    "mov rbp, rsp",
    "mov rax, rdx",
    "call nucleus_gate",
    "pop rbp",
    "ret",
    "nucleus_gate:",
    "ud2",
    "ret",
    ".popsection",
    IST1 = const percpu::IST1,
    SLOT = const SLOT,
    BODY_SS = const percpu::BODY_SS,
    BODY_CS = const percpu::BODY_CS,
    BODY_FLAGS = const percpu::BODY_FLAGS,
    TRAP_ENTRY = const percpu::TRAP_ENTRY,
    FATAL_ENTRY = const percpu::FATAL_ENTRY,
    IDLE_ARMED = const percpu::IDLE_ARMED,
    MASK_DEPTH = const percpu::MASK_DEPTH,
    DEFERRED = const percpu::DEFERRED,
    END_OF_INTERRUPT = const apic::END_OF_INTERRUPT.cast_signed(),
    FIRST_VECTOR = const vectors::FIRST,
    LAST_VECTOR = const vectors::LAST,
);

unsafe extern "C" {
    fn nucleus_call(rdi: u64, rsi: u64, number: u64);
    fn nucleus_gate();
}

/// Pages that [`invlpg`] takes at once.
pub const INVLPG_MAX: usize = 8;

/// Drops the translations of `pages`, at most [`INVLPG_MAX`], on this CPU. The body runs at CPL3.
pub fn invlpg(pages: &[GuestVirt]) {
    let page = |index: usize| pages.get(index).map_or(0, |page| page.get());
    let Some(others) = pages.len().checked_sub(1) else { return };
    debug_assert!(others < INVLPG_MAX);
    // SAFETY: dropping translations is always allowed. The call is in the table, the registers that
    // it reads all hold pages, and it returns with all registers unchanged except RAX.
    unsafe {
        asm!(
            "call {gate}",
            gate = sym nucleus_gate,
            inout("rax") Call::Invlpg as u64 + others as u64 => _,
            in("rdi") page(0), in("rsi") page(1), in("rdx") page(2), in("rcx") page(3),
            in("r8") page(4), in("r9") page(5), in("r10") page(6), in("r11") page(7),
        );
    }
}

/// Makes a nucleus call. The body runs at CPL3.
///
/// # Safety
/// The arguments are as `call` documents, and the caller may have its effect.
pub unsafe fn call(call: Call, rdi: u64, rsi: u64) {
    // SAFETY: the stub above returns directly after the `ud2` with all registers unchanged except
    // RAX.
    unsafe { nucleus_call(rdi, rsi, call as u64) }
}
