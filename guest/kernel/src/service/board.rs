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

/// A set of threads, a bit each.
type Threads = u64;

const _: () = assert!(MAX_THREADS as u32 == Threads::BITS);

/// The board.
#[derive(Debug)]
pub struct Board {
    slots: [State; MAX_THREADS as usize],
    /// The threads that are [`State::Working`].
    working: Threads,
    /// The threads that are [`State::Done`] with a tag to answer.
    done: Threads,
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
        Self { slots: [State::Idle; MAX_THREADS as usize], working: 0, done: 0, settling: 0 }
    }

    /// Posts a request for `thread`.
    ///
    /// # Errors
    /// When the thread has one already.
    pub fn post(&mut self, thread: u16, tag: u32, op: Op) -> Result<(), NotNow> {
        if !matches!(self.slots[usize::from(thread)], State::Idle) {
            return Err(NotNow);
        }
        self.set(thread, State::Asked { tag, op });
        Ok(())
    }

    /// Takes the request that waits for `thread`.
    pub fn take(&mut self, thread: u16) -> Option<Op> {
        let State::Asked { tag, op } = self.slots[usize::from(thread)] else { return None };
        self.set(thread, State::Working { tag });
        Some(op)
    }

    /// Notes that `thread` has finished.
    pub fn finish(&mut self, thread: u16, outcome: Outcome, cycles: u64) {
        let tag = if let State::Working { tag } = self.slots[usize::from(thread)] { Some(tag) } else { None };
        self.set(thread, State::Done { tag, outcome, cycles });
    }

    /// Joins `thread`, which the host was told to be blocked: its outcome will be answered with `tag`.
    ///
    /// # Errors
    /// When the thread is not blocked.
    pub fn join(&mut self, thread: u16, tag: u32) -> Result<(), NotNow> {
        let state = match self.slots[usize::from(thread)] {
            State::Blocked => State::Working { tag },
            State::Done { tag: None, outcome, cycles } => State::Done { tag: Some(tag), outcome, cycles },
            _ => return Err(NotNow),
        };
        self.set(thread, state);
        Ok(())
    }

    /// Takes an answer that can be sent.
    pub fn next_answer(&mut self) -> Option<Response> {
        let thread = first(self.done)?;
        let State::Done { tag: Some(tag), outcome, cycles } = self.slots[usize::from(thread)] else { return None };
        self.set(thread, State::Idle);
        Some(Response { tag, cycles, outcome })
    }

    /// Whether an answer can be sent, or a thread waits for the guest to be at rest.
    pub fn has_news(&self) -> bool {
        self.done != 0 || self.settling != 0
    }

    /// The threads that owe an answer, in ascending order.
    pub fn owing(&self) -> impl Iterator<Item = u16> {
        core::iter::successors(Some(self.working), |set| Some(set & set.wrapping_sub(1))).map_while(first)
    }

    /// The guest is at rest: marks `thread`, which owes an answer, as blocked. Returns the tag to tell so.
    pub fn block(&mut self, thread: u16) -> Option<u32> {
        let State::Working { tag } = self.slots[usize::from(thread)] else { return None };
        self.set(thread, State::Blocked);
        Some(tag)
    }

    /// Threads that wait for the guest to be at rest.
    pub fn settling(&mut self) -> &mut u32 {
        &mut self.settling
    }

    fn set(&mut self, thread: u16, state: State) {
        let bit = 1 << thread;
        self.working &= !bit;
        self.done &= !bit;
        match state {
            State::Working { .. } => self.working |= bit,
            State::Done { tag: Some(_), .. } => self.done |= bit,
            _ => {}
        }
        self.slots[usize::from(thread)] = state;
    }
}

/// The lowest thread of a set.
fn first(set: Threads) -> Option<u16> {
    (set != 0).then(|| u16::try_from(set.trailing_zeros()).unwrap_or(MAX_THREADS))
}
