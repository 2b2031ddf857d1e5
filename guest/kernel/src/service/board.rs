//! The board: the requests to each of the host's threads, and the answers that are still owed.
//!
//! A slot goes `Idle -> Asked -> Working -> Done -> Idle`: the dispatcher posts a request, the
//! thread takes it, works, and posts the outcome, which the dispatcher sends once the guest is at
//! rest. If the guest comes to rest before that, the dispatcher answers that the thread is blocked
//! (`Working -> Unasked`), and the later outcome is kept until a join asks for it.
//!
//! A request that is started without waiting goes `Idle -> Planned -> Asked`, in real time `Idle ->
//! Asked`, and owes no answer before a join, like one whose thread is blocked. Planned requests
//! begin together, in the order in which they came.
//!
//! A request may have to wait for its thread to be created ([`Board::want`]). It is then owed an
//! answer like one that is being worked on, and can be blocked before it has begun.

use vmkern_abi::control::{MAX_THREADS, Op, Outcome, Response};

/// The state of a thread.
#[derive(Clone, Copy, Debug)]
enum State {
    /// It has nothing to do.
    Idle,
    /// It will begin with the next request that is waited for.
    Planned { op: Op },
    /// A request waits for it. The request has a tag, unless it was started without waiting, or the
    /// host was told that it is blocked and has not joined it since.
    Asked { tag: Option<u32>, op: Op },
    /// It works on the request with this tag.
    Working { tag: u32 },
    /// It works, and no answer is owed: it was started without waiting, or the host was told that
    /// it is blocked, and has not joined it since.
    Unasked,
    /// It has finished, and this tag, if any, must be answered.
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
    /// The threads that must still be created for their requests.
    wanted: Threads,
    /// Those of them whose requests have a tag to answer.
    waiting: Threads,
    /// The threads that are [`State::Done`] with a tag to answer.
    done: Threads,
    /// The threads that are [`State::Unasked`].
    unasked: Threads,
    /// The threads that were started and have not finished since.
    started: Threads,
    /// The threads that are [`State::Planned`], in order.
    plan: [u8; MAX_THREADS as usize],
    planned: usize,
    /// Threads that wait for the guest to be at rest.
    settling: u32,
}

/// The thread is not in a state that allows this request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotNow;

impl Board {
    /// A board without requests.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            slots: [State::Idle; MAX_THREADS as usize],
            working: 0,
            wanted: 0,
            waiting: 0,
            done: 0,
            unasked: 0,
            started: 0,
            plan: [0; MAX_THREADS as usize],
            planned: 0,
            settling: 0,
        }
    }

    /// Posts a request for `thread`, to be answered with `tag`.
    ///
    /// # Errors
    /// When the thread has one already.
    pub fn post(&mut self, thread: u16, tag: u32, op: Op) -> Result<(), NotNow> {
        self.idle(thread)?;
        self.set(thread, State::Asked { tag: Some(tag), op });
        Ok(())
    }

    /// Posts a request for `thread` that is not waited for.
    ///
    /// # Errors
    /// When the thread has one already.
    pub fn start(&mut self, thread: u16, op: Op) -> Result<(), NotNow> {
        self.idle(thread)?;
        self.started |= 1 << thread;
        self.set(thread, State::Asked { tag: None, op });
        Ok(())
    }

    /// Records a request for `thread` that will begin with the next request that is waited for.
    ///
    /// # Errors
    /// When the thread has one already.
    pub fn plan(&mut self, thread: u16, op: Op) -> Result<(), NotNow> {
        self.idle(thread)?;
        self.set(thread, State::Planned { op });
        self.plan[self.planned] = u8::try_from(thread).unwrap_or(0);
        self.planned += 1;
        Ok(())
    }

    /// Whether requests are planned.
    pub fn has_plan(&self) -> bool {
        self.planned > 0
    }

    /// Posts the planned request at `index`, and returns its thread.
    pub fn begin(&mut self, index: usize) -> Option<u16> {
        if index >= self.planned {
            self.planned = 0;
            return None;
        }
        let thread = u16::from(self.plan[index]);
        if let State::Planned { op } = self.slots[usize::from(thread)] {
            self.started |= 1 << thread;
            self.set(thread, State::Asked { tag: None, op });
        }
        Some(thread)
    }

    /// Whether anything was started that has not finished yet.
    pub fn has_started(&self) -> bool {
        self.started != 0
    }

    fn idle(&self, thread: u16) -> Result<(), NotNow> {
        if matches!(self.slots[usize::from(thread)], State::Idle) { Ok(()) } else { Err(NotNow) }
    }

    /// Takes the request that waits for `thread`.
    pub fn take(&mut self, thread: u16) -> Option<Op> {
        let State::Asked { tag, op } = self.slots[usize::from(thread)] else { return None };
        self.set(thread, tag.map_or(State::Unasked, |tag| State::Working { tag }));
        Some(op)
    }

    /// Records that `thread`, which has a request, must be created.
    pub fn want(&mut self, thread: u16) {
        self.wanted |= 1 << thread;
        self.set(thread, self.slots[usize::from(thread)]);
    }

    /// The lowest thread that must be created.
    pub fn wanted(&self) -> Option<u16> {
        first(self.wanted)
    }

    /// Records that `thread` need not be created any more.
    pub fn is_made(&mut self, thread: u16) {
        self.wanted &= !(1 << thread);
        self.set(thread, self.slots[usize::from(thread)]);
    }

    /// Records that `thread` has finished, or that it could not be created for its request.
    pub fn finish(&mut self, thread: u16, outcome: Outcome, cycles: u64) {
        let tag = match self.slots[usize::from(thread)] {
            State::Working { tag } => Some(tag),
            State::Asked { tag, .. } => tag,
            _ => None,
        };
        self.started &= !(1 << thread);
        self.set(thread, State::Done { tag, outcome, cycles });
    }

    /// Joins `thread`, which was started without waiting, or was reported as blocked: its outcome
    /// will be answered with `tag`.
    ///
    /// # Errors
    /// When the thread is neither.
    pub fn join(&mut self, thread: u16, tag: u32) -> Result<(), NotNow> {
        let state = match self.slots[usize::from(thread)] {
            State::Unasked => State::Working { tag },
            State::Asked { tag: None, op } => State::Asked { tag: Some(tag), op },
            State::Done { tag: None, outcome, cycles } => {
                State::Done { tag: Some(tag), outcome, cycles }
            }
            _ => return Err(NotNow),
        };
        self.set(thread, state);
        Ok(())
    }

    /// Takes an answer that can be sent.
    pub fn next_answer(&mut self) -> Option<Response> {
        let thread = first(self.done)?;
        let State::Done { tag: Some(tag), outcome, cycles } = self.slots[usize::from(thread)]
        else {
            return None;
        };
        self.set(thread, State::Idle);
        Some(Response { tag, cycles, outcome })
    }

    /// Whether an answer can be sent, or a thread waits for the guest to be at rest.
    pub fn has_news(&self) -> bool {
        self.done != 0 || self.settling != 0
    }

    /// The threads that owe an answer, in ascending order.
    pub fn owing(&self) -> impl Iterator<Item = u16> {
        members(self.working | self.waiting)
    }

    /// The threads that work, or are being created for their work, whether they owe an answer or
    /// not, in ascending order.
    pub fn at_work(&self) -> impl Iterator<Item = u16> {
        members(self.working | self.unasked | self.wanted)
    }

    /// The guest is at rest: marks `thread`, which owes an answer, as blocked. Returns the tag for
    /// the answer that says so.
    pub fn block(&mut self, thread: u16) -> Option<u32> {
        let (tag, blocked) = match self.slots[usize::from(thread)] {
            State::Working { tag } => (tag, State::Unasked),
            State::Asked { tag: Some(tag), op } => (tag, State::Asked { tag: None, op }),
            _ => return None,
        };
        self.set(thread, blocked);
        Some(tag)
    }

    /// Threads that wait for the guest to be at rest.
    pub fn settling(&mut self) -> &mut u32 {
        &mut self.settling
    }

    fn set(&mut self, thread: u16, state: State) {
        let bit = 1 << thread;
        self.working &= !bit;
        self.waiting &= !bit;
        self.done &= !bit;
        self.unasked &= !bit;
        match state {
            State::Working { .. } => self.working |= bit,
            State::Asked { tag: Some(_), .. } => self.waiting |= self.wanted & bit,
            State::Unasked => self.unasked |= bit,
            State::Done { tag: Some(_), .. } => self.done |= bit,
            _ => {}
        }
        self.slots[usize::from(thread)] = state;
    }
}

/// The threads of a set, in ascending order.
fn members(set: Threads) -> impl Iterator<Item = u16> {
    core::iter::successors(Some(set), |set| Some(set & set.wrapping_sub(1))).map_while(first)
}

/// The lowest thread of a set.
fn first(set: Threads) -> Option<u16> {
    (set != 0).then(|| u16::try_from(set.trailing_zeros()).unwrap_or(MAX_THREADS))
}
