//! Traps, from the body's side.
//!
//! **Protocol.** A trap's frame lies in a slot of the trap stack for as long as its handler runs.
//! The handler itself runs on the interrupted stack, below its red zone (precompiled `core` uses
//! one), so traps nest there like calls. On the way out the five words for `iretq` are also copied
//! below that red zone, before the slot is released: from then on an interrupt may use the slot
//! again.
//!
//! **Backtraces.** The handler's caller has a frame like that of any function, with the interrupted
//! RIP for a return address and the interrupted RBP below it. So a chain of frame pointers leads
//! through the trap to the code that it interrupted. To follow it one need only know that the
//! address above [`trap_entry`] is not a return address. Code that was interrupted before it had a
//! frame, or that never has one, hides its caller, as it does anywhere.
//!
//! All registers are saved, including those of the FPU and SSE, because the body is compiled with
//! SSE2.
//!
//! A trap that finds no room on the interrupted stack, or that hit the nucleus, is handled on the
//! emergency stack, and is always fatal.

use core::arch::naked_asm;
use core::mem::offset_of;

use vmkern_abi::addr::GuestVirt;
use vmkern_abi::crash::CrashKind;

use super::interrupt::interrupt;
use super::percpu::{self, PerCpu, SLOT};
use super::{probe, step, vectors};
use crate::fault::{self, Why};
use crate::host::crash::{self, Cause};

/// Bytes below RSP that compiled code may use without moving RSP (System V ABI).
const RED_ZONE: usize = 128;
/// Bytes that must be free on the interrupted stack for a handler to run there.
const HEADROOM: usize = 2048;
/// An interrupted context.
#[repr(C, align(16))]
pub struct TrapFrame {
    fxsave: [u8; 512],
    padding: u64,
    /// R15 to R8, RDI, RSI, RBP, RBX, RDX, RCX.
    saved: [u64; 14],
    /// The faulting address, for #PF.
    pub cr2: GuestVirt,
    rax: u64,
    /// The vector of the exception or interrupt.
    pub vector: u64,
    /// Error code, 0 if the exception has none. On the way out: the address of the words for
    /// `iretq`.
    pub error_code: u64,
    /// Where it happened.
    pub rip: GuestVirt,
    cs: u64,
    /// RFLAGS there.
    pub rflags: u64,
    /// RSP there.
    pub rsp: u64,
    ss: u64,
}

/// The address of the words for `iretq`, on the way out. RSP then moves up through the frame, and a
/// trap between two of those instructions puts the words for its own `iretq` below RSP. So this
/// word stays above RSP until it is read.
const RETURN_STACK: usize = offset_of!(TrapFrame, error_code);
/// Bytes from an interrupted RSP down to the words for the `iretq` that returns there.
const RETURN_BELOW: usize = RED_ZONE + 40;

const _: () = {
    assert!(size_of::<TrapFrame>() == 704 && SLOT.is_multiple_of(16));
    // RSP lies between the frame's first byte, below which there must be enough room, and its
    // vector.
    assert!(size_of::<TrapFrame>() + RETURN_BELOW <= SLOT);
    assert!(RETURN_STACK > offset_of!(TrapFrame, vector));
};

impl TrapFrame {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    #[must_use]
    pub fn gpr(&self) -> [u64; 16] {
        let [r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx] = self.saved;
        [self.rax, rcx, rdx, rbx, self.rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15]
    }

    /// The frame pointer there.
    #[must_use]
    pub const fn rbp(&self) -> u64 {
        self.saved[10]
    }
}

/// Entered by the nucleus with RSP at the `cr2` of an unfinished frame.
///
/// # Safety
/// Entered only by `iretq` from the stubs.
#[unsafe(naked)]
pub unsafe extern "C" fn trap_entry() {
    naked_asm!(
        // 1. Complete the frame: RBX and RDI point at it, and R12 says whether it ends a halt.
        "push rcx", "push rdx", "push rbx", "push rbp", "push rsi", "push rdi",
        "push r8", "push r9", "push r10", "push r11",
        "push r12", "push r13", "push r14", "push r15",
        "sub rsp, 520",
        "fxsave64 [rsp]",
        "cld",
        "mov rbx, rsp",
        "mov rdi, rsp",
        "xor r12d, r12d",
        // 2. Did it interrupt the body?
        "mov rax, [rbx + {CS}]",
        "cmp rax, gs:[{BODY_CS}]",
        "jne 5f",
        "2:",
        // 3. The slot must be one of this thread's.
        "mov rax, gs:[{IST1}]",
        "cmp rax, gs:[{SLOTS_LOW}]",
        "jb 6f",
        // A trap in the first or last instructions of a handler finds RSP among the slots. The
        // stack to use is then that of the trap which the handler is for, whose frame is in the
        // slot above.
        "mov rdx, rbx",
        "7: mov rax, [rdx + {RSP}]",
        "cmp rax, gs:[{SLOTS_LOW}]",
        "jb 8f",
        "cmp rax, gs:[{SLOTS_HIGH}]",
        "ja 8f",
        "add rdx, {SLOT}",
        "jmp 7b",
        "8: mov rcx, gs:[{STACK_LOW}]",
        "add rcx, {HEADROOM}",
        "cmp rax, rcx",
        "jb 6f",
        "cmp rax, gs:[{STACK_HIGH}]",
        "ja 6f",
        // 4. Handle it on that stack: below the red zone, and below the words that a handler on its
        // way out may have put there.
        "sub rax, {RED_ZONE} + 64",
        "and rax, -16",
        "mov rsp, rax",
        "push qword ptr [rbx + {RIP}]",
        "push rbp",
        "mov rbp, rsp",
        "call {handle}",
        // 5. Return there: the words for the `iretq` go below the interrupted RSP.
        "mov rsp, rbx",
        "mov rax, [rsp + {RSP}]",
        "sub rax, {RETURN_BELOW}",
        "mov [rsp + {RETURN_STACK}], rax",
        "mov rcx, [rsp + {RIP}]",
        "mov [rax], rcx",
        "mov rcx, [rsp + {RIP} + 8]",
        "mov [rax + 8], rcx",
        "mov rcx, [rsp + {RIP} + 16]",
        "mov [rax + 16], rcx",
        "mov rcx, [rsp + {RIP} + 24]",
        "mov [rax + 24], rcx",
        "mov rcx, [rsp + {RIP} + 32]",
        "mov [rax + 32], rcx",
        "fxrstor64 [rsp]",
        "test r12, r12",
        "jnz 4f",
        "add rsp, 520",
        "pop r15", "pop r14", "pop r13", "pop r12", "pop r11", "pop r10", "pop r9", "pop r8",
        "pop rdi", "pop rsi", "pop rbp", "pop rbx", "pop rdx", "pop rcx", "pop rax", "pop rax",
        "mov rsp, [rsp + {RETURN_STACK} - {VECTOR}]",
        "add qword ptr gs:[{IST1}], {SLOT}",
        "iretq",
        // The same, and the slot of the halt's own frame is released too.
        "4:",
        "add rsp, 520",
        "pop r15", "pop r14", "pop r13", "pop r12", "pop r11", "pop r10", "pop r9", "pop r8",
        "pop rdi", "pop rsi", "pop rbp", "pop rbx", "pop rdx", "pop rcx", "pop rax", "pop rax",
        "mov rsp, [rsp + {RETURN_STACK} - {VECTOR}]",
        "add qword ptr gs:[{IST1}], {SLOT} * 2",
        "iretq",
        // 6. It interrupted the nucleus. If that was halted, the frame of the halting call is in
        // the slot above: take over its RIP (behind the `ud2`), CS, RFLAGS, RSP and SS, and return
        // as that call would.
        "5:",
        "lea rax, [rip + nucleus_halted]",
        "cmp rax, [rbx + {RIP}]",
        "jne 6f",
        "inc r12d",
        // A #UD has no error code, so its frame begins one word higher: SS at the very end of the
        // slot.
        "lea rcx, [rbx + {SLOT} + {END} - 40]",
        "mov rax, [rcx]",
        "add rax, 2",
        "mov [rbx + {RIP}], rax",
        "mov rax, [rcx + 8]",
        "mov [rbx + {RIP} + 8], rax",
        "mov rax, [rcx + 16]",
        "mov [rbx + {RIP} + 16], rax",
        "mov rax, [rcx + 24]",
        "mov [rbx + {RIP} + 24], rax",
        "mov rax, [rcx + 32]",
        "mov [rbx + {RIP} + 32], rax",
        "jmp 2b",
        // 7. Anything else is the end.
        "6:",
        "mov rsp, gs:[{EMERGENCY_STACK}]",
        "xor ebp, ebp",
        "call {handle_fatal}",
        "ud2",
        RSP = const offset_of!(TrapFrame, rsp),
        RIP = const offset_of!(TrapFrame, rip),
        CS = const offset_of!(TrapFrame, cs),
        VECTOR = const offset_of!(TrapFrame, vector),
        RETURN_STACK = const RETURN_STACK,
        RETURN_BELOW = const RETURN_BELOW,
        END = const size_of::<TrapFrame>(),
        SLOT = const SLOT,
        HEADROOM = const HEADROOM,
        RED_ZONE = const RED_ZONE,
        BODY_CS = const percpu::BODY_CS,
        SLOTS_LOW = const percpu::SLOTS_LOW,
        SLOTS_HIGH = const percpu::SLOTS_HIGH,
        STACK_LOW = const percpu::STACK_LOW,
        STACK_HIGH = const percpu::STACK_HIGH,
        EMERGENCY_STACK = const percpu::EMERGENCY_STACK,
        IST1 = const percpu::IST1,
        handle = sym handle,
        handle_fatal = sym handle_fatal,
    )
}

/// Entered by the nucleus for vectors 2, 8 and 18, RSP on the emergency stack at the `cr2` of an
/// unfinished frame.
///
/// # Safety
/// Entered only by `iretq` from the stubs.
#[unsafe(naked)]
pub unsafe extern "C" fn fatal_entry() {
    naked_asm!(
        "push rcx", "push rdx", "push rbx", "push rbp", "push rsi", "push rdi",
        "push r8", "push r9", "push r10", "push r11",
        "push r12", "push r13", "push r14", "push r15",
        "sub rsp, 520",
        "fxsave64 [rsp]",
        "cld",
        "mov rdi, rsp",
        "xor ebp, ebp",
        "call {handle_fatal}",
        "ud2",
        handle_fatal = sym handle_fatal,
    )
}

/// Handles a trap that interrupted the body and left room on its stack.
extern "C" fn handle(frame: &mut TrapFrame) {
    PerCpu::wake();
    match u8::try_from(frame.vector) {
        Ok(14) => page_fault(frame),
        Ok(vector @ vectors::FIRST..=vectors::LAST) => {
            interrupt(vector);
            step::begin();
        }
        Ok(vectors::DEBUG_VECTOR) if step::count() => {}
        Ok(vectors::SPURIOUS_VECTOR) => {}
        _ => crash::die(&Cause::Trap { kind: CrashKind::Trap, frame, why: Why::Plain }),
    }
}

/// Reports a trap that cannot be survived.
extern "C" fn handle_fatal(frame: &mut TrapFrame) -> ! {
    let low = PerCpu::current().stack_bounds().low;
    let in_guard = |address: u64| (low.saturating_sub(4096)..low).contains(&address);
    let overflow = in_guard(frame.rsp) || frame.vector == 14 && in_guard(frame.cr2.get());
    let in_body = frame.cs == PerCpu::current().body_cs();
    let kind = match () {
        () if overflow => CrashKind::StackOverflow,
        () if in_body && frame.vector == 14 => CrashKind::PageFault,
        () if in_body && frame.vector != 8 => CrashKind::Trap,
        () => CrashKind::Nucleus,
    };
    crash::die(&Cause::Trap { kind, frame, why: Why::Plain })
}

/// A page fault of the body: `vm_fault` resolves it, or it is one of [`probe`]'s, or the kernel
/// dies.
fn page_fault(frame: &mut TrapFrame) {
    let forbidden = fault::forbidden();
    if forbidden.is_none() && (fault::resolve(frame) || probe::recover(&mut frame.rip)) {
        return;
    }
    let why = forbidden.map_or_else(|| Why::of(frame), Why::NoSleep);
    crash::die(&Cause::Trap { kind: CrashKind::PageFault, frame, why });
}
