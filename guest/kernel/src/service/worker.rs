//! Threads that work on the host's requests.

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

/// The requests by thread.
pub static BOARD: MaskedCell<Board> = MaskedCell::new(Board::new());

/// Interlock of the sleeps below. A thread that wakes a worker changes the board under it.
// SAFETY: a mutex is plain words, and all zero is a free one.
static BOARD_LOCK: Mtx = unsafe { core::mem::zeroed() };
/// Channels: a thread that waits for a request sleeps on its own byte, and one that waits for the
/// guest to be at rest on the last.
static CHANNELS: [u8; MAX_THREADS as usize + 1] = [0; MAX_THREADS as usize + 1];

/// The wait message of a thread that waits for a request.
const REQUEST: &str = "request";

fn channel(index: u16) -> WaitChannel {
    WaitChannel::from(GuestVirt::new((&raw const CHANNELS[usize::from(index)]) as u64))
}

/// Creates `thread`, which does not exist yet. It sleeps until [`wake`].
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

/// Creates the first thread, `t0`, and the thread that creates others when memory is short.
///
/// # Errors
/// When there is no memory for them.
pub fn start(vm: &KernelVm) -> Result<(), Shortage> {
    vm.taskqueue_start(make_threads)?;
    make(vm, 0, Wait::No)
}

/// Lets `thread` begin with the request that was posted for it. If the thread does not exist yet it
/// is created: at once if that needs no wait, otherwise by the thread that may wait for memory.
pub fn begin(vm: &KernelVm, thread: u16) {
    if vm.tfind(thread.into()).is_some() || make(vm, thread, Wait::No).is_ok() {
        return wake(vm, thread);
    }
    vm.mtx_lock(LockClass::Driver, &BOARD_LOCK.owner);
    BOARD.with(|board| board.want(thread));
    vm.taskqueue_wakeup();
    vm.mtx_unlock(LockClass::Driver, &BOARD_LOCK.owner);
}

/// The main loop of the thread that creates threads.
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
        // More threads may be wanted while this one is made: the board is read again afterwards. No
        // other thread creates this one.
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

/// The thread whose sleep delays the answer of `thread`: that thread, or the one that creates it.
pub fn waits(vm: &KernelVm, thread: u16) -> Option<KPtr<Thread>> {
    vm.tfind(thread.into()).or_else(|| vm.tfind(TASKQ_TID))
}

/// Wakes `thread`, for which a request was posted.
pub fn wake(vm: &KernelVm, thread: u16) {
    vm.mtx_lock(LockClass::Driver, &BOARD_LOCK.owner);
    vm.wakeup(channel(thread));
    vm.mtx_unlock(LockClass::Driver, &BOARD_LOCK.owner);
}

/// The guest is at rest: wakes the threads that wait for that. Returns whether there were any.
pub fn wake_settlers(vm: &KernelVm) -> bool {
    // A thread that has counted itself sleeps before the lock is free; on another CPU it may be
    // about to.
    vm.mtx_lock(LockClass::Driver, &BOARD_LOCK.owner);
    let settling = BOARD.with(|board| core::mem::take(board.settling()));
    if settling > 0 {
        vm.wakeup(channel(MAX_THREADS));
    }
    vm.mtx_unlock(LockClass::Driver, &BOARD_LOCK.owner);
    settling > 0
}

/// A worker's main loop.
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
        // A request may have been posted: the board is read again.
        let _ = vm.msleep(channel(thread), (LockClass::Driver, lock), 0, REQUEST, 0, Relock::Yes);
    }
}

/// Makes the running thread sleep for `micros` microseconds, at most until the end of the clock,
/// and not at all if it is there.
pub fn sleep(vm: &KernelVm, micros: u64) -> Outcome {
    let micros = threads::clock().map_or(micros, |clock| micros.min(clock.left()));
    if micros > 0 {
        let ticks = threads::clock().map_or(1, |clock| clock.ticks_for(micros));
        // Nothing wakes this channel, and no lock is held: only time passes.
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
            // The guest was at rest when this thread was woken, but need not be any more.
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
