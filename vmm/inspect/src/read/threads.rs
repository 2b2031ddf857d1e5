//! The kernel's threads.

use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::control::{MAX_THREADS, WaitMessage};
use vmkern_abi::layout::{Scheduler, Thread, ThreadState};

use crate::InspectError;
use crate::view::View;

const THREAD: &str = "thread";

/// More threads than any kernel creates: a longer list of threads is damaged.
const COUNT_MAX: usize = 1 << 16;

/// A kernel thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ThreadView {
    /// Its number; requests can name the threads below 64.
    pub tid: u32,
    /// Its name.
    pub name: WaitMessage,
    /// What it is doing.
    pub state: ThreadState,
    /// The channel that it sleeps on, 0 while it does not sleep.
    pub wchan: GuestVirt,
    /// The wait message, while it sleeps.
    pub waits_for: Option<WaitMessage>,
}

impl ThreadView {
    /// `tN` for a thread that requests can name, otherwise the thread's own name.
    #[must_use]
    pub fn label(&self) -> String {
        if self.tid < u32::from(MAX_THREADS) {
            format!("t{}", self.tid)
        } else {
            self.name.to_string()
        }
    }
}

/// All threads that have not exited, in the order in which they were made.
pub(super) fn threads(
    view: &View<'_>,
    scheduler: &Scheduler,
) -> Result<Vec<ThreadView>, InspectError> {
    // 1. Follow the list, with a limit: a cycle would never end.
    let (mut previous, mut at) = (KPtr::NULL, scheduler.all.head.get());
    let mut threads = Vec::new();
    while let Some(pointer) = at.non_null() {
        let broken = |problem: String| Err(InspectError::damaged(THREAD, pointer.addr(), problem));
        if threads.len() >= COUNT_MAX {
            return broken(format!("the list continues after {COUNT_MAX} threads"));
        }
        let thread: Thread = view.copy(THREAD, pointer)?;
        if thread.all_prev.get() != previous {
            return broken(format!(
                "its all_prev is {:?}, but the list came from {previous:?}",
                thread.all_prev.get()
            ));
        }
        let Some(state) = thread.state() else {
            return broken(format!("its state is {}", thread.state.get()));
        };
        let (tid, name, wchan) = (thread.tid.get(), thread.name(), thread.wchan.get());
        threads.push(ThreadView { tid, name, state, wchan, waits_for: thread.wait_message() });
        (previous, at) = (pointer, thread.all_next.get());
    }
    // 2. The list must end at its tail.
    if scheduler.all.tail.get() != previous {
        let problem = format!(
            "the list of all threads ends here, but its tail is {:?}",
            scheduler.all.tail.get()
        );
        return Err(InspectError::damaged(THREAD, previous.addr(), problem));
    }
    Ok(threads)
}

#[cfg(test)]
mod tests {
    use vmkern_abi::addr::GuestPhys;
    use vmkern_abi::field::Code;
    use zerocopy::IntoBytes;

    use super::*;
    use crate::testing::{TestRam, mapped_ram, view};

    const PAGE: u64 = 0x4000_0000;

    fn at(index: u64) -> KPtr<Thread> {
        KPtr::new(GuestVirt::new(PAGE + index * 256))
    }

    /// t3, which sleeps in vmwait, and the pagedaemon, which runs.
    fn put(ram: &TestRam, edit: impl Fn(&[Thread; 2])) -> Scheduler {
        let threads = [Thread::default(), Thread::default()];
        let words = |text: &str| WaitMessage::new(text).words();
        threads[0].tid.set(3);
        threads[0].state.put(ThreadState::Sleeping);
        threads[0].wchan.set(GuestVirt::new(0xffff_ffff_8010_0000));
        threads[0].wmesg.iter().zip(words("vmwait")).for_each(|(field, word)| field.set(word));
        threads[0].all_next.set(at(1));
        threads[1].tid.set(65);
        threads[1].state.put(ThreadState::Running);
        threads[1].name.iter().zip(words("pagedaemon")).for_each(|(field, word)| field.set(word));
        threads[1].all_prev.set(at(0));
        edit(&threads);
        for (index, mut thread) in (0..).zip(threads) {
            ram.write(GuestPhys::from_pfn(32).add(index * 256), thread.as_mut_bytes())
                .expect("it is RAM");
        }
        let scheduler = Scheduler::default();
        scheduler.all.head.set(at(0));
        scheduler.all.tail.set(at(1));
        scheduler
    }

    #[test]
    fn each_thread_tells_its_name_and_what_it_waits_for() {
        let ram = mapped_ram();
        let threads = threads(&view(&ram), &put(&ram, |_| {})).expect("the list is sound");
        let told: Vec<_> = threads
            .iter()
            .map(|t| (t.label(), t.state, t.waits_for.map(|w| w.to_string())))
            .collect();
        let sleeper = ("t3".to_owned(), ThreadState::Sleeping, Some("vmwait".to_owned()));
        assert_eq!(told, [sleeper, ("pagedaemon".to_owned(), ThreadState::Running, None)]);
    }

    #[test]
    fn a_damaged_list_of_threads_is_an_error_and_never_an_endless_loop() {
        let damages: [fn(&[Thread; 2]); 5] = [
            |threads| threads[1].all_next.set(at(0)),
            |threads| threads[1].all_next.set(at(1)),
            |threads| threads[0].all_next.set(KPtr::NULL),
            |threads| threads[1].state.set(Code::from_raw(9)),
            |threads| threads[0].all_next.set(KPtr::new(GuestVirt::new(0xdead_0000_0000_0000))),
        ];
        for (number, damage) in damages.into_iter().enumerate() {
            let ram = mapped_ram();
            let scheduler = put(&ram, damage);
            assert!(threads(&view(&ram), &scheduler).is_err(), "damage {number} went unseen");
        }
    }
}
