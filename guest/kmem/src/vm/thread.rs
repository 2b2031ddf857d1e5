//! Creating threads and CPUs, and freeing the memory of exited threads (`kern_thread.c`,
//! `kern_kthread.c`, `mp_machdep.c`).
//!
//! The code that boots becomes thread [`THREAD0_TID`], the idle thread. A thread that exits leaves
//! its structure and its stack to be freed by others ([`Vm::thread_reap`]); its number is free at
//! once. [`crate::kern`] runs and ends threads; this module allocates and frees their memory.

use vmkern_abi::addr::{KPtr, PAGE_SIZE};
use vmkern_abi::fail::FailSite;
use vmkern_abi::kmem::WaitMessage;
use vmkern_abi::layout::{Pcpu, Thread, ThreadState};

use super::zone::ZoneItem;
use super::{Shortage, Vm, VmMachine, Wait};
use crate::kern::mp::idle_tid;
use crate::kern::sched::PRI_MAX_IDLE;
use crate::kern::sleepq::WaitChannel;
use crate::kern::thread::THREAD0_TID;
use crate::machine::{AllocClass, ThreadStart};
use crate::num::to_u32;

/// The description of a thread to be created.
#[derive(Debug)]
pub struct ThreadSpec<'a, S> {
    /// Its number.
    pub tid: u32,
    /// Its name, cut off after 15 bytes.
    pub name: &'a str,
    /// Its priority, 0 to 255.
    pub priority: u8,
    /// The function that it calls; it exits when that returns.
    pub start: ThreadStart<S>,
    /// The argument.
    pub arg: u64,
}

/// The name in two words, cut off after 15 bytes.
fn set_name(t: &Thread, name: &str) {
    for (field, word) in t.name.iter().zip(WaitMessage::new(name).words()) {
        field.set(word);
    }
}

impl<M: VmMachine> Vm<M> {
    /// Makes the running code thread 0 (`proc0_init`), while the system stays cold.
    pub(crate) fn sched_init(&self) {
        let sched = self.sched();
        sched.cold.raise();
        let Ok(thread) = self.thread_alloc(THREAD0_TID, "host", PRI_MAX_IDLE, Wait::No) else {
            self.panic(format_args!("proc0_init: no memory for thread0"));
        };
        let t = self.get(thread);
        t.state.put(ThreadState::Running);
        let cpu = self.boot_pcpu();
        cpu.curthread.set(thread);
        cpu.idlethread.set(thread);
        self.machine().cpu_adopt(thread);
        self.sched_lock();
        self.thread_link(thread);
        self.sched_unlock();
    }

    /// Creates the thread `spec`, runnable (`kthread_add`), with pages of the SYSTEM class. Panics
    /// when the number is taken. Locks: none may be held; takes kernel_map's. Never sleeps and
    /// never switches.
    ///
    /// # Errors
    /// [`Shortage`] when there is no page or no address space for the thread.
    pub fn kthread_create(&self, spec: &ThreadSpec<'_, Self>) -> Result<KPtr<Thread>, Shortage> {
        let thread = self.thread_make(spec, AllocClass::System, Wait::No)?;
        self.sched_lock();
        self.thread_link(thread);
        self.setrunnable(thread);
        self.sched_unlock();
        Ok(thread)
    }

    /// Creates the thread `spec`, which sleeps on `channel` and shows `wmesg` as if it had gone to
    /// sleep by itself. The wakeup that ends this sleep starts it; until then nothing touches its
    /// stack. Its pages are of the NORMAL class, as in FreeBSD, and the caller sleeps for them if
    /// `wait` says so. No other thread may create a thread with this number at the same time.
    /// Otherwise like [`Vm::kthread_create`].
    ///
    /// # Errors
    /// As for [`Vm::kthread_create`]; with [`Wait::Yes`] for lack of address space only.
    pub fn kthread_create_asleep(
        &self,
        spec: &ThreadSpec<'_, Self>,
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

    /// The thread `spec` with its stack, ready for its first switch, but not linked yet.
    fn thread_make(
        &self,
        spec: &ThreadSpec<'_, Self>,
        class: AllocClass,
        wait: Wait,
    ) -> Result<KPtr<Thread>, Shortage> {
        self.assert_no_locks("kthread_create");
        if self.fails(FailSite::KthreadCreate) {
            return Err(Shortage);
        }
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

    /// The first function of a new thread (`fork_exit`); the machine calls it as
    /// [`Cpu::cpu_fork`](crate::machine::Cpu::cpu_fork) says.
    pub fn fork_exit(&self, start: ThreadStart<Self>, arg: u64) -> ! {
        self.arrive();
        // The thread that left this CPU is off its stack, and may be run by others or freed.
        self.sched_unlock();
        start(self, arg);
        self.kthread_exit()
    }

    /// Adds a CPU, 1 to 63, the next by number: its structure, and its idle thread with a stack,
    /// which the machine must start there. The CPU counts from now on, and appears busy until it
    /// calls [`Kern::cpu_started`](crate::kern::Kern::cpu_started). Locks: none may be held; takes
    /// kernel_map's and the free queue's. Never sleeps.
    ///
    /// # Errors
    /// [`Shortage`] when there is no page or no address space for it.
    pub fn cpu_add(&self, cpuid: u32, name: &str) -> Result<(KPtr<Pcpu>, KPtr<Thread>), Shortage> {
        let pcpu: KPtr<Pcpu> = self.zone_alloc().ok_or(Shortage)?;
        let idle = self
            .thread_new(idle_tid(cpuid), name, PRI_MAX_IDLE, AllocClass::System, Wait::No)
            .inspect_err(|_| self.zone_free(pcpu))?;
        let cpu = self.get(pcpu);
        cpu.cpuid.set(cpuid);
        cpu.idlethread.set(idle);
        cpu.lock_prof.set(self.boot_pcpu().lock_prof.get());
        self.get(idle).lastcpu.set(u8::try_from(cpuid).unwrap_or(u8::MAX));
        // The number of CPUs and what caches make of it change together.
        let queue = self.free_queue();
        self.sched_lock();
        self.thread_link(idle);
        // Who follows the list without the lock finds the CPU whole.
        self.cpu_list().publish_tail(pcpu);
        self.cnt().ncpu.inc();
        // Others may find the CPU from here on. It does not run yet, so nobody uses its page cache
        // before the caches' floor counts it.
        self.sched_unlock();
        self.page_caches_enable(&queue);
        Ok((pcpu, idle))
    }

    /// Frees the stacks and structures of exited threads (`thread_reap`). Locks: none may be held;
    /// takes kernel_map's. Never sleeps.
    pub fn thread_reap(&self) {
        self.assert_no_locks("thread_reap");
        loop {
            let Some(zombie) = self.zombie_take().non_null() else { return };
            let t = self.get(zombie);
            self.vm_thread_dispose(t.kstack.get(), t.kstack_pages.get().into());
            self.thread_free(zombie);
        }
    }

    /// A thread that is not linked yet, with a sleep queue and a stack.
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
        t.kstack_pages.set(to_u32(pages));
        Ok(thread)
    }

    /// A thread that is not linked yet, with a sleep queue.
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
                // Others may take what comes in: it is tried again.
                None if wait == Wait::Yes => self.vm_wait(),
                None => return Err(Shortage),
            }
        }
    }

    fn thread_free(&self, thread: KPtr<Thread>) {
        let t = self.get(thread);
        t.state.put(ThreadState::Inactive);
        self.zone_free(t.sleepqueue.get());
        self.zone_free(thread);
    }
}
