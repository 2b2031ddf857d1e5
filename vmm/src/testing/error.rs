//! A typed call that was not answered as its row says.

use std::error::Error;
use std::fmt;

use vmkern_abi::addr::GuestVirt;
use vmkern_abi::control::{Answer, Context, KernReturn, Op, Outcome, WaitMessage};

use crate::guest::GuestError;

/// What a typed call returns: its answer, or why there is none.
pub type CallResult<A> = Result<A, CallError>;

/// A typed call that brought no answer of its type. Its text, which a failed test prints, names the
/// operation with its arguments, where it ran, and what came instead.
#[derive(Clone)]
pub struct CallError(Box<Failed>);

#[derive(Clone)]
struct Failed {
    context: Context,
    op: Op,
    failure: CallFailure,
}

/// What came in place of a call's answer.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum CallFailure {
    /// The guest died, or did not take the request.
    Guest(GuestError),
    /// The kernel answered with an error.
    Kernel(KernReturn),
    /// A verification found a wrong word.
    Mismatch {
        /// Where.
        addr: GuestVirt,
        /// What is there.
        got: u64,
        /// What should be there.
        want: u64,
    },
    /// The thread sleeps in the operation, and nothing in the guest can run.
    Blocked(WaitMessage),
    /// An outcome of another kind than the operation's row says.
    Unexpected {
        /// What the row says.
        expected: &'static str,
        /// What came.
        outcome: Outcome,
    },
}

impl CallError {
    pub(super) fn new(context: Context, op: Op, failure: CallFailure) -> Self {
        Self(Box::new(Failed { context, op, failure }))
    }

    /// The operation.
    #[must_use]
    pub fn op(&self) -> Op {
        self.0.op
    }

    /// Where it ran.
    #[must_use]
    pub fn context(&self) -> Context {
        self.0.context
    }

    /// What came in place of the answer.
    #[must_use]
    pub fn failure(&self) -> &CallFailure {
        &self.0.failure
    }
}

/// The answer of type `A` that `outcome` is.
pub(super) fn answer<A: Answer>(context: Context, op: Op, outcome: Outcome) -> CallResult<A> {
    A::from_outcome(outcome).ok_or_else(|| {
        let failure = match outcome {
            Outcome::Error(error) => CallFailure::Kernel(error),
            Outcome::Mismatch { addr, got, want } => CallFailure::Mismatch { addr, got, want },
            Outcome::Blocked { waits_for } => CallFailure::Blocked(waits_for),
            outcome => CallFailure::Unexpected { expected: A::SAYS, outcome },
        };
        CallError::new(context, op, failure)
    })
}

/// An operation and where it runs: `kmem_alloc(kernel_map, 4096) on t0`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Called(pub(super) Context, pub(super) Op);

impl fmt::Display for Called {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(context, op) = self;
        match context {
            Context::Thread(thread) | Context::Start(thread) => write!(f, "{op} on t{thread}"),
            Context::Interrupt => write!(f, "{op} in an interrupt handler"),
            Context::Lowmem => write!(f, "{op} in a handler of vm_lowmem"),
            Context::Rest => write!(f, "{op} at rest"),
        }
    }
}

/// An outcome as a sentence about an operation ends.
pub(super) fn shown(outcome: Outcome) -> String {
    match outcome {
        Outcome::Ok => "ok".to_owned(),
        Outcome::Value(value) => format!("{value:#x}"),
        Outcome::Null => "null".to_owned(),
        Outcome::Error(error) => error.to_string(),
        Outcome::Mismatch { addr, got, want } => format!("{got:#x} at {addr}, expected {want:#x}"),
        Outcome::Blocked { waits_for } => format!("a sleep in \"{waits_for}\""),
    }
}

impl fmt::Display for CallFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Guest(error) => write!(f, "{error}"),
            Self::Kernel(error) => write!(f, "the kernel answered {error}"),
            Self::Mismatch { addr, got, want } => {
                write!(f, "found {got:#x} at {addr}, expected {want:#x}")
            }
            Self::Blocked(waits_for) => write!(
                f,
                "the thread sleeps in \"{waits_for}\", and nothing in the guest can wake it; \
                 `guest.start(thread)` starts an operation that is expected to sleep"
            ),
            Self::Unexpected { expected, outcome } => {
                write!(f, "answered {}, expected {expected}", shown(*outcome))
            }
        }
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", Called(self.0.context, self.0.op), self.0.failure)
    }
}

/// The same text: it is what a test prints that fails by `?`, `unwrap` or `expect`.
impl fmt::Debug for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Error for CallError {}

#[cfg(test)]
mod tests {
    use vmkern_abi::addr::GuestPhys;
    use vmkern_abi::control::{MallocFlags, MapId};

    use super::*;

    const MALLOC: Op = Op::KmemMalloc { map: MapId::KMEM, size: 12288, flags: MallocFlags::NOWAIT };

    fn text<A: Answer>(context: Context, outcome: Outcome) -> String {
        answer::<A>(context, MALLOC, outcome).err().map_or(String::new(), |e| format!("{e:?}"))
    }

    #[test]
    fn what_is_not_the_answer_is_told_with_operation_and_place() {
        let addr = GuestVirt::new(0xffff_ff80_0000_1000);
        let call = "kmem_malloc(kmem_map, 12288, M_NOWAIT)";
        for (context, outcome, words) in [
            (
                Context::Thread(3),
                Outcome::Error(KernReturn::InvalidArgument),
                " on t3: the kernel answered KERN_INVALID_ARGUMENT",
            ),
            (
                Context::Interrupt,
                Outcome::Mismatch { addr, got: 1, want: 0x20 },
                " in an interrupt handler: found 0x1 at 0xffffff8000001000, expected 0x20",
            ),
            (Context::Thread(0), Outcome::Ok, " on t0: answered ok, expected an address or null"),
        ] {
            assert_eq!(text::<Option<GuestVirt>>(context, outcome), format!("{call}{words}"));
        }
        let waits_for = WaitMessage::new("vmmaps");
        let told = text::<u64>(Context::Thread(1), Outcome::Blocked { waits_for });
        assert!(told.contains("sleeps in \"vmmaps\"") && told.contains("guest.start("), "{told}");
    }

    #[test]
    fn an_answer_is_of_the_type_that_the_row_names() {
        let value = Outcome::Value(0x2000);
        let on = Context::Thread(0);
        assert_eq!(answer::<u64>(on, MALLOC, value).ok(), Some(0x2000));
        let phys = answer::<Option<GuestPhys>>(on, MALLOC, value).ok();
        assert_eq!(phys, Some(Some(GuestPhys::new(0x2000))));
        assert_eq!(answer::<Option<GuestVirt>>(on, MALLOC, Outcome::Null).ok(), Some(None));
        assert_eq!(answer::<Outcome>(on, MALLOC, value).ok(), Some(value));
    }
}
