//! Threads that do what the host asks for.

use kmem::kern::lock::LockClass;
use kmem::kern::sched::PUSER;
use kmem::kern::sleepq::WaitChannel;
use kmem::kern::synch::Relock;
use kmem::kern::thread::TASKQ_TID;
use kmem::ops::{self, Executed};
use kmem::vm::thread::ThreadSpec;
use kmem::vm::{Shortage, Wait};
use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::control::{KernReturn, MAX_THREADS, Op, Outcome};
use vmkern_abi::layout::{Mtx, Thread};

use super::board::Board;
use crate::access::KernelAccess;
use crate::arch::{instr, interrupt};
use crate::masked_cell::MaskedCell;
use crate::memory::KernelVm;
use crate::threads;

/// What has been asked of whom.
pub static BOARD: MaskedCell<Board> = MaskedCell::new(Board::new());

/// Interlock of the sleeps below. Whoever wakes a worker changes the board under it.
// SAFETY: a mutex is plain words, and all zero is a free one.
static BOARD_LOCK: Mtx = unsafe { core::mem::zeroed() };
/// Channels: a thread that waits for a request sleeps on its own byte, one that waits for rest on
/// the last.
static CHANNELS: [u8; MAX_THREADS as usize + 1] = [0; MAX_THREADS as usize + 1];

/// What a thread shows that waits for a request.
const REQUEST: &str = "request";

fn channel(index: u16) -> WaitChannel {
    WaitChannel::from(GuestVirt::new((&raw const CHANNELS[usize::from(index)]) as u64))
}

/// Makes `thread`, which does not exist. It sleeps until [`wake`].
///
/// # Errors
/// When there is no address space for it, or no memory and the caller may not wait.
fn make(vm: &KernelVm, thread: u16, wait: Wait) -> Result<(), Shortage> {
    let mut name = [b't', 0, 0];
    let digits = if thread < 10 { 1 } else { 2 };
    let ascii = |digit: u16| b'0' + u8::try_from(digit % 10).unwrap_or(0);
    if digits == 2 {
        name[1] = ascii(thread / 10);
    }
    name[digits] = ascii(thread);
    let name = str::from_utf8(&name[..=digits]).unwrap_or("t");
    let spec =
        ThreadSpec { tid: thread.into(), name, priority: PUSER, start: work, arg: thread.into() };
    vm.kthread_create_asleep(&spec, channel(thread), REQUEST, wait).map(drop)
}

/// Makes the first thread, `t0`, and the one that makes others when memory is short.
///
/// # Errors
/// When there is no memory for them.
pub fn start(vm: &KernelVm) -> Result<(), Shortage> {
    vm.taskqueue_start(make_threads)?;
    make(vm, 0, Wait::No)
}

/// Lets `thread` begin with the request that was posted for it. If there is no such thread yet it
/// is made: at once if that takes no wait, else by the thread that may wait for memory.
pub fn begin(vm: &KernelVm, thread: u16) {
    if vm.tfind(thread.into()).is_some() || make(vm, thread, Wait::No).is_ok() {
        return wake(vm, thread);
    }
    vm.mtx_lock(LockClass::Driver, &BOARD_LOCK.owner);
    BOARD.with(|board| board.want(thread));
    vm.taskqueue_wakeup();
    vm.mtx_unlock(LockClass::Driver, &BOARD_LOCK.owner);
}

/// The life of the thread that makes threads.
fn make_threads(vm: &KernelVm, _: u64) {
    loop {
        vm.mtx_lock(LockClass::Driver, &BOARD_LOCK.owner);
        let thread = loop {
            match BOARD.with(|board| board.wanted()) {
                Some(thread) => break thread,
                // Threads may be wanted by now: the board is read again.
                None => vm.taskqueue_sleep((LockClass::Driver, &BOARD_LOCK)),
            }
        };
        // More threads may be wanted while this one is made: the board is read again afterwards.
        // Nobody else makes this one.
        vm.mtx_unlock(LockClass::Driver, &BOARD_LOCK.owner);
        let made = make(vm, thread, Wait::Yes);
        BOARD.with(|board| board.is_made(thread));
        match made {
            Ok(()) => wake(vm, thread),
            Err(Shortage) => {
                let _masked = interrupt::Masked::new();
                crate::log!(
                    "vm_thread_new: kstack allocation failed: no address space for thread t{thread}"
                );
                BOARD.with(|board| board.finish(thread, Outcome::Error(KernReturn::NoSpace), 0));
            }
        }
    }
}

/// The thread for whose sleep an answer of `thread` waits: that one, or the one that makes it.
pub fn waits(vm: &KernelVm, thread: u16) -> Option<KPtr<Thread>> {
    vm.tfind(thread.into()).or_else(|| vm.tfind(TASKQ_TID))
}

/// Wakes `thread`, for which a request was posted.
pub fn wake(vm: &KernelVm, thread: u16) {
    vm.mtx_lock(LockClass::Driver, &BOARD_LOCK.owner);
    vm.wakeup(channel(thread));
    vm.mtx_unlock(LockClass::Driver, &BOARD_LOCK.owner);
}

/// The guest is at rest: wakes those who wait for that. Returns whether there were any.
pub fn wake_settlers(vm: &KernelVm) -> bool {
    // Who has counted itself sleeps before the lock is free: on another CPU it may be on its way.
    vm.mtx_lock(LockClass::Driver, &BOARD_LOCK.owner);
    let settling = BOARD.with(|board| core::mem::take(board.settling()));
    if settling > 0 {
        vm.wakeup(channel(MAX_THREADS));
    }
    vm.mtx_unlock(LockClass::Driver, &BOARD_LOCK.owner);
    settling > 0
}

/// A worker's life.
fn work(vm: &KernelVm, thread: u64) {
    let thread = u16::try_from(thread).unwrap_or(0);
    loop {
        let op = next(vm, thread);
        let start = instr::rdtsc();
        let outcome = perform(vm, &op);
        let cycles = instr::rdtsc() - start;
        vm.sched_userret();
        BOARD.with(|board| board.finish(thread, outcome, cycles));
    }
}

fn next(vm: &KernelVm, thread: u16) -> Op {
    let lock = &BOARD_LOCK;
    vm.mtx_lock(LockClass::Driver, &lock.owner);
    loop {
        if let Some(op) = BOARD.with(|board| board.take(thread)) {
            vm.mtx_unlock(LockClass::Driver, &lock.owner);
            return op;
        }
        // A request may have been posted: the board is looked at again.
        let _ = vm.msleep(channel(thread), (LockClass::Driver, lock), 0, REQUEST, 0, Relock::Yes);
    }
}

/// Sleeps for `micros` microseconds on the running thread, whichever it is: at most to the end of
/// the clock's time, and there not at all.
pub fn sleep(vm: &KernelVm, micros: u64) -> Outcome {
    let micros = threads::clock().map_or(micros, |clock| micros.min(clock.left()));
    if micros > 0 {
        let ticks = threads::clock().map_or(1, |clock| clock.ticks_of(micros));
        // Nobody wakes this channel, and no lock is held: only time passes.
        let _ = vm.tsleep(WaitChannel::of(vm.current_thread()), 0, "sleep", ticks);
    }
    Outcome::Ok
}

fn perform(vm: &KernelVm, op: &Op) -> Outcome {
    match ops::execute(vm, &KernelAccess, op) {
        Executed::Done(outcome) => outcome,
        Executed::Sleep { micros } => sleep(vm, micros),
        Executed::Settle => {
            let lock = &BOARD_LOCK;
            vm.mtx_lock(LockClass::Driver, &lock.owner);
            BOARD.with(|board| *board.settling() += 1);
            // The guest was at rest when this thread was woken, and need not be any more.
            let _ = vm.msleep(
                channel(MAX_THREADS),
                (LockClass::Driver, lock),
                0,
                "settle",
                0,
                Relock::Drop,
            );
            Outcome::Ok
        }
        // The dispatcher answers joins itself.
        Executed::Join { .. } => Outcome::Error(KernReturn::InvalidArgument),
    }
}
