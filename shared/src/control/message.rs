//! Requests and responses: operations and outcomes, with the tags by which they are told apart.

use super::op::Op;
use super::outcome::Outcome;

/// An operation, where it runs, and the tag with which its answer comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Request {
    /// Returned with the response.
    pub tag: u32,
    /// Where it runs.
    pub context: Context,
    /// The operation.
    pub op: Op,
}

/// Where an operation runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Context {
    /// On kernel thread 0 to 63, which is created at its first use.
    Thread(u16),
    /// On a kernel thread too, but without waiting: no answer comes until a join of the thread asks
    /// for one. In virtual time the operation begins with the next request of another kind, after
    /// those that were started before it and before that request, all on one CPU. In real time it
    /// begins at once, on any CPU.
    Start(u16),
    /// In an interrupt handler, where sleeping is forbidden.
    Interrupt,
    /// In a handler of the vm_lowmem event, once, when it next fires. The answer comes at once: ok.
    Lowmem,
    /// On no thread. The answer comes when the guest is at rest and every operation started before
    /// has begun. Only for [`Op::Nop`].
    Rest,
}

/// Threads that operations can run on.
pub const MAX_THREADS: u16 = 64;

/// The answer to the [`Request`] with the same tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Response {
    /// The request's tag.
    pub tag: u32,
    /// TSC cycles from the operation's start to its end, measured by the kernel.
    pub cycles: u64,
    /// Its outcome.
    pub outcome: Outcome,
}
