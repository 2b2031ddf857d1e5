//! How an idle CPU waits for work, and how it is woken.
//!
//! A CPU's idle thread first polls for work; then it announces that it will halt, looks once more,
//! and halts. A CPU that has work for it first publishes the work, by
//! [`Pcpu::need_resched`](vmkern_abi::layout::Pcpu), and only then asks whether the idle CPU must
//! be interrupted.
//!
//! **Protocol.** On one side the announcement comes before the last look; on the other the work
//! comes before the question; each has a full fence in between. So either the last look finds the
//! work, or the question finds the announcement, and the interrupt ends the halt or prevents it. A
//! CPU that is polling is not interrupted. Every interrupt withdraws the announcement, and so does
//! a switch to another thread.

use core::mem::offset_of;

use vmkern_abi::atomic::{AtomicU64, Ordering, fence};

/// Whether a CPU polls for work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Polling {
    /// It does not: it must be interrupted.
    No = 0,
    /// Its idle thread polls.
    Yes = 1,
}

/// The idle state of a CPU. Only the CPU writes the words; others read them. All zeros is a CPU
/// that is not idle.
#[derive(Debug, Default)]
#[repr(C)]
pub struct IdleCpu {
    /// Not 0 while the CPU may halt.
    armed: AtomicU64,
    /// [`Polling`].
    polling: AtomicU64,
}

impl IdleCpu {
    /// Offset of the word that is not 0 while the CPU may halt: assembly reads it.
    pub const ARMED: usize = offset_of!(Self, armed);

    /// A CPU that is not idle.
    #[must_use]
    pub const fn new() -> Self {
        Self { armed: AtomicU64::new(0), polling: AtomicU64::new(0) }
    }

    /// Announces that the CPU will halt unless an interrupt comes first. It must look for work once
    /// more after this.
    pub fn arm(&self) {
        self.armed.store(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Withdraws the announcement: the CPU does not halt now.
    pub fn disarm(&self) {
        self.armed.store(0, Ordering::SeqCst);
    }

    /// Whether the CPU has announced that it will halt.
    #[must_use]
    pub fn is_armed(&self) -> bool {
        self.armed.load(Ordering::SeqCst) != 0
    }

    /// Sets whether the CPU, which runs its idle thread, polls for work and so need not be
    /// interrupted.
    pub fn set_polling(&self, polling: Polling) {
        self.polling.store(polling as u64, Ordering::Relaxed);
    }

    /// Whether the CPU polls for work. The caller has ordered this after the stores that the CPU
    /// must see.
    #[must_use]
    pub fn is_polling(&self) -> bool {
        self.polling.load(Ordering::Relaxed) == Polling::Yes as u64
    }

    /// Whether the CPU must be interrupted to see what the caller has just stored for it.
    #[must_use]
    pub fn must_be_interrupted(&self) -> bool {
        // Either the CPU sees the store in its last look before it halts, or this finds the CPU
        // armed.
        fence(Ordering::SeqCst);
        self.is_armed() || !self.is_polling()
    }

    /// Waits, on the CPU's idle thread, until there is work or an interrupt has ended the halt.
    /// `go_on` is called between two polls and returns whether to continue polling. After that,
    /// `halt` halts the CPU unless an interrupt has come since it was armed.
    pub fn rest(
        &self,
        has_work: impl Fn() -> bool,
        mut go_on: impl FnMut() -> bool,
        halt: impl FnOnce(),
    ) {
        self.set_polling(Polling::Yes);
        while !has_work() && go_on() {}
        if !has_work() {
            self.arm();
            if !has_work() {
                halt();
            }
            self.disarm();
        }
    }

    /// Has loom watch the words.
    #[cfg(all(test, loom))]
    pub(crate) fn watch(&self) -> [vmkern_abi::atomic::watched::Watched; 2] {
        [self.armed.watch(), self.polling.watch()]
    }
}
