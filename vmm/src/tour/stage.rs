//! One stop: what is announced, done, and shown.

use std::fmt::Write as _;

use vmkern_abi::addr::GuestVirt;
use vmkern_abi::control::{MapId, Op, Outcome, Response};
use vmkern_abi::pte::PteFlags;

use super::window::{Window, count};
use super::{Tour, TourError, legend, wrapped};
use crate::inspect::Frame;
use crate::script::{FAINT, Runner, STRONG, Step, StepResult};
use crate::{Crash, GuestError, ThreadId};

/// Columns of a story, and of what the kernel says at its end, behind their indents.
const STORY: usize = 77;
const MESSAGE: usize = 74;

/// A stretch of a map to look at: its map, and where it begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scene(pub MapId, pub GuestVirt);

/// One stop of the tour.
pub(super) struct Stage {
    /// What is called, as C would write it.
    pub call: String,
    /// The same, as an operation.
    pub op: Op,
    /// The verb, for the report.
    pub verb: &'static str,
    /// What happens, in sentences.
    pub story: &'static str,
    /// Which map to look at, and from where.
    pub scene: Option<Scene>,
    /// The thread that does it.
    pub thread: ThreadId,
}

impl Stage {
    /// The stop at which the first thread does `op`, which C would write as `call`.
    pub fn new(call: String, op: Op, verb: &'static str, story: &'static str) -> Self {
        Self { call, op, verb, story, scene: None, thread: ThreadId::MAIN }
    }

    /// The same with a look at `scene`.
    pub fn at(self, scene: Scene) -> Self {
        Self { scene: Some(scene), ..self }
    }

    /// The same on thread `thread`.
    pub fn on(self, thread: ThreadId) -> Self {
        Self { call: format!("{thread}: {}", self.call), thread, ..self }
    }
}

impl Tour<'_> {
    /// Waits for the reader before every stop but the first, and says what the next one does.
    pub(super) fn announce(&mut self, call: &str, story: &str) -> Result<(), TourError> {
        self.stop.check()?;
        if self.number > 0 {
            (self.pause)()?;
            self.stop.check()?;
            // However long it took: the limits are for what the guest does.
            self.stop.restart_clock();
            self.guest.restart_clock();
        }
        self.number += 1;
        let mut text = format!("\n{STRONG}{:>2} {call}{STRONG:#}\n", self.number);
        for line in wrapped(story, STORY) {
            let _ = writeln!(text, "   {line}");
        }
        self.say(&text);
        Ok(())
    }

    /// Does one stop and shows it. The operation's answer comes back.
    pub(super) fn stage(&mut self, stage: &Stage) -> Result<Outcome, TourError> {
        // 1. The guest before it.
        self.announce(&stage.call, stage.story)?;
        let free_before = self.guest.meter()?.v_free_count.get();
        let before = self.look(stage)?;
        // 2. The operation.
        let response = self.guest.call(stage.thread, stage.op)?;
        self.returned(stage, &response);
        // 3. The guest after it.
        if let (Some(before), Some(after)) = (before, self.look(stage)?) {
            let free_after = self.guest.meter()?.v_free_count.get();
            let mut text = after.bar() + &after.entries() + &after.changes(&before);
            text.push_str(&self.letters(after.changed_flags(&before)));
            let _ = writeln!(
                text,
                "   free {} -> {}",
                count(free_before, "page"),
                count(free_after, "page")
            );
            self.say(&text);
        }
        Ok(response.outcome)
    }

    fn look(&self, stage: &Stage) -> Result<Option<Window>, TourError> {
        let Some(Scene(map, from)) = stage.scene else { return Ok(None) };
        Ok(Some(Window::look(self.guest, map, from)?))
    }

    /// Shows what came back, and notes the step.
    fn returned(&mut self, stage: &Stage, response: &Response) {
        let (result, cycles) = (StepResult::Given(response.outcome), response.cycles);
        let mut text =
            format!("   returned {STRONG}{result}{STRONG:#}  {FAINT}({cycles} cycles){FAINT:#}\n");
        // A thread that sleeps has no count.
        if !self.has_counted && cycles > 0 {
            self.has_counted = true;
            text.push_str(&legend::cycles(self.guest.environment().kvm));
        }
        self.say(&text);
        self.note(stage, result, cycles);
    }

    fn note(&mut self, stage: &Stage, result: StepResult, cycles: u64) {
        let runner = Runner::Thread(stage.thread);
        self.steps.push(Step { runner, cycles, ..Step::plain(self.number, stage.verb, result) });
    }

    /// The letters of `flags` that this chapter has not explained yet.
    pub(super) fn letters(&mut self, flags: PteFlags) -> String {
        let news = flags - self.explained;
        self.explained |= flags;
        legend::letters(news)
    }

    /// A stop that gives a number or an address.
    pub(super) fn value(&mut self, stage: &Stage) -> Result<u64, TourError> {
        match self.stage(stage)? {
            Outcome::Value(value) => Ok(value),
            other => Err(unexpected(stage, "a value", &StepResult::Given(other))),
        }
    }

    /// A stop that gives an address.
    pub(super) fn address(&mut self, stage: &Stage) -> Result<GuestVirt, TourError> {
        Ok(GuestVirt::new(self.value(stage)?))
    }

    /// A stop that gives nothing but a good end.
    pub(super) fn ok(&mut self, stage: &Stage) -> Result<(), TourError> {
        match self.stage(stage)? {
            Outcome::Ok => Ok(()),
            other => Err(unexpected(stage, "ok", &StepResult::Given(other))),
        }
    }

    /// A stop that gives null.
    pub(super) fn null(&mut self, stage: &Stage) -> Result<(), TourError> {
        match self.stage(stage)? {
            Outcome::Null => Ok(()),
            other => Err(unexpected(stage, "null", &StepResult::Given(other))),
        }
    }

    /// A stop at which the thread goes to sleep.
    pub(super) fn blocked(&mut self, stage: &Stage) -> Result<(), TourError> {
        match self.stage(stage)? {
            Outcome::Blocked { .. } => Ok(()),
            other => Err(unexpected(stage, "a thread that sleeps", &StepResult::Given(other))),
        }
    }

    /// The last stop: the guest must die of it.
    pub(super) fn fatal(&mut self, stage: &Stage) -> Result<Box<Crash>, TourError> {
        self.announce(&stage.call, stage.story)?;
        let crash = match self.guest.call(stage.thread, stage.op) {
            Err(GuestError::Crashed(crash)) => crash,
            Err(error) => return Err(error.into()),
            Ok(response) => {
                return Err(unexpected(stage, "a panic", &StepResult::Given(response.outcome)));
            }
        };
        let mut text = String::from("   panic\n");
        for line in wrapped(&crash.message, MESSAGE) {
            let _ = writeln!(text, "      {STRONG}{line}{STRONG:#}");
        }
        // The standard library's part of it says little.
        let ours =
            |frame: &&Frame| frame.file.as_ref().is_none_or(|file| !file.starts_with("core/"));
        for frame in crash.backtrace.iter().filter(ours).take(6) {
            let _ = writeln!(text, "      {frame}");
        }
        self.say(&text);
        self.note(stage, StepResult::Panicked(crash.message.clone()), 0);
        Ok(crash)
    }
}

pub(super) fn unexpected(stage: &Stage, expected: &'static str, got: &StepResult) -> TourError {
    TourError::Unexpected { call: stage.call.clone(), expected, got: got.to_string() }
}
