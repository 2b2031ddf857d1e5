//! Threads of the simulated machine: each is a thread of the process, and a baton says which one
//! runs.
//!
//! Exactly one of them runs at any time, so an interleaving depends only on the scheduler's
//! decisions. The others are parked. A panic on any of them is passed to the thread that drives the
//! simulation. Dropping the simulation unwinds the threads that are still parked, one after the
//! other.

use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use vmkern_abi::addr::KPtr;
use vmkern_abi::layout::Thread;

/// The function that a thread runs from its first instruction on.
pub type Body = Box<dyn FnOnce() + Send>;

/// Unwinds a thread that has exited, or that the simulation no longer needs.
struct Gone;

/// The state of a thread.
enum Record {
    /// It has never had the baton.
    Fresh(Body),
    /// It has had the baton, and runs or is parked.
    Started { handle: thread::Thread, join: Option<JoinHandle<()>> },
}

/// The baton. Threads are known by their addresses.
#[derive(Default)]
pub struct Baton {
    /// The running thread; 0 before the first thread is known.
    holder: AtomicU64,
    /// The thread that must unwind because the simulation is over.
    dismissed: AtomicU64,
    records: Mutex<HashMap<u64, Record>>,
    /// The thread that drives the simulation.
    driver: AtomicU64,
    /// The payload of a thread's panic.
    failure: Mutex<Option<Box<dyn Any + Send>>>,
}

impl std::fmt::Debug for Baton {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Baton").field("holder", &self.holder).finish_non_exhaustive()
    }
}

fn key(thread: KPtr<Thread>) -> u64 {
    thread.addr().get()
}

impl Baton {
    fn records(&self) -> MutexGuard<'_, HashMap<u64, Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread that has the baton.
    pub fn holder(&self) -> KPtr<Thread> {
        KPtr::new(vmkern_abi::addr::GuestVirt::new(self.holder.load(Ordering::Acquire)))
    }

    /// Makes the calling thread the driver.
    pub fn adopt(&self, thread: KPtr<Thread>) {
        self.driver.store(key(thread), Ordering::Relaxed);
        self.records()
            .insert(key(thread), Record::Started { handle: thread::current(), join: None });
        self.holder.store(key(thread), Ordering::Release);
    }

    /// Adds a thread that begins with `body` when it first gets the baton.
    pub fn prepare(&self, thread: KPtr<Thread>, body: Body) {
        self.records().insert(key(thread), Record::Fresh(body));
    }

    /// Hands the baton from `from`, the calling thread, to `to`, and waits until it comes back.
    pub fn switch(self: &Arc<Self>, from: KPtr<Thread>, to: KPtr<Thread>) {
        if let Some(Record::Started { handle, .. }) = self.records().get_mut(&key(from)) {
            *handle = thread::current();
        }
        self.hand_to(key(to));
        self.wait(key(from));
    }

    /// Hands the baton from `from`, the calling thread, to `to`, and ends the calling thread.
    pub fn throw(self: &Arc<Self>, from: KPtr<Thread>, to: KPtr<Thread>) -> ! {
        self.records().remove(&key(from));
        self.hand_to(key(to));
        resume_unwind(Box::new(Gone))
    }

    fn hand_to(self: &Arc<Self>, to: u64) {
        self.holder.store(to, Ordering::Release);
        let mut records = self.records();
        match records.remove(&to) {
            Some(Record::Fresh(body)) => {
                let baton = Arc::clone(self);
                let join = thread::spawn(move || baton.run(to, body));
                let handle = join.thread().clone();
                records.insert(to, Record::Started { handle, join: Some(join) });
            }
            Some(Record::Started { handle, join }) => {
                handle.unpark();
                records.insert(to, Record::Started { handle, join });
            }
            None => panic!("the thread at {to:#x} was never made, or has exited"),
        }
    }

    /// The main function of a thread.
    fn run(self: Arc<Self>, me: u64, body: Body) {
        let Err(payload) = catch_unwind(AssertUnwindSafe(body)) else { return };
        if payload.is::<Gone>() {
            return;
        }
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(payload);
        self.records().remove(&me);
        self.hand_to(self.driver.load(Ordering::Relaxed));
    }

    fn wait(&self, me: u64) {
        while self.holder.load(Ordering::Acquire) != me {
            if self.dismissed.load(Ordering::Acquire) == me {
                resume_unwind(Box::new(Gone));
            }
            thread::park();
        }
        if me == self.driver.load(Ordering::Relaxed) {
            let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(payload) = failure {
                resume_unwind(payload);
            }
        }
    }

    /// Unwinds all threads but the driver, one after the other.
    pub fn dismiss_all(&self) {
        let driver = self.driver.load(Ordering::Relaxed);
        let all: Vec<_> = self.records().drain().filter(|&(thread, _)| thread != driver).collect();
        for (thread, record) in all {
            if let Record::Started { handle, join: Some(join) } = record {
                self.dismissed.store(thread, Ordering::Release);
                handle.unpark();
                // A panic while it unwinds is ignored.
                let _ = join.join();
            }
        }
    }
}
