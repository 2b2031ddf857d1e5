//! How an idle CPU rests, and who wakes it.
//!
//! A CPU's idle thread first looks for work again and again; then it announces that it will halt,
//! looks once more, and halts. Whoever has work for it makes that known, by
//! [`Pcpu::need_resched`](vmkern_abi::layout::Pcpu), and only then asks whether the CPU must be
//! interrupted.
//!
//! **Protocol.** On one side the announcement comes before the last look, on the other the work
//! before the question, each with a full fence in between. So either the last look finds the work,
//! or the question finds the announcement, and the interrupt ends the halt, or keeps it from
//! beginning. A CPU that only looks again and again is not interrupted. Every interrupt takes the
//! announcement back, and so does a switch to another thread.

use core::mem::offset_of;

use vmkern_abi::atomic::{AtomicU64, Ordering, fence};

/// Whether a CPU looks for work by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Polling {
    /// It must be interrupted.
    No = 0,
    /// Its idle thread looks again and again.
    Yes = 1,
}

/// What a CPU says of its rest. It changes the words itself, others read them. All zeros is a CPU
/// that does not rest.
#[derive(Debug, Default)]
#[repr(C)]
pub struct IdleCpu {
    /// Not 0 while the CPU may halt.
    armed: AtomicU64,
    /// [`Polling`].
    polling: AtomicU64,
}

impl IdleCpu {
    /// Offset of the word that is not 0 while the CPU may halt: assembly looks at it.
    pub const ARMED: usize = offset_of!(Self, armed);

    /// A CPU that does not rest.
    #[must_use]
    pub const fn new() -> Self {
        Self { armed: AtomicU64::new(0), polling: AtomicU64::new(0) }
    }

    /// The CPU announces that it will halt unless an interrupt comes first. It looks once more for
    /// work after this.
    pub fn arm(&self) {
        self.armed.store(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// No halt now.
    pub fn disarm(&self) {
        self.armed.store(0, Ordering::SeqCst);
    }

    /// Whether the CPU has announced that it will halt.
    #[must_use]
    pub fn is_armed(&self) -> bool {
        self.armed.load(Ordering::SeqCst) != 0
    }

    /// Says whether the CPU, which runs its idle thread, looks for work again and again, so that
    /// nobody need interrupt it.
    pub fn set_polling(&self, polling: Polling) {
        self.polling.store(polling as u64, Ordering::Relaxed);
    }

    /// Whether the CPU polls for work. The caller has ordered this after what it wants the CPU to
    /// see.
    #[must_use]
    pub fn is_polling(&self) -> bool {
        self.polling.load(Ordering::Relaxed) == Polling::Yes as u64
    }

    /// Whether the CPU must be interrupted to see what the caller has stored for it before.
    #[must_use]
    pub fn must_be_interrupted(&self) -> bool {
        // Either the CPU sees it in its last look before it halts, or this finds the CPU armed.
        fence(Ordering::SeqCst);
        self.is_armed() || !self.is_polling()
    }

    /// Rests on the CPU's idle thread until there is work, or an interrupt has ended the halt.
    /// `go_on` is called between two looks and says whether to look on; after that the CPU is to
    /// `halt`, unless an interrupt has come since it was armed.
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
