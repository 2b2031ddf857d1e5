//! Context switches: from one kernel thread's stack to another's.
//!
//! A thread that does not run has on its stack, from the lowest address up: R15 R14 R13 R12 RBP RBX
//! and the address at which it continues. Its remaining registers are dead, as for any function
//! call; a preempted thread's are in its trap frame. Besides the stack pointer a thread owns its
//! trap slots (the top page of its kernel stack), its stack's bounds and its depth of interrupt
//! deferral; all of them are switched here, with interrupts deferred. An interrupt that arrives
//! during the switch finds bounds that fit every stack, is recorded, and returns.

use core::arch::naked_asm;

use super::percpu::{PerCpu, SLOT, StackBounds};

/// Bytes at the top of a kernel stack that hold trap frames.
pub const TRAP_PAGE: u64 = 4096;

const _: () = assert!(TRAP_PAGE / SLOT as u64 >= 4, "too few traps could nest");

/// The state that the machine keeps for a thread that does not run, in the thread's machine words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// Stack pointer; for the running thread, its value at the last switch.
    pub rsp: u64,
    /// End of the next free trap slot.
    pub slot: u64,
    /// Bounds of the stack proper and of the trap slots.
    pub bounds: StackBounds,
    /// Depth of interrupt deferral.
    pub mask_depth: u32,
}

impl Context {
    /// The context of a thread that has never run: its first switch enters `start` with the two
    /// arguments on the kernel stack `[low, high)`, with interrupts deferred once.
    ///
    /// # Safety
    /// The stack is mapped, at least three pages long, and not used otherwise as long as the thread
    /// lives.
    pub unsafe fn new(
        low: u64,
        high: u64,
        start: extern "C" fn(u64, u64) -> !,
        arguments: [u64; 2],
    ) -> Self {
        let top = high - TRAP_PAGE;
        // The frame that `switch_stacks` pops, below a zero return address and a null frame
        // pointer, which end backtraces; 16-byte aligned where a call would be.
        let [first, second] = arguments;
        let frame =
            [0, 0, second, start as usize as u64, 0, first, first_entry as *const () as u64, 0, 0];
        let rsp = top - size_of_val(&frame) as u64 - 8;
        // SAFETY: inside the stack, by this function's contract.
        unsafe { (rsp as *mut [u64; 9]).write(frame) };
        let bounds = StackBounds { low, high: top, slots: top, slots_end: high };
        Self { rsp, slot: high, bounds, mask_depth: 1 }
    }
}

/// First instructions of a thread: R12 holds its function, RBX and R13 its arguments.
#[unsafe(naked)]
extern "C" fn first_entry() {
    naked_asm!("mov rdi, rbx", "mov rsi, r13", "xor ebp, ebp", "jmp r12")
}

impl Context {
    /// The context of the running thread, except its stack pointer.
    #[must_use]
    pub fn of_running() -> Self {
        let cpu = PerCpu::current();
        let mask_depth = cpu.mask_depth().load(core::sync::atomic::Ordering::Relaxed);
        Self { rsp: 0, slot: cpu.trap_slot(), bounds: cpu.stack_bounds(), mask_depth }
    }
}

/// Switches to the thread with context `to`, and stores the running thread's stack pointer at
/// `save_rsp`. Returns when some thread switches back.
///
/// # Safety
/// `save_rsp` can be written to. `to` was saved here, or made by [`Context::new`], and was
/// not switched to since. Interrupts are deferred.
pub unsafe fn switch(save_rsp: *mut u64, to: &Context) {
    let cpu = PerCpu::current();
    cpu.set_stack_bounds(StackBounds::ANY);
    // SAFETY: both stacks are as this function's contract says; an interrupt uses the slots of the
    // thread in the TSS, and returns before anything else happens.
    unsafe {
        cpu.set_trap_slot(to.slot);
        switch_stacks(save_rsp, to.rsp);
    }
}

/// Restores the CPU's words for the thread that runs now, which calls this directly after a switch.
pub fn arrive(context: &Context) {
    let cpu = PerCpu::current();
    cpu.set_stack_bounds(context.bounds);
    cpu.mask_depth().store(context.mask_depth, core::sync::atomic::Ordering::Relaxed);
}

/// Pushes the callee-saved registers, stores RSP at RDI, sets RSP to RSI, and pops the registers
/// there.
#[unsafe(naked)]
unsafe extern "C" fn switch_stacks(save: *mut u64, rsp: u64) {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi], rsp",
        "mov rsp, rsi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
    )
}
