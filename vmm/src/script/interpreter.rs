//! Takes a script a line at a time, and runs it as it comes.
//!
//! A line goes through the parser, which holds the statements of an open `repeat` back until its
//! `end`, and what is complete is run at once. A whole script that was read before
//! ([`parse`](super::parse)) runs on the same interpreter: then every line has been checked before
//! the first statement is done.

use super::ast::Script;
use super::eval::{Run, wrong};
use super::guest_line::GuestOptions;
use super::judge::{Given, Judging};
use super::observe::Observer;
use super::outcome::Ending;
use super::parser::Parser;
use super::source::Source;
use super::stop::Stop;
use super::target::{Panic, Reply, Target};

/// Bytes of lines that are kept before those are forgotten that no report can show any more.
const KEPT: usize = 1 << 20;

/// Whether a line was enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The line has been executed.
    Done,
    /// A `repeat` is open, and nothing is done before its `end`.
    More,
}

/// Reads and runs a script.
pub struct Interpreter<'t> {
    parser: Parser,
    run: Run<'t>,
}

impl<'t> Interpreter<'t> {
    /// An interpreter for a script that comes line by line and has this name in messages. The
    /// `presets` are bound before the first line; a `let` of such a name does nothing.
    pub fn new(
        name: &str,
        presets: &[(String, u64)],
        target: &'t mut dyn Target,
        seed: u64,
        stop: &'t Stop,
        observer: &'t mut dyn Observer,
    ) -> Self {
        let parser = Parser::new(presets);
        let mut run = Run::new(Source::new(name, ""), target, seed, stop, observer);
        run.preset(parser.presets());
        Self { parser, run }
    }

    /// The same behind `lines` lines that others took: messages count from the first of them.
    #[must_use]
    pub fn behind(mut self, lines: usize) -> Self {
        self.run.source = Source::behind(self.run.source.name(), lines);
        self
    }

    /// The same for a terminal: the session continues whatever a result is, and only an `expect`
    /// fails. A thread whose wait was interrupted can be joined later.
    #[must_use]
    pub fn judging(mut self, judging: Judging) -> Self {
        self.run.judging = judging;
        self
    }

    /// Takes the next line. Its statement is done when this returns, unless a `repeat` is open. The
    /// next line judges it if that is an `expect`, and else it is judged before the next line is
    /// done. Each line has the whole time limit.
    ///
    /// # Errors
    /// How the run ends with it. After an error the interpreter still takes lines; the rest of the
    /// line that failed is dropped.
    pub fn line(&mut self, text: &str) -> Result<Progress, Box<Ending>> {
        self.restart_clock();
        if self.run.is_buried && self.progress() == Progress::Done {
            self.parser.begin_again();
        }
        if self.run.source.len() > KEPT {
            self.run.source.forget_before(self.oldest());
        }
        let number = self.run.source.push(text);
        self.parser.line(number, self.run.source.line(number)).map_err(wrong)?;
        if self.progress() == Progress::More {
            return Ok(Progress::More);
        }
        let body = self.parser.take();
        let ran = self.run.block(&body);
        self.run.loops.clear();
        ran.map(|()| Progress::Done)
    }

    /// Counts a line that is not the interpreter's to read.
    pub fn skip_line(&mut self, text: &str) {
        self.run.source.push(text);
    }

    /// The first line that a report may still show: of an open `repeat`, of the statement that is
    /// not judged yet, or of one that is not over.
    fn oldest(&self) -> usize {
        let unjudged = self.run.unjudged.as_ref().map(|done| done.what.span.line);
        let outstanding = self.run.outstanding.values().map(|one| one.what.span.line);
        let needed = outstanding.chain(unjudged).chain(self.parser.first_open());
        needed.min().unwrap_or(self.run.source.line_count() + 1)
    }

    /// Gives the rest of the script its whole time limit, as each line has it.
    pub fn restart_clock(&mut self) {
        self.run.stop.restart_clock();
        self.run.target.restart_clock();
    }

    /// Whether the target is a guest, and has died.
    #[must_use]
    pub fn is_guest_dead(&self) -> bool {
        self.run.target.guest().is_some_and(|guest| guest.death().is_some())
    }

    /// The options of a `guest` line that was taken since the last call.
    pub fn take_guest(&mut self) -> Option<GuestOptions> {
        self.parser.take_guest()
    }

    /// The guest is dead. From now on a statement that needs it to run is refused, and a `guest`
    /// line may stand again: it asks for another guest.
    pub fn bury(&mut self) {
        self.run.is_buried = true;
        self.parser.begin_again();
    }

    /// Whether a `repeat` is open.
    #[must_use]
    pub fn progress(&self) -> Progress {
        match self.parser.unclosed() {
            Some(_) => Progress::More,
            None => Progress::Done,
        }
    }

    /// Forgets the `repeat` blocks that are open, and what stands in them.
    pub fn forget(&mut self) {
        self.parser.forget();
    }

    /// Forgets an interruption that came between two lines, or ended the one before.
    pub fn forget_interrupt(&mut self) {
        self.run.stop.forget_interrupt();
        self.run.target.forget_interrupt();
    }

    /// The threads that the end of the script waits for.
    #[must_use]
    pub fn unjoined(&self) -> Vec<String> {
        self.run.unjoined().into_iter().map(|thread| thread.to_string()).collect()
    }

    /// The threads whose statements are not over, each with what is known of it.
    #[must_use]
    pub fn outstanding(&self) -> Vec<(String, String)> {
        self.run.sleepers()
    }

    /// Ends the script: its last result is judged, started threads are joined, and no thread may
    /// be blocked that was not abandoned.
    #[must_use]
    pub fn end(mut self) -> Ending {
        self.finish()
    }

    /// The same, for callers that ask about the script afterwards. No line may follow.
    #[must_use]
    pub fn finish(&mut self) -> Ending {
        if let Some(error) = self.parser.unclosed() {
            return Ending::Script(Box::new(error));
        }
        match self.run.settle(None).and_then(|()| self.run.end()) {
            Ok(()) => Ending::Finished,
            Err(ending) => *ending,
        }
    }

    /// All lines so far.
    #[must_use]
    pub fn source(&self) -> &Source {
        &self.run.source
    }

    /// The names that are bound, as `$NAME` reads them.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.parser.names()
    }

    /// How the guest died of the last statement, if it did: what an `expect panic` would judge.
    #[must_use]
    pub fn panic(&self) -> Option<&Panic> {
        match &self.run.unjudged.as_ref()?.given {
            Given::Reply(Reply::Panicked(panic)) => Some(panic),
            _ => None,
        }
    }
}

/// Runs `script` on `target`. Each finished statement is shown to `observer`.
pub fn run(
    script: &Script,
    target: &mut dyn Target,
    seed: u64,
    stop: &Stop,
    observer: &mut dyn Observer,
) -> Ending {
    let mut run = Run::new(script.source.clone(), target, seed, stop, observer);
    run.preset(&script.presets);
    let mut interpreter = Interpreter { parser: Parser::default(), run };
    match interpreter.run.block(&script.body) {
        Ok(()) => interpreter.end(),
        Err(ending) => *ending,
    }
}
