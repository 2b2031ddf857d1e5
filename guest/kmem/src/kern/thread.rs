//! Making and ending kernel threads (`kern_thread.c`, `kern_kthread.c`).
//!
//! The code that boots becomes thread [`THREAD0_TID`], the idle thread. A thread that exits leaves
//! its structure and its stack to be freed by others ([`Vm::thread_reap`]); its number is free at
//! once.

use vmkern_abi::addr::{GuestVirt, KPtr, PAGE_SIZE};
use vmkern_abi::field::Field;
use vmkern_abi::kmem::WaitMessage;
use vmkern_abi::layout::{TID_HASH, Thread, ThreadState};

use super::sched::PRI_MAX_IDLE;
use super::sleepq::WaitChannel;
use crate::machine::{Machine, ThreadStart};
use crate::vm::page::AllocClass;
use crate::vm::zone::ZoneItem;
use crate::vm::{Shortage, Vm, Wait};

/// The thread that the boot becomes: the host's dispatcher, which is the idle thread as well.
pub const THREAD0_TID: u32 = 64;
/// The pagedaemon.
pub const PAGEDAEMON_TID: u32 = 65;
/// The thread that clears free pages when there is nothing else to do.
pub const PAGEZERO_TID: u32 = 66;
/// The thread that does for others what may sleep. The numbers of idle threads are below.
pub const TASKQ_TID: u32 = 500;

/// A thread to be made.
#[derive(Debug)]
pub struct ThreadSpec<'a, M: Machine> {
    /// Its number.
    pub tid: u32,
    /// Its name, cut off after 15 bytes.
    pub name: &'a str,
    /// Its priority, 0 to 255.
    pub priority: u8,
    /// What it calls, to exit when that returns.
    pub start: ThreadStart<M>,
    /// The argument.
    pub arg: u64,
}

/// The name in two words, cut off after 15 bytes.
fn set_name(t: &Thread, name: &str) {
    for (field, word) in t.name.iter().zip(WaitMessage::new(name).words()) {
        field.set(word);
    }
}

impl<M: Machine> Vm<M> {
    /// Makes the running code thread 0 (`proc0_init`), while the system stays cold.
    pub(crate) fn sched_init(&self) {
        let sched = self.sched();
        sched.cold.set(1);
        let Ok(thread) = self.thread_alloc(THREAD0_TID, "host", PRI_MAX_IDLE, Wait::No) else {
            self.panic(format_args!("proc0_init: no memory for thread0"));
        };
        let t = self.get(thread);
        t.state.set(ThreadState::Running as u32);
        let cpu = self.boot_pcpu();
        cpu.curthread.set(thread);
        cpu.idlethread.set(thread);
        self.machine().cpu_adopt(thread);
        self.sched_lock();
        self.thread_link(thread);
        self.sched_unlock();
    }

    /// Ends the boot: from now on threads can sleep (`configure_final`).
    pub fn configure_final(&self) {
        self.sched().cold.set(0);
    }

    /// Makes the thread `spec`, runnable (`kthread_add`), with pages of the SYSTEM class. Panics
    /// when the number is taken. Locks: none may be held; takes kernel_map's. Never sleeps and
    /// never switches.
    ///
    /// # Errors
    /// [`Shortage`] when there is no page or no address space for the thread.
    pub fn kthread_create(&self, spec: &ThreadSpec<'_, M>) -> Result<KPtr<Thread>, Shortage> {
        let thread = self.thread_make(spec, AllocClass::System, Wait::No)?;
        self.sched_lock();
        self.thread_link(thread);
        self.setrunnable(thread);
        self.sched_unlock();
        Ok(thread)
    }

    /// Makes the thread `spec`, which sleeps on `channel` and shows `wmesg` as if it had come to
    /// that by itself. The wakeup that ends this sleep is what starts it; until then nothing
    /// touches its stack. Its pages are of the NORMAL class, as in FreeBSD, and the maker sleeps
    /// for them if `wait` says so. Nobody else makes a thread of this number. Otherwise as
    /// [`Vm::kthread_create`].
    ///
    /// # Errors
    /// As for [`Vm::kthread_create`]; with [`Wait::Yes`] for lack of address space only.
    pub fn kthread_create_asleep(
        &self,
        spec: &ThreadSpec<'_, M>,
        channel: WaitChannel,
        wmesg: &str,
        wait: Wait,
    ) -> Result<KPtr<Thread>, Shortage> {
        let thread = self.thread_make(spec, AllocClass::Normal, wait)?;
        self.sched_lock();
        self.thread_link(thread);
        self.sleepq_add(thread, channel, wmesg);
        self.sched_unlock();
        Ok(thread)
    }

    /// The thread `spec` with its stack, ready for its first switch, which nobody knows yet.
    fn thread_make(
        &self,
        spec: &ThreadSpec<'_, M>,
        class: AllocClass,
        wait: Wait,
    ) -> Result<KPtr<Thread>, Shortage> {
        self.assert_no_locks("kthread_create");
        self.thread_reap();
        if self.tfind(spec.tid).is_some() {
            self.panic(format_args!("kthread_create: thread {} exists", spec.tid));
        }
        let thread = self.thread_new(spec.tid, spec.name, spec.priority, class, wait)?;
        let t = self.get(thread);
        let (low, pages) = (t.kstack.get(), u64::from(t.kstack_pages.get()));
        self.machine().cpu_fork(thread, low..low.add(pages * PAGE_SIZE), spec.start, spec.arg);
        Ok(thread)
    }

    /// First code of a new thread (`fork_exit`): the machine calls it where [`Machine::cpu_fork`]
    /// says.
    pub fn fork_exit(&self, start: ThreadStart<M>, arg: u64) -> ! {
        self.arrive();
        self.sched_unlock();
        start(self, arg);
        self.kthread_exit()
    }

    /// Ends the running thread (`kthread_exit`), and wakes those who sleep on its address. Panics
    /// when it owns a lock, and when it is the idle thread.
    pub fn kthread_exit(&self) -> ! {
        let thread = self.current_thread();
        let t = self.get(thread);
        let tid = t.tid.get();
        self.assert_no_locks("kthread_exit");
        if t.sx_held.get() != 0 {
            self.panic(format_args!(
                "kthread_exit: thread {tid} owns {} sx locks",
                t.sx_held.get()
            ));
        }
        if t.base_priority.get() == PRI_MAX_IDLE {
            self.panic(format_args!("kthread_exit: the idle thread exits"));
        }
        self.wakeup(WaitChannel::of(thread));
        self.sched_lock();
        self.thread_unlink(thread);
        t.state.set(ThreadState::Zombie as u32);
        let zombies = &self.sched().zombies;
        t.rq_next.set(zombies.get());
        zombies.set(thread);
        self.mi_throw()
    }

    /// Frees what exited threads have left (`thread_reap`). Locks: none may be held; takes
    /// kernel_map's. Never sleeps.
    pub fn thread_reap(&self) {
        self.assert_no_locks("thread_reap");
        loop {
            self.sched_lock();
            let zombie = self.sched().zombies.get();
            if let Some(zombie) = zombie.non_null() {
                self.sched().zombies.set(self.get(zombie).rq_next.get());
            }
            self.sched_unlock();
            let Some(zombie) = zombie.non_null() else { return };
            let t = self.get(zombie);
            self.vm_thread_dispose(t.kstack.get(), t.kstack_pages.get().into());
            self.thread_free(zombie);
        }
    }

    /// Whether an exited thread has left anything for [`Vm::thread_reap`].
    #[inline]
    #[must_use]
    pub fn has_zombies(&self) -> bool {
        !self.sched().zombies.get().is_null()
    }

    /// The thread with this number, if it has not exited (`tfind`). Locks: takes the scheduler's.
    #[must_use]
    pub fn tfind(&self, tid: u32) -> Option<KPtr<Thread>> {
        self.sched_lock();
        let mut at = self.tid_chain(tid).get();
        while let Some(thread) = at.non_null().filter(|&thread| self.get(thread).tid.get() != tid) {
            at = self.get(thread).tid_next.get();
        }
        self.sched_unlock();
        at.non_null()
    }

    /// All threads that have not exited, in the order in which they were made. Whoever goes through
    /// them lets no thread exit meanwhile.
    pub fn threads(&self) -> impl Iterator<Item = KPtr<Thread>> {
        let first = self.sched().all.head.get().non_null();
        core::iter::successors(first, |&thread| self.get(thread).all_next.get().non_null())
    }

    /// A thread that nobody knows yet, with a sleep queue and a stack.
    pub(crate) fn thread_new(
        &self,
        tid: u32,
        name: &str,
        priority: u8,
        class: AllocClass,
        wait: Wait,
    ) -> Result<KPtr<Thread>, Shortage> {
        let thread = self.thread_alloc(tid, name, priority, wait)?;
        let (low, pages) =
            self.vm_thread_new(class, wait).inspect_err(|_| self.thread_free(thread))?;
        let t = self.get(thread);
        t.kstack.set(low);
        t.kstack_pages.set(u32::try_from(pages).unwrap_or(u32::MAX));
        Ok(thread)
    }

    /// A thread that nobody knows yet, with a sleep queue.
    fn thread_alloc(
        &self,
        tid: u32,
        name: &str,
        priority: u8,
        wait: Wait,
    ) -> Result<KPtr<Thread>, Shortage> {
        let thread: KPtr<Thread> = self.thread_item(wait)?;
        let queue = self.thread_item(wait).inspect_err(|_| self.zone_free(thread))?;
        let t = self.get(thread);
        t.sleepqueue.set(queue);
        t.tid.set(tid);
        t.priority.set(priority);
        t.base_priority.set(priority);
        set_name(t, name);
        Ok(thread)
    }

    /// An item of a zone, for which it sleeps if `wait` says so.
    fn thread_item<T: ZoneItem>(&self, wait: Wait) -> Result<KPtr<T>, Shortage> {
        loop {
            match self.zone_alloc() {
                Some(item) => return Ok(item),
                None if wait == Wait::Yes => self.vm_wait(),
                None => return Err(Shortage),
            }
        }
    }

    fn thread_free(&self, thread: KPtr<Thread>) {
        let t = self.get(thread);
        t.state.set(ThreadState::Inactive as u32);
        self.zone_free(t.sleepqueue.get());
        self.zone_free(thread);
    }

    fn tid_chain(&self, tid: u32) -> &Field<KPtr<Thread>> {
        &self.sched().tids[tid as usize % TID_HASH]
    }

    /// Makes `thread` known. Locks: the scheduler's.
    pub(crate) fn thread_link(&self, thread: KPtr<Thread>) {
        let (t, all) = (self.get(thread), &self.sched().all);
        let last = all.tail.get();
        t.all_prev.set(last);
        last.non_null().map_or(&all.head, |last| &self.get(last).all_next).set(thread);
        all.tail.set(thread);
        let chain = self.tid_chain(t.tid.get());
        t.tid_next.set(chain.get());
        chain.set(thread);
        self.cnt().thread_count.inc();
    }

    /// Forgets `thread`. Locks: the scheduler's.
    fn thread_unlink(&self, thread: KPtr<Thread>) {
        let (t, all) = (self.get(thread), &self.sched().all);
        let (prev, next) = (t.all_prev.get(), t.all_next.get());
        prev.non_null().map_or(&all.head, |prev| &self.get(prev).all_next).set(next);
        next.non_null().map_or(&all.tail, |next| &self.get(next).all_prev).set(prev);
        let mut link = self.tid_chain(t.tid.get());
        while link.get() != thread {
            link = &self.get(link.get()).tid_next;
        }
        link.set(t.tid_next.get());
        self.cnt().thread_count.dec();
    }

    /// Whether `va` lies in the guard page below the stack of `thread`.
    #[must_use]
    pub fn kstack_guards(&self, thread: KPtr<Thread>, va: GuestVirt) -> bool {
        let low = self.get(thread).kstack.get().get();
        low != 0 && (low - PAGE_SIZE..low).contains(&va.get())
    }
}
