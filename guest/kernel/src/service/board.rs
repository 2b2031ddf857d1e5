//! The board: what each thread of the host's has been asked, and what is still to be answered.
//!
//! A slot goes `Idle -> Asked -> Working -> Done -> Idle`: the dispatcher posts a request, the thread takes it, works, and
//! posts the outcome, which the dispatcher sends once the guest is at rest. If the guest comes to rest before, the
//! dispatcher answers that the thread is blocked (`Working -> Blocked`), and the outcome, when it comes, is kept until a
//! join asks for it.

use vmkern_abi::control::{MAX_THREADS, Op, Outcome, Response};

/// What a thread is up to.
#[derive(Clone, Copy, Debug)]
enum State {
    /// Nothing.
    Idle,
    /// A request waits for it.
    Asked { tag: u32, op: Op },
    /// It works on the request with this tag.
    Working { tag: u32 },
    /// It works still, but the host was told that it is blocked, and has not asked again.
    Blocked,
    /// It has finished, and this tag is to be answered, if any.
    Done { tag: Option<u32>, outcome: Outcome, cycles: u64 },
}

/// The board.
#[derive(Debug)]
pub struct Board {
    slots: [State; MAX_THREADS as usize],
    /// Threads that wait for the guest to be at rest.
    settling: u32,
}

/// The thread is not in a state in which this can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotNow;

impl Board {
    /// Nobody has been asked anything.
    #[must_use]
    pub const fn new() -> Self {
        Self { slots: [State::Idle; MAX_THREADS as usize], settling: 0 }
    }

    /// Posts a request for `thread`.
    ///
    /// # Errors
    /// When the thread has one already.
    pub fn post(&mut self, thread: u16, tag: u32, op: Op) -> Result<(), NotNow> {
        let slot = self.slot(thread);
        if !matches!(slot, State::Idle) {
            return Err(NotNow);
        }
        *slot = State::Asked { tag, op };
        Ok(())
    }

    /// Takes the request that waits for `thread`.
    pub fn take(&mut self, thread: u16) -> Option<Op> {
        let slot = self.slot(thread);
        let State::Asked { tag, op } = *slot else { return None };
        *slot = State::Working { tag };
        Some(op)
    }

    /// Notes that `thread` has finished.
    pub fn finish(&mut self, thread: u16, outcome: Outcome, cycles: u64) {
        let slot = self.slot(thread);
        let tag = if let State::Working { tag } = *slot { Some(tag) } else { None };
        *slot = State::Done { tag, outcome, cycles };
    }

    /// Joins `thread`, which the host was told to be blocked: its outcome will be answered with `tag`.
    ///
    /// # Errors
    /// When the thread is not blocked.
    pub fn join(&mut self, thread: u16, tag: u32) -> Result<(), NotNow> {
        let slot = self.slot(thread);
        *slot = match *slot {
            State::Blocked => State::Working { tag },
            State::Done { tag: None, outcome, cycles } => State::Done { tag: Some(tag), outcome, cycles },
            _ => return Err(NotNow),
        };
        Ok(())
    }

    /// Takes an answer that can be sent.
    pub fn next_answer(&mut self) -> Option<Response> {
        self.slots.iter_mut().find_map(|slot| {
            let State::Done { tag: Some(tag), outcome, cycles } = *slot else { return None };
            *slot = State::Idle;
            Some(Response { tag, cycles, outcome })
        })
    }

    /// The threads that owe an answer.
    pub fn owing(&self) -> impl Iterator<Item = u16> {
        (0..).zip(&self.slots).filter(|(_, slot)| matches!(slot, State::Working { .. })).map(|(thread, _)| thread)
    }

    /// The guest is at rest: marks `thread`, which owes an answer, as blocked. Returns the tag to tell so.
    pub fn block(&mut self, thread: u16) -> Option<u32> {
        let slot = self.slot(thread);
        let State::Working { tag } = *slot else { return None };
        *slot = State::Blocked;
        Some(tag)
    }

    /// Threads that wait for the guest to be at rest.
    pub fn settling(&mut self) -> &mut u32 {
        &mut self.settling
    }

    fn slot(&mut self, thread: u16) -> &mut State {
        &mut self.slots[usize::from(thread)]
    }
}
