//! What a test has said and done, and what its guest is judged by in the end.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::panic::Location;

use vmkern_abi::control::{Op, WaitMessage};

use super::error::{CallError, Called};
use crate::guest::{Guest, ThreadId};

/// What to do about something that was found in a guest's memory.
const REMEDY: &str = "\
To look into it, save the guest before the test ends (`guest.save_dump(\"guest.dump\")`), then\n\
`vmkern check guest.dump` and `vmkern inspect guest.dump`. A test that damages its guest on\n\
purpose ends with `guest.into_unchecked()`.\n";

/// What is known of a test's guest besides its memory.
#[derive(Debug)]
pub(super) struct Watch {
    /// Where it was launched.
    launched: &'static Location<'static>,
    /// The last call, and where the test made it.
    last: Option<(Called, &'static Location<'static>)>,
    /// The last call that failed, and why.
    failed: Option<(CallError, &'static Location<'static>)>,
    /// Threads that may be blocked in the end, with what they wait for.
    blocked: BTreeMap<ThreadId, WaitMessage>,
    /// What was started and has not been joined.
    started: BTreeMap<ThreadId, Op>,
    death_expected: bool,
}

impl Watch {
    pub(super) fn new(launched: &'static Location<'static>) -> Self {
        Self {
            launched,
            last: None,
            failed: None,
            blocked: BTreeMap::new(),
            started: BTreeMap::new(),
            death_expected: false,
        }
    }

    /// A call was made at `place`.
    pub(super) fn saw(
        &mut self,
        called: Called,
        place: &'static Location<'static>,
        failed: Option<&CallError>,
    ) {
        self.last = Some((called, place));
        if let Some(error) = failed {
            self.failed = Some((error.clone(), place));
        }
    }

    /// `op` was started on `thread`.
    pub(super) fn started(&mut self, thread: ThreadId, op: Op) {
        self.started.insert(thread, op);
    }

    /// What was started on `thread`, if that is known.
    pub(super) fn operation_of(&self, thread: ThreadId) -> Option<Op> {
        self.started.get(&thread).copied()
    }

    /// The operation on `thread` has been answered.
    pub(super) fn is_over(&mut self, thread: ThreadId) {
        self.started.remove(&thread);
        self.blocked.remove(&thread);
    }

    /// `thread` may be blocked in `waits_for` in the end.
    pub(super) fn expect_blocked(&mut self, thread: ThreadId, waits_for: WaitMessage) {
        self.blocked.insert(thread, waits_for);
    }

    /// The guest is dead, as the test wanted.
    pub(super) fn expect_death(&mut self) {
        self.death_expected = true;
    }

    /// Judges the guest at the end of its test.
    ///
    /// # Errors
    /// Everything that is not in order, with what to do about it.
    pub(super) fn look_over(&self, guest: &mut Guest) -> Result<(), String> {
        // 1. What was started and never joined ends now, or is blocked. Not an answer matters but
        //    the guest's death, which the guest remembers.
        for thread in self.started.keys() {
            if guest.death().is_none() {
                let join = Op::Join { thread: thread.number() };
                let _ = guest.call(ThreadId::MAIN, join);
            }
        }
        // 2. A death.
        if let Some(death) = guest.death() {
            if self.death_expected {
                return Ok(());
            }
            let text = format!(
                "the guest is dead, and the test did not expect it:\n{death}\nMake a call that \
                 must kill the kernel through `guest.expect_panic(\"text\")`; after a panic from \
                 another cause, say `guest.expect_dead(\"text\")`.\n"
            );
            return Err(self.report(&text));
        }
        // 3. Threads that sleep, and the memory.
        let mut text = String::new();
        for (thread, waits_for) in guest.blocked() {
            if self.blocked.get(&thread) != Some(&waits_for) {
                let _ = writeln!(
                    text,
                    "{thread} is blocked in \"{waits_for}\", and the test did not expect it: wake \
                     and join it, or say `guest.expect_blocked({thread}, \"{waits_for}\")` last"
                );
            }
        }
        match guest.check() {
            Ok(report) if report.is_clean() => {}
            Ok(report) => {
                let _ = write!(text, "the check found:\n{report}{REMEDY}");
            }
            Err(error) => {
                let _ = write!(text, "the guest's memory cannot be checked: {error}\n{REMEDY}");
            }
        }
        if text.is_empty() { Ok(()) } else { Err(self.report(&text)) }
    }

    /// `found` with what is known of the way there.
    fn report(&self, found: &str) -> String {
        let launched = self.launched;
        let mut text =
            format!("the guest launched at {launched} is not in order at the end of its test\n");
        text.push_str(found);
        if let Some((call, place)) = &self.last {
            let _ = writeln!(text, "the last call: {call}, at {place}");
        }
        if let Some((error, place)) = &self.failed {
            let _ = writeln!(text, "the last call that failed, at {place}: {error}");
        }
        text
    }
}
