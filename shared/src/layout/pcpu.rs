//! What each CPU has for itself.

use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use super::thread::{RunQueue, Thread};
use crate::addr::KPtr;
use crate::field::Field;

/// A CPU, as the kernel sees it (`struct pcpu`). Guarded by [`super::Scheduler::lock`].
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Pcpu {
    /// The CPU after it in the list that begins at [`super::KernelRoots::cpuhead`] (`pc_allcpu`), or null.
    pub allcpu_next: Field<KPtr<Pcpu>>,
    /// The thread that it runs (`pc_curthread`).
    pub curthread: Field<KPtr<Thread>>,
    /// The thread that it runs when it has no other (`pc_idlethread`). No other CPU ever runs that one.
    pub idlethread: Field<KPtr<Thread>>,
    /// Its number, from 0 (`pc_cpuid`).
    pub cpuid: Field<u32>,
    /// Not 0 when its thread should give way at the next occasion (`TDF_NEEDRESCHED`): [`Preempt`].
    pub need_resched: Field<u32>,
    /// Ticks that its thread may go on while others of its priority wait.
    pub slice: Field<u64>,
    /// Threads that are to run on it, unless another CPU has nothing to do.
    pub runq: RunQueue,
}

const _: () = assert!(size_of::<Pcpu>() == 1072);
const _: () = assert!(core::mem::offset_of!(Pcpu, cpuid) == 24);
const _: () = assert!(core::mem::offset_of!(Pcpu, runq) == 40);

/// Values of [`Pcpu::need_resched`]: why the running thread should give way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Preempt {
    /// It should not.
    No = 0,
    /// A thread of a better priority can run: this one keeps its turn among its equals.
    Better = 1,
    /// Its time slice is over: it goes behind its equals.
    SliceOver = 2,
}
