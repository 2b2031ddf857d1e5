//! Outstanding work of the guest: requests without an answer, and operations of threads that were
//! reported blocked.
//!
//! A request is in flight until it is answered. The answer `Blocked` ends the request but not the
//! operation: its thread keeps sleeping, and takes no other request until a join has returned the
//! final answer.

use std::collections::{BTreeMap, HashMap};

use vmkern_abi::control::{Context, Op, Outcome, Response, WaitMessage};

use super::error::{ContractError, RequestError};
use super::thread::ThreadId;

/// A thread whose operation was reported blocked, or started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sleeper {
    /// It has not been joined since.
    Blocked(WaitMessage),
    /// A join is in flight.
    Joined,
    /// It was started, and has not been joined since.
    Started,
}

/// What a request asks for, and on which thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// An operation.
    Run(ThreadId),
    /// An operation whose answer only a join returns.
    Start(ThreadId),
    /// The answer to the thread's operation.
    Join(ThreadId),
    /// An operation that runs on no thread.
    Elsewhere,
}

/// Requests in flight and blocked threads.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// Tags of requests without an answer, each with the thread whose operation it is about.
    in_flight: HashMap<u32, Option<ThreadId>>,
    sleepers: BTreeMap<ThreadId, Sleeper>,
    next_tag: u32,
}

impl Pending {
    /// What `op` in `context` asks for, if it may be sent now.
    pub(super) fn check(&self, context: Context, op: &Op) -> Result<Asked, RequestError> {
        let asked = match (context, *op) {
            (_, Op::Join { thread }) => Asked::Join(thread.try_into()?),
            (Context::Start(thread), _) => Asked::Start(thread.try_into()?),
            (Context::Thread(thread), _) => Asked::Run(thread.try_into()?),
            (Context::Interrupt | Context::Lowmem | Context::Rest, _) => Asked::Elsewhere,
        };
        match asked {
            Asked::Join(thread) => match self.sleepers.get(&thread) {
                Some(Sleeper::Blocked(_) | Sleeper::Started) => Ok(asked),
                Some(Sleeper::Joined) | None => Err(RequestError::NothingToJoin(thread)),
            },
            Asked::Run(thread) | Asked::Start(thread) if self.sleepers.contains_key(&thread) => {
                Err(RequestError::ThreadBlocked(thread))
            }
            Asked::Start(thread) if self.is_busy(thread) => {
                Err(RequestError::ThreadBlocked(thread))
            }
            Asked::Run(_) | Asked::Start(_) | Asked::Elsewhere => Ok(asked),
        }
    }

    /// Whether an operation of `thread` is in flight.
    fn is_busy(&self, thread: ThreadId) -> bool {
        self.in_flight.values().any(|subject| *subject == Some(thread))
    }

    /// Notes a request that will be sent, and returns its tag. A started operation has no answer of
    /// its own.
    pub(super) fn add(&mut self, asked: Asked) -> u32 {
        // A request may still be in flight when the counter wraps.
        while self.in_flight.contains_key(&self.next_tag) {
            self.next_tag = self.next_tag.wrapping_add(1);
        }
        let tag = self.next_tag;
        self.next_tag = tag.wrapping_add(1);
        let subject = match asked {
            Asked::Join(thread) => {
                self.sleepers.insert(thread, Sleeper::Joined);
                Some(thread)
            }
            Asked::Start(thread) => {
                self.sleepers.insert(thread, Sleeper::Started);
                return tag;
            }
            Asked::Run(thread) => Some(thread),
            Asked::Elsewhere => None,
        };
        self.in_flight.insert(tag, subject);
        tag
    }

    /// Notes an answer.
    pub(super) fn answered(&mut self, response: &Response) -> Result<(), ContractError> {
        let subject =
            self.in_flight.remove(&response.tag).ok_or(ContractError::Tag(response.tag))?;
        match (subject, response.outcome) {
            (Some(thread), Outcome::Blocked { waits_for }) => {
                self.sleepers.insert(thread, Sleeper::Blocked(waits_for));
            }
            (Some(thread), _) => {
                if self.sleepers.get(&thread) == Some(&Sleeper::Joined) {
                    self.sleepers.remove(&thread);
                }
            }
            (None, Outcome::Blocked { .. }) => {
                return Err(ContractError::BlockedNowhere(response.tag));
            }
            (None, _) => {}
        }
        Ok(())
    }

    /// Slots of the request ring that may be in use: requests without an answer, and started
    /// operations, which the guest may leave there.
    pub(super) fn slots(&self) -> usize {
        let started =
            self.sleepers.values().filter(|sleeper| **sleeper == Sleeper::Started).count();
        self.in_flight.len() + started
    }

    /// The number of requests without an answer.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Threads that were reported blocked and not joined since, with the wait message of that
    /// report.
    pub(super) fn blocked(&self) -> impl Iterator<Item = (ThreadId, WaitMessage)> {
        self.sleepers.iter().filter_map(|(&thread, sleeper)| match *sleeper {
            Sleeper::Blocked(waits_for) => Some((thread, waits_for)),
            Sleeper::Joined | Sleeper::Started => None,
        })
    }

    /// Whether nothing is outstanding for `thread`, as far as can be known: requests without an
    /// answer may be for any thread.
    pub(super) fn is_idle(&self, thread: ThreadId) -> bool {
        self.in_flight.is_empty() && !self.sleepers.contains_key(&thread)
    }

    /// Whether the guest may change anything by itself before the next request.
    pub(super) fn is_owed_anything(&self) -> bool {
        !self.in_flight.is_empty() || !self.sleepers.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T1: Context = Context::Thread(1);
    const JOIN: Op = Op::Join { thread: 1 };
    const THREAD: ThreadId = ThreadId::nth::<1>();

    /// Whether `op` may be sent.
    fn check(pending: &Pending, context: Context, op: &Op) -> Result<(), RequestError> {
        pending.check(context, op).map(drop)
    }

    /// Sends `op`, which may be sent.
    fn add(pending: &mut Pending, context: Context, op: &Op) -> u32 {
        let asked = pending.check(context, op).expect("it may be sent");
        pending.add(asked)
    }

    fn answer(pending: &mut Pending, tag: u32, outcome: Outcome) -> Result<(), ContractError> {
        pending.answered(&Response { tag, cycles: 0, outcome })
    }

    fn blocked(message: &str) -> Outcome {
        Outcome::Blocked { waits_for: WaitMessage::new(message) }
    }

    #[test]
    fn a_blocked_thread_takes_nothing_but_a_join_until_its_answer_has_come() {
        let mut pending = Pending::default();
        assert_eq!(check(&pending, T1, &JOIN), Err(RequestError::NothingToJoin(THREAD)));
        assert_eq!(check(&pending, T1, &Op::Nop), Ok(()));
        let tag = add(&mut pending, T1, &Op::Nop);
        assert_eq!(answer(&mut pending, tag, blocked("vmwait")), Ok(()));
        assert_eq!(pending.in_flight(), 0);
        assert!(pending.is_owed_anything());
        assert_eq!(pending.blocked().collect::<Vec<_>>(), [(THREAD, WaitMessage::new("vmwait"))]);
        assert_eq!(check(&pending, T1, &Op::Nop), Err(RequestError::ThreadBlocked(THREAD)));
        assert_eq!(check(&pending, Context::Thread(0), &Op::Nop), Ok(()));
        assert_eq!(check(&pending, Context::Interrupt, &Op::Nop), Ok(()));

        assert_eq!(check(&pending, T1, &JOIN), Ok(()));
        let tag = add(&mut pending, T1, &JOIN);
        assert_eq!(check(&pending, T1, &JOIN), Err(RequestError::NothingToJoin(THREAD)));
        assert_eq!(answer(&mut pending, tag, blocked("vmmaps")), Ok(()));
        assert_eq!(pending.blocked().collect::<Vec<_>>(), [(THREAD, WaitMessage::new("vmmaps"))]);

        let tag = add(&mut pending, T1, &JOIN);
        assert_eq!(answer(&mut pending, tag, Outcome::Ok), Ok(()));
        assert!(!pending.is_owed_anything());
        assert_eq!(check(&pending, T1, &Op::Nop), Ok(()));
    }

    #[test]
    fn an_answer_that_nobody_waits_for_breaks_the_contract() {
        let mut pending = Pending::default();
        assert_eq!(answer(&mut pending, 0, Outcome::Ok), Err(ContractError::Tag(0)));
        let tag = add(&mut pending, Context::Interrupt, &Op::Nop);
        assert_eq!(
            answer(&mut pending, tag, blocked("x")),
            Err(ContractError::BlockedNowhere(tag))
        );
        assert_eq!(check(&pending, Context::Thread(64), &Op::Nop), Err(RequestError::Thread(64)));
    }

    #[test]
    fn a_tag_in_flight_is_never_given_out_again() {
        let mut pending = Pending { next_tag: u32::MAX, ..Pending::default() };
        let first = add(&mut pending, T1, &Op::Nop);
        pending.next_tag = u32::MAX;
        assert_eq!(
            (first, add(&mut pending, T1, &Op::Nop), add(&mut pending, T1, &Op::Nop)),
            (u32::MAX, 0, 1)
        );
    }
}
