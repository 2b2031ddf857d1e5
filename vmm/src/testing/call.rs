//! Where a typed call of a test runs, and what it returns there.

use std::fmt;
use std::marker::PhantomData;

use vmkern_abi::control::{Answer, Calls, Context, Op};

use super::error::CallResult;
use super::guest::TestGuest;
use crate::guest::ThreadId;
use crate::inspect::Crash;

/// Takes calls on one thread, or in an interrupt handler: see [`TestGuest::on`] and
/// [`TestGuest::in_interrupt`].
#[derive(Debug)]
#[must_use = "it does nothing until a call is made"]
pub struct On<'g> {
    pub(super) guest: &'g mut TestGuest,
    pub(super) context: Context,
}

impl<'g> On<'g> {
    /// Takes a call there of which the kernel must panic: see [`TestGuest::expect_panic`].
    pub fn expect_panic(self, text: &str) -> ExpectPanic<'g> {
        ExpectPanic { on: self, text: text.to_owned() }
    }
}

impl Calls for On<'_> {
    type Returned<A: Answer> = CallResult<A>;

    #[track_caller]
    fn perform<A: Answer>(&mut self, op: Op) -> CallResult<A> {
        self.guest.answer_in(self.context, op)
    }
}

/// Takes calls for handlers of the next vm_lowmem event: see [`TestGuest::on_lowmem`].
#[derive(Debug)]
#[must_use = "it does nothing until a call is made"]
pub struct Lowmem<'g> {
    pub(super) guest: &'g mut TestGuest,
}

impl Calls for Lowmem<'_> {
    type Returned<A: Answer> = CallResult<()>;

    #[track_caller]
    fn perform<A: Answer>(&mut self, op: Op) -> CallResult<()> {
        self.guest.answer_in(Context::Lowmem, op)
    }
}

/// Takes a call of which the kernel must panic: see [`TestGuest::expect_panic`]. The call itself
/// panics when the kernel does not, and when it says something else.
#[derive(Debug)]
#[must_use = "the call of which the kernel must panic is made through it"]
pub struct ExpectPanic<'g> {
    on: On<'g>,
    text: String,
}

impl Calls for ExpectPanic<'_> {
    type Returned<A: Answer> = Crash;

    #[track_caller]
    fn perform<A: Answer>(&mut self, op: Op) -> Crash {
        self.on.guest.die_in(self.on.context, op, &self.text)
    }
}

/// Takes calls that nobody waits for: see [`TestGuest::start`].
#[derive(Debug)]
#[must_use = "it does nothing until a call is made"]
pub struct Start<'g> {
    pub(super) guest: &'g mut TestGuest,
    pub(super) thread: ThreadId,
}

impl Calls for Start<'_> {
    type Returned<A: Answer> = CallResult<Started<A>>;

    #[track_caller]
    fn perform<A: Answer>(&mut self, op: Op) -> CallResult<Started<A>> {
        self.guest.start_on(self.thread, op)?;
        Ok(Started { thread: self.thread, op, answer: PhantomData })
    }
}

/// An operation that was started and whose answer, an `A`, nobody has seen.
#[must_use = "its answer comes to `join`"]
pub struct Started<A> {
    thread: ThreadId,
    op: Op,
    answer: PhantomData<fn() -> A>,
}

impl<A: Answer> Started<A> {
    /// Waits for the answer. The guest must be the one that the operation was started in.
    ///
    /// # Errors
    /// When the thread is blocked and nothing can run that would wake it, and as for a call that is
    /// waited for.
    #[track_caller]
    pub fn join(self, guest: &mut TestGuest) -> CallResult<A> {
        guest.join_on(self.thread, self.op)
    }
}

impl<A> Started<A> {
    /// The thread that performs it.
    #[must_use]
    pub fn thread(&self) -> ThreadId {
        self.thread
    }
}

impl<A> fmt::Debug for Started<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.op, self.thread)
    }
}
