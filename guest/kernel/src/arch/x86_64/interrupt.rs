//! Interrupts: deferring them, handling them, waiting for them.
//!
//! **Masking.** While a [`Masked`] guard lives, the [nucleus](super::nucleus) only records
//! interrupts as due, and they are handled when the last guard is dropped. A handler begins with
//! interrupts deferred, and handles all that are due, one after the other. An interrupt that
//! arrives in its last instructions, when nothing is deferred any more, has a trap frame of its
//! own; when the frames run out, it is also only recorded ([`NESTING_MAX`]).
//!
//! **Quiescence.** The owner of a mutex or spin lock has interrupts deferred, so a handler runs
//! only while its CPU owns none of them. That is the place to stop for the host ([`pause`]). A loop
//! that owns a mutex for a long time has points ([`point`]) at which it handles those interrupts
//! that need no lock.
//!
//! **Halting.** The idle loop arms itself ([`IdleCpu::arm`](kmem::kern::idle::IdleCpu::arm)), looks
//! once more for work, and halts; every interrupt and every switch of threads disarms it, so an
//! interrupt that arrives after the look ends the halt before it begins.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering, compiler_fence};

use vmkern_abi::control::{DOORBELL_VECTOR, PAGES_VECTOR, PAUSE_VECTOR};

use super::percpu::{self, Depth, PerCpu, SLOT};
use super::{apic, nucleus, switch, tlb, vectors};
use crate::host::pause;
use crate::memory;

static TIMER_INTERRUPTS: AtomicU64 = AtomicU64::new(0);

/// How often the timer has fired.
#[must_use]
pub fn timer_interrupts() -> u64 {
    TIMER_INTERRUPTS.load(Ordering::Relaxed)
}

/// The address of the count of [`timer_interrupts`], for code that waits without calling anything.
#[must_use]
pub fn timer_interrupts_address() -> *const u64 {
    TIMER_INTERRUPTS.as_ptr()
}

/// An interrupt: the bit of its vector, as the nucleus records it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Deferred {
    /// The APIC's timer.
    Timer = bit(vectors::TIMER_VECTOR),
    /// The host rang the doorbell.
    Doorbell = bit(DOORBELL_VECTOR),
    /// The kernel asked itself for an operation in an interrupt handler.
    Operation = bit(vectors::OPERATION_VECTOR),
    /// The host asks this CPU to pause.
    Pause = bit(PAUSE_VECTOR),
    /// The host has given pages back.
    Pages = bit(PAGES_VECTOR),
    /// A device has something to say.
    Device = bit(vectors::DEVICE_VECTOR),
    /// Another CPU has work for this one.
    Resched = bit(vectors::RESCHED_VECTOR),
    /// Another CPU waits until this one has flushed translations.
    Shootdown = bit(vectors::SHOOTDOWN_VECTOR),
}

const fn bit(vector: u8) -> u32 {
    assert!(
        vectors::FIRST <= vector && vector <= vectors::LAST && vectors::LAST - vectors::FIRST < 32
    );
    1 << (vector % 32)
}

impl Deferred {
    /// In the order in which they are handled.
    const ALL: [Self; 8] = [
        Self::Shootdown,
        Self::Timer,
        Self::Pages,
        Self::Device,
        Self::Doorbell,
        Self::Operation,
        Self::Pause,
        Self::Resched,
    ];
}

/// Number of trap frames of one thread from which on an interrupt is only recorded: one slot is
/// left, for a fault.
const NESTING_MAX: u64 = switch::TRAP_PAGE / SLOT as u64 - 1;

/// Handles the interrupt of `vector`. The nucleus has deferred all others, once. May switch
/// threads, and CPUs.
pub fn interrupt(vector: u8) {
    apic::end_of_interrupt();
    let cpu = PerCpu::current();
    cpu.deferred().fetch_or(bit(vector), Ordering::Relaxed);
    if cpu.traps_in_progress() < NESTING_MAX {
        allow_all();
    } else {
        // The next `allow` handles it, even that of a lock.
        let _ = PerCpu::unmask();
    }
}

/// Handles an interrupt that is due. Everything is deferred, once.
fn handle(which: Deferred) {
    match which {
        Deferred::Timer => {
            TIMER_INTERRUPTS.fetch_add(1, Ordering::Relaxed);
            if let (Some(vm), Some(pcpu)) = (memory::vm(), PerCpu::pcpu().non_null()) {
                vm.get(pcpu).clock_interrupts.inc();
            }
            crate::threads::handle_interrupt(which);
        }
        Deferred::Doorbell
        | Deferred::Operation
        | Deferred::Pages
        | Deferred::Device
        | Deferred::Resched => crate::threads::handle_interrupt(which),
        // This is the only deferral, and so no lock is owned; no handler is running either.
        Deferred::Pause => pause::stand_still(),
        Deferred::Shootdown => tlb::serve_others(),
    }
}

/// Defers interrupts, and with them preemption, until [`allow`]. Nests.
#[inline]
pub fn defer() {
    PerCpu::mask();
    compiler_fence(Ordering::SeqCst);
}

/// Undoes one [`defer`]. The last one handles the interrupts that have arrived since, and may
/// switch threads, and CPUs.
///
/// After the last one the thread may be moved to another CPU between any two instructions, so each
/// read is a single instruction. An interrupt that was recorded on this CPU is handled on it,
/// because the thread cannot be moved before that.
#[inline]
pub fn allow() {
    compiler_fence(Ordering::SeqCst);
    if PerCpu::unmask() == Depth::Free && (PerCpu::is_due() || crate::threads::switch_owed()) {
        catch_up();
    }
}

/// Interrupts that are handled at a point of a loop over pages: they need no lock that may be owned
/// there.
const AT_POINTS: u32 =
    Deferred::Shootdown as u32 | Deferred::Timer as u32 | Deferred::Resched as u32;

/// Handles, with interrupts deferred and mutexes owned, those pending interrupts that need none of
/// the mutexes. All others stay pending, such as an operation in a handler or a switch of threads.
/// The host's pause also waits, as long as the host allows it, because the host can read more where
/// no mutex is owned.
pub fn point() {
    tlb::poll();
    let pause = if pause::is_urgent() { Deferred::Pause as u32 } else { 0 };
    let due = PerCpu::current().deferred().fetch_and(!(AT_POINTS | pause), Ordering::Relaxed)
        & (AT_POINTS | pause);
    for which in Deferred::ALL.into_iter().filter(|&which| due & which as u32 != 0) {
        match which {
            Deferred::Pause => pause::stand_owning(),
            which => handle(which),
        }
    }
}

/// Handles the deferred interrupts.
#[cold]
fn catch_up() {
    defer();
    allow_all();
}

/// Undoes one [`defer`], and handles pending interrupts before it undoes the last one, so handlers
/// do not nest.
fn allow_all() {
    if PerCpu::current().mask_depth().load(Ordering::Relaxed) > 1 {
        let _ = PerCpu::unmask();
        return;
    }
    loop {
        while PerCpu::is_due() {
            let due = PerCpu::current().deferred().swap(0, Ordering::Relaxed);
            Deferred::ALL.into_iter().filter(|&which| due & which as u32 != 0).for_each(handle);
        }
        let _ = PerCpu::unmask();
        // An interrupt that arrived since the look has only been recorded.
        if !PerCpu::is_due() {
            break;
        }
        defer();
    }
    crate::threads::preempt();
}

/// While this guard lives, interrupts are deferred, and its thread does not switch. Guards nest.
#[must_use = "interrupts are deferred only while the guard lives"]
pub struct Masked(());

impl Masked {
    /// Defers interrupts.
    pub fn new() -> Self {
        defer();
        Self(())
    }
}

impl Drop for Masked {
    fn drop(&mut self) {
        allow();
    }
}

/// Halts the CPU until an interrupt arrives, unless one has arrived since
/// [`IdleCpu::arm`](kmem::kern::idle::IdleCpu::arm). The CPU's idle thread calls this.
pub fn halt() {
    let cpu = PerCpu::current();
    tlb::go_idle();
    if cpu.body_is_user() {
        // SAFETY: halting only waits; the idle flag makes the wait end with the next interrupt.
        unsafe { nucleus::call(nucleus::Call::Halt, 0, 0) };
    } else {
        halt_if_armed();
    }
    tlb::come_back();
}

/// `hlt` at CPL0, unless an interrupt has arrived since the idle loop armed itself. Used only if
/// the body runs at CPL0.
fn halt_if_armed() {
    debug_assert!(!PerCpu::current().body_is_user());
    // SAFETY: `sti` takes effect after the next instruction, so no interrupt can arrive between the
    // look and `hlt`; interrupts were enabled before and are enabled after. The red zone is not
    // touched.
    unsafe {
        asm!(
            "cli",
            "cmp qword ptr gs:[{}], 0",
            "je 2f",
            "sti",
            "hlt",
            "2: sti",
            const percpu::IDLE_ARMED,
            options(nostack)
        );
    }
}
