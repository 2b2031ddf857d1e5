//! The CPUs that run.

use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use super::percpu::PerCpu;
use super::{apic, vectors};

/// CPUs that a kernel can have (`MAXCPU`): as many as a word has bits.
const MAX_CPUS: usize = vmkern_abi::boot::MAX_VCPUS as usize;

static CPUS: [AtomicPtr<PerCpu>; MAX_CPUS] =
    [const { AtomicPtr::new(core::ptr::null_mut()) }; MAX_CPUS];
static COUNT: AtomicU32 = AtomicU32::new(1);

/// Records that a CPU has begun to run the body, and takes part from now on.
pub fn join(cpu: &'static PerCpu) {
    CPUS[cpu.number() as usize].store(core::ptr::from_ref(cpu).cast_mut(), Ordering::Release);
}

/// Sets the number of CPUs. Called before the first of the others starts.
pub fn expect(count: u32) {
    COUNT.store(count, Ordering::Relaxed);
    join(PerCpu::current());
}

/// Whether this is the only CPU.
#[must_use]
#[inline]
pub fn is_alone() -> bool {
    COUNT.load(Ordering::Relaxed) == 1
}

/// The CPU with this number, if it runs.
#[must_use]
pub fn get(number: u32) -> Option<&'static PerCpu> {
    // SAFETY: `join` stores references that are valid for ever, and nothing else stores here.
    unsafe { CPUS.get(number as usize)?.load(Ordering::Acquire).as_ref() }
}

/// All CPUs that run, except the calling one. Interrupts are deferred.
pub fn others() -> impl Iterator<Item = &'static PerCpu> {
    let me = PerCpu::current().number();
    let count = COUNT.load(Ordering::Relaxed);
    (0..count).filter(move |&number| number != me).filter_map(get)
}

/// Makes CPU `number` look for a thread to run, unless it is about to look anyway. The thread is
/// already on its queue.
pub fn reschedule(number: u32) {
    let Some(cpu) = get(number) else { return };
    if cpu.idle().must_be_interrupted() {
        apic::interrupt_cpu(number, vectors::RESCHED_VECTOR);
    }
}

/// Makes CPU `number` check whether its timer is needed, unless the timer fires by TSC `by` anyway,
/// or the CPU is about to look for work. The caller has already stored what the CPU must see.
pub fn ask_for_timer(number: u32, by: u64) {
    // As for a thread: either the other CPU sees it after its timer has fired, or this one sees
    // that it stands still; and a CPU that is armed may have set its timer for something later.
    core::sync::atomic::fence(Ordering::SeqCst);
    let Some(cpu) = get(number) else { return };
    if cpu.idle().is_armed() || !(cpu.idle().is_polling() || cpu.timer_at() <= by) {
        apic::interrupt_cpu(number, vectors::RESCHED_VECTOR);
    }
}
