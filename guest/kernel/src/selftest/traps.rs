//! Interrupts, masking, and the state that they must not change.

use core::arch::asm;
use core::sync::atomic::Ordering;

use super::{Bench, Failure, Verdict, same};
use crate::arch::apic;
use crate::arch::clock::halt_for;
use crate::arch::interrupt::{Deferred, Masked, timer_interrupts};
use crate::arch::percpu::{PerCpu, SLOT};
use crate::arch::step::Steps;
use crate::arch::vectors::{RESCHED_VECTOR, SHOOTDOWN_VECTOR};

/// Timer counts that pass before a one-shot interrupt of these checks.
const SOON: u32 = 50_000;

pub fn timer_ends_a_halt(_: &Bench<'_>) -> Verdict {
    for _ in 0..5 {
        let before = timer_interrupts();
        PerCpu::current().idle().arm();
        halt_for(200);
        same("timer interrupts", timer_interrupts() - before, 1)?;
    }
    Ok(())
}

pub fn masking_defers(_: &Bench<'_>) -> Verdict {
    let before = timer_interrupts();
    let outer = Masked::new();
    let inner = Masked::new();
    apic::timer_one_shot(SOON);
    // The handler itself shows that the interrupt arrived; the end of the count would show it too
    // early if another thread of the host emulates the timer.
    while PerCpu::current().deferred().load(Ordering::Relaxed) == 0 {
        core::hint::spin_loop();
    }
    same("interrupts handled under two guards", timer_interrupts() - before, 0)?;
    drop(inner);
    same("interrupts handled under one guard", timer_interrupts() - before, 0)?;
    drop(outer);
    same("interrupts handled after the last guard", timer_interrupts() - before, 1)
}

pub fn masked_interrupts_take_no_frame(_: &Bench<'_>) -> Verdict {
    /// The words that the CPU and the stub may put at the end of the next slot.
    const USED: u64 = 128;
    const UNTOUCHED: u64 = 0x756e_746f_7563_6865;
    let masked = Masked::new();
    let cpu = PerCpu::current();
    let end = cpu.trap_slot();
    let words = || (end - SLOT as u64..end - USED).step_by(8).map(|at| at as *mut u64);
    for word in words() {
        // SAFETY: the slot is free: with interrupts deferred no other thread runs here, and this
        // one does not fault.
        unsafe { word.write_volatile(UNTOUCHED) };
    }
    let both = Deferred::Resched as u32 | Deferred::Shootdown as u32;
    for vector in [RESCHED_VECTOR, SHOOTDOWN_VECTOR] {
        apic::interrupt_self(vector);
    }
    while cpu.deferred().load(Ordering::Relaxed) & both != both {
        core::hint::spin_loop();
    }
    // SAFETY: as above.
    let touched = words().filter(|word| unsafe { word.read_volatile() } != UNTOUCHED).count();
    drop(masked);
    same("words of a trap frame", touched as u64, 0)
}

pub fn interrupts_keep_registers(_: &Bench<'_>) -> Verdict {
    for round in 1..=20u64 {
        let pattern = round.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let before = timer_interrupts();
        apic::timer_one_shot(SOON);
        let wrong = spin_with_pattern(pattern, before);
        same("registers and red-zone words changed", wrong, 0)?;
    }
    Ok(())
}

pub fn each_way_out_can_be_interrupted(_: &Bench<'_>) -> Verdict {
    /// Least number of instructions from a handler's return to its `iretq`.
    const WAY_OUT: u64 = 35;
    let whole =
        |what, got| if got >= WAY_OUT { Ok(()) } else { Err(Failure { what, got, want: WAY_OUT }) };
    let steps = Steps::through_one_interrupt();
    // Before the timer is set: on a busy host it fires at once.
    let before = timer_interrupts();
    apic::timer_one_shot(SOON);
    let wrong = spin_with_pattern(0x9e37_79b9_7f4a_7c15, before);
    same("registers and red-zone words changed", wrong, 0)?;
    whole("steps on the way back to a loop", steps.count())?;
    drop(steps);
    // The way out to a halted CPU is different.
    let steps = Steps::through_one_interrupt();
    PerCpu::current().idle().arm();
    halt_for(200);
    whole("steps on the way out of a halt", steps.count())
}

/// Fills the SSE registers, most general registers and the red zone with values made of `pattern`,
/// waits until the timer has fired more than `fired` times, and counts the values that have
/// changed.
fn spin_with_pattern(pattern: u64, fired: u64) -> u64 {
    let wrong: u64;
    let counter = crate::arch::interrupt::timer_interrupts_address();
    // SAFETY: the block uses 128 bytes below RSP, which compiled code does not (the kernel is built
    // without a red zone) and handlers must not; every register that it changes is declared.
    unsafe {
        asm!(
            // 1. Fill.
            "movq xmm0, {p}", "movq xmm15, {p}", "punpcklqdq xmm0, xmm0", "punpcklqdq xmm15, xmm15",
            "movdqa xmm1, xmm0", "movdqa xmm2, xmm0", "movdqa xmm3, xmm0", "movdqa xmm4, xmm0",
            "movdqa xmm5, xmm0", "movdqa xmm6, xmm0", "movdqa xmm7, xmm0", "movdqa xmm8, xmm0",
            "movdqa xmm9, xmm0", "movdqa xmm10, xmm0", "movdqa xmm11, xmm0", "movdqa xmm12, xmm0",
            "movdqa xmm13, xmm0", "movdqa xmm14, xmm0",
            "mov r10, {p}", "mov r11, {p}", "mov r12, {p}",
            "mov r13, {p}", "mov r14, {p}", "mov r15, {p}",
            "mov ecx, 16",
            "2: mov [rsp + rcx * 8 - 136], {p}", "dec ecx", "jnz 2b",
            // 2. Wait for the interrupts.
            "3: pause", "cmp [{counter}], {fired}", "jbe 3b",
            // 3. Compare.
            "xor {wrong:e}, {wrong:e}", "mov ecx, 16",
            "4: cmp [rsp + rcx * 8 - 136], {p}", "je 5f", "inc {wrong}",
            "5: dec ecx", "jnz 4b",
            "cmp r10, {p}", "jne 6f", "cmp r11, {p}", "jne 6f", "cmp r12, {p}", "jne 6f",
            "cmp r13, {p}", "jne 6f", "cmp r14, {p}", "jne 6f", "cmp r15, {p}", "je 7f",
            "6: inc {wrong}",
            // All SSE registers combined: a bit that differs in one of them survives the OR.
            "7:",
            "pxor xmm1, xmm0", "pxor xmm2, xmm0", "pxor xmm3, xmm0", "pxor xmm4, xmm0",
            "pxor xmm5, xmm0", "pxor xmm6, xmm0", "pxor xmm7, xmm0", "pxor xmm8, xmm0",
            "pxor xmm9, xmm0", "pxor xmm10, xmm0", "pxor xmm11, xmm0", "pxor xmm12, xmm0",
            "pxor xmm13, xmm0", "pxor xmm14, xmm0", "pxor xmm15, xmm0",
            "por xmm1, xmm2", "por xmm1, xmm3", "por xmm1, xmm4", "por xmm1, xmm5",
            "por xmm1, xmm6", "por xmm1, xmm7", "por xmm1, xmm8", "por xmm1, xmm9",
            "por xmm1, xmm10", "por xmm1, xmm11", "por xmm1, xmm12", "por xmm1, xmm13",
            "por xmm1, xmm14", "por xmm1, xmm15",
            "movq rcx, xmm1", "test rcx, rcx", "jz 8f", "inc {wrong}",
            "8: movq rcx, xmm0", "cmp rcx, {p}", "je 9f", "inc {wrong}",
            "9:",
            p = in(reg) pattern, counter = in(reg) counter,
            fired = in(reg) fired, wrong = out(reg) wrong,
            out("rcx") _, out("r10") _, out("r11") _, out("r12") _, out("r13") _, out("r14") _,
            out("r15") _, out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
            out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _, out("xmm8") _,
            out("xmm9") _, out("xmm10") _, out("xmm11") _, out("xmm12") _, out("xmm13") _,
            out("xmm14") _, out("xmm15") _,
        );
    }
    wrong
}

pub fn sleeping_moves_the_clock(bench: &Bench<'_>) -> Verdict {
    let before = bench.clock.micros();
    bench.clock.sleep(3_000);
    let passed = bench.clock.micros() - before;
    if passed >= 3_000 { Ok(()) } else { same("microseconds passed", passed, 3_000) }
}
