//! The kernel's threads.

use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::control::{MAX_THREADS, WaitMessage};
use vmkern_abi::layout::{Scheduler, Thread, ThreadState};

use super::InspectError;
use super::view::View;

const THREAD: &str = "thread";

/// More threads than any kernel here makes: where a list of threads goes on for longer, it is damaged.
const COUNT_MAX: usize = 1 << 16;

/// A kernel thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadView {
    /// Its number; below 64 it is one that requests name.
    pub tid: u32,
    /// Its name.
    pub name: WaitMessage,
    /// What it is doing.
    pub state: ThreadState,
    /// The channel that it sleeps on, 0 while it does not sleep.
    pub wchan: GuestVirt,
    /// What it waits for, while it sleeps.
    pub waits_for: Option<WaitMessage>,
}

impl ThreadView {
    /// `tN` for a thread that requests name, else the thread's own name.
    #[must_use]
    pub fn label(&self) -> String {
        if self.tid < u32::from(MAX_THREADS) { format!("t{}", self.tid) } else { self.name.to_string() }
    }
}

/// All threads that have not exited, in the order in which they were made.
pub(super) fn threads(view: &View<'_>, scheduler: &Scheduler) -> Result<Vec<ThreadView>, InspectError> {
    let (mut previous, mut at) = (KPtr::NULL, scheduler.all.head.get());
    let mut threads = Vec::new();
    while let Some(pointer) = at.non_null() {
        let broken = |problem: String| Err(InspectError::damaged(THREAD, pointer.addr(), problem));
        if threads.len() >= COUNT_MAX {
            return broken(format!("the list goes on after {COUNT_MAX} threads"));
        }
        let thread: Thread = view.copy(THREAD, pointer)?;
        if thread.all_prev.get() != previous {
            return broken(format!("its all_prev is {:?}, but the list came from {previous:?}", thread.all_prev.get()));
        }
        let Some(state) = thread.state() else {
            return broken(format!("its state is {}", thread.state.get()));
        };
        let (tid, name, wchan) = (thread.tid.get(), thread.name(), thread.wchan.get());
        threads.push(ThreadView { tid, name, state, wchan, waits_for: thread.wait_message() });
        (previous, at) = (pointer, thread.all_next.get());
    }
    if scheduler.all.tail.get() != previous {
        let problem = format!("the list of all threads ends here, but its tail is {:?}", scheduler.all.tail.get());
        return Err(InspectError::damaged(THREAD, previous.addr(), problem));
    }
    Ok(threads)
}
