//! One guest of a shell, from its boot to its end.

use std::sync::Arc;

use vmkern::guest::LogEnd;
use vmkern::script::{
    BAD, Detail, Ending, FAINT, GuestOptions, GuestTarget, Interpreter, Judging, NotUtf8, Observer,
    Panic, Progress, STRONG, Source, Status, Step, StepResult, Stop, TooMuch, explain,
    launch_status, parse,
};
use vmkern::{Guest, LaunchError, Outcome, text};

use super::ShellArgs;
use super::input::{Input, Read};
use crate::cli::guest::GuestArgs;
use crate::cli::signals::Signals;
use crate::cli::steps::trace;
use crate::cli::{console, help};

const NAME: &str = "shell";
const PROMPT: &str = "vmkern> ";
const MORE: &str = "    ..> ";

/// Why a session is over.
pub enum Left {
    /// The shell ends.
    With(Status),
    /// A `guest` line stands before every statement, and asks for another guest.
    ForAnother {
        /// What it asks for.
        options: Box<GuestOptions>,
        /// Lines so far, that one included.
        lines: usize,
    },
}

/// What a session needs.
pub struct Session<'s> {
    pub args: &'s ShellArgs,
    pub guest: &'s GuestArgs,
    pub signals: &'s Signals,
    /// Lines that were read before it.
    pub lines: usize,
}

impl Session<'_> {
    /// Boots the guest and takes lines. The guest is gone when this returns.
    pub fn run(&self, input: &mut Input) -> Left {
        // 1. A guest.
        let stop = self.signals.stop(self.guest.timeout());
        let mut target = match self.boot(&stop) {
            Ok(target) => target,
            Err(status) => return Left::With(status),
        };
        // 2. The lines, judged leniently where somebody types.
        let mut shown = Shown { is_typed: input.is_typed(), is_verbose: self.args.verbose };
        let ended = {
            let (lets, seed) = (self.args.guest.lets(), self.guest.seed());
            let interpreter = Interpreter::new(NAME, lets, &mut target, seed, &stop, &mut shown);
            if input.is_typed() {
                let _typed = self.signals.typed();
                Talk::new(self, interpreter.judging(Judging::Lenient)).run(input)
            } else {
                Talk::new(self, interpreter).run(input)
            }
        };
        // 3. The kernel's log, and how it ended.
        let (log, LogEnd { error, dropped, .. }) = target.end();
        crate::cli::eprint(&console::complaints(error.as_ref(), dropped));
        let left = match ended {
            Ended::Left(left) => left,
            Ended::Script(ending, source) => {
                if *ending != Ending::Interrupted {
                    crate::cli::eprint(&explain(&ending, &source, &log));
                }
                Left::With(ending.status())
            }
        };
        match left {
            Left::With(Status::Ok) if error.is_some() => Left::With(Status::Unwritten),
            left => left,
        }
    }

    /// Boots the guest; what is wrong has been said when there is none.
    fn boot(&self, stop: &Arc<Stop>) -> Result<GuestTarget, Status> {
        let refused = |error: anyhow::Error| {
            crate::cli::complain(&error);
            Status::Usage
        };
        let builder = self.guest.builder().map_err(|error| refused(error.into()))?;
        let console = console::open(self.args.console.as_deref()).map_err(refused)?;
        let launched = builder.seed(self.guest.seed()).start(console);
        launched.and_then(|guest| ready(guest, stop)).map(GuestTarget::new).map_err(|error| {
            let status = launch_status(&error);
            crate::cli::complain(&error.into());
            status
        })
    }
}

/// Waits for the kernel; `stop` can end that, and later every wait.
fn ready(mut guest: Guest, stop: &Arc<Stop>) -> Result<Guest, LaunchError> {
    let handle = guest.interrupt_handle();
    stop.on_interrupt(move || handle.interrupt());
    guest.await_ready()?;
    Ok(guest)
}

/// How the lines of a session came to an end.
enum Ended {
    Left(Left),
    /// A script that came line by line has ended so.
    Script(Box<Ending>, Source),
}

/// A session on its way.
struct Talk<'t> {
    session: &'t Session<'t>,
    interpreter: Interpreter<'t>,
    /// Lines so far.
    lines: usize,
    /// Whether a statement has been given.
    has_begun: bool,
    /// Whether the last thing that was done is a Ctrl-C.
    was_interrupted: bool,
    /// Whether somebody was told that the guest is dead.
    is_mourned: bool,
    /// What the shell will end with.
    status: Status,
}

impl<'t> Talk<'t> {
    fn new(session: &'t Session<'t>, mut interpreter: Interpreter<'t>) -> Self {
        // Lines are counted from the first that was read.
        for _ in 0..session.lines {
            let _ = interpreter.line("");
        }
        Self {
            session,
            interpreter,
            lines: session.lines,
            has_begun: false,
            was_interrupted: false,
            is_mourned: false,
            status: Status::Ok,
        }
    }

    fn run(mut self, input: &mut Input) -> Ended {
        // 1. A greeting, before the first line alone.
        if input.is_typed() && self.lines == 0 {
            let about = concat!("vmkern ", env!("CARGO_PKG_VERSION"));
            say(&format!("{STRONG}{about}{STRONG:#}: `help` helps, Ctrl-D leaves\n"));
        }
        loop {
            // 2. A line, or the end of them.
            let prompt = if self.interpreter.progress() == Progress::More { MORE } else { PROMPT };
            let names = self.interpreter.names().map(str::to_owned).collect();
            let line = match input.read(prompt, names, self.session.signals) {
                Ok(Read::Line(line)) => line,
                Ok(Read::End) => return self.end(input),
                Ok(Read::Interrupted) if self.was_interrupted => {
                    return Ended::Left(Left::With(Status::Interrupted));
                }
                Ok(Read::Interrupted) => {
                    self.interpreter.forget();
                    self.was_interrupted = true;
                    say("(Ctrl-C once more leaves)\n");
                    continue;
                }
                Err(error) => {
                    crate::cli::complain(&error.context("cannot read standard input"));
                    return Ended::Left(Left::With(Status::Usage));
                }
            };
            // 3. What is read.
            self.was_interrupted = false;
            let line = line.strip_suffix(b"\n").unwrap_or(&line);
            if let Some(ended) = self.line(line, input) {
                return ended;
            }
            // 4. Whoever stops one line does not want those that were pasted with it.
            if self.was_interrupted {
                input.forget_pasted();
            }
        }
    }

    /// The lines are at their end.
    fn end(self, input: &Input) -> Ended {
        match self.session.signals.status() {
            Some(status) => Ended::Left(Left::With(status)),
            None if input.is_typed() => {
                say("\n");
                Ended::Left(Left::With(self.status))
            }
            None => {
                let source = self.interpreter.source().clone();
                Ended::Script(Box::new(self.interpreter.end()), source)
            }
        }
    }

    /// Does what `line` says. Gives how the session ends with it, if it does.
    fn line(&mut self, line: &[u8], input: &Input) -> Option<Ended> {
        // 1. Text, and commands of the shell's own.
        self.lines += 1;
        let text = match Source::from_bytes(NAME, line) {
            Ok(source) => source.line(1).to_owned(),
            Err(error) => {
                let error = NotUtf8 { line: self.lines, ..error };
                crate::cli::eprint(&format!("{BAD}error:{BAD:#} {}\n", error.at(NAME)));
                return Some(Ended::Left(Left::With(Status::Usage)));
            }
        };
        if let Some(done) = self.own(&text, input) {
            return done.map(|ended| *ended);
        }
        // 2. A statement. A line with nothing but a comment begins nothing.
        let first = text.split_whitespace().next().unwrap_or_default();
        self.has_begun |= !first.is_empty() && !first.starts_with('#');
        // A Ctrl-C that came too late for the line before is of no matter any more.
        if input.is_typed() {
            self.interpreter.forget_interrupt();
        }
        // 3. What came of it. A panic ends what can be done with the guest, but not the shell.
        let ended = match self.interpreter.line(&text) {
            Ok(_) => None,
            Err(ending) if input.is_typed() => self.failed(&ending),
            Err(ending) => Some(Ended::Script(ending, self.interpreter.source().clone())),
        };
        if let Some(panic) = self.interpreter.panic().filter(|_| input.is_typed())
            && !self.is_mourned
        {
            mourn(panic);
            self.is_mourned = true;
            self.status = Status::Panicked;
        }
        ended
    }

    /// Does what `text` says if that is a word of the shell's own, and gives how the session ends
    /// with it, if it does.
    fn own(&mut self, text: &str, input: &Input) -> Option<Option<Box<Ended>>> {
        let mut words = text.split_whitespace();
        let (first, second) = (words.next().unwrap_or_default(), words.next());
        let is_bound = second.is_some_and(|word| word.starts_with(['=', '[']));
        if self.interpreter.progress() == Progress::More || is_bound {
            return None;
        }
        let ended = match first {
            "exit" | "quit" => Some(self.leave(input)),
            "help" => {
                match second.map(|word| (word, help::of_word(word))) {
                    None => say(&help::language()),
                    Some((_, Some(text))) => say(&text),
                    Some((word, None)) => {
                        crate::cli::complain(&anyhow::anyhow!("`{word}` is not a word of it"));
                    }
                }
                // Lines are counted all the same.
                let _ = self.interpreter.line("");
                None
            }
            "guest" if !self.has_begun => self.other_guest(text, input),
            _ => return None,
        };
        Some(ended.map(Box::new))
    }

    /// Somebody who types leaves; a script has come to its end.
    fn leave(&mut self, input: &Input) -> Ended {
        if input.is_typed() {
            return Ended::Left(Left::With(self.status));
        }
        let source = self.interpreter.source().clone();
        Ended::Script(Box::new(self.interpreter.finish()), source)
    }

    /// A `guest` line before every statement.
    fn other_guest(&mut self, text: &str, input: &Input) -> Option<Ended> {
        let source = Source::new(NAME, text);
        match parse(&source) {
            Ok(script) => {
                let options = Box::new(script.guest().clone());
                Some(Ended::Left(Left::ForAnother { options, lines: self.lines }))
            }
            Err(errors) => {
                crate::cli::eprint(&vmkern::script::explain_errors(&errors, &source));
                let _ = self.interpreter.line("");
                (!input.is_typed()).then_some(Ended::Left(Left::With(Status::Usage)))
            }
        }
    }

    /// Something did not hold, and the session goes on.
    fn failed(&mut self, ending: &Ending) -> Option<Ended> {
        if let Some(status) = self.session.signals.status() {
            return Some(Ended::Left(Left::With(status)));
        }
        match ending {
            Ending::Interrupted => {
                self.interpreter.forget_interrupt();
                self.was_interrupted = true;
                say("interrupted\n");
                for (thread, state) in self.interpreter.outstanding() {
                    say(&format!("{FAINT}{thread}: {state}{FAINT:#}\n"));
                }
            }
            Ending::ExpectedPanic(_) => self.status = Status::Ok,
            Ending::Timeout(_) | Ending::Host(_) | Ending::Broken(_) | Ending::Panicked(..) => {
                self.status = ending.status();
                self.is_mourned = true;
                crate::cli::eprint(&explain(ending, self.interpreter.source(), ""));
            }
            Ending::Finished | Ending::Failed(_) | Ending::Script(_) => {
                crate::cli::eprint(&explain(ending, self.interpreter.source(), ""));
            }
        }
        None
    }
}

fn say(text: &str) {
    crate::cli::print(text);
}

/// Shows how the guest died.
fn mourn(panic: &Panic) {
    crate::cli::eprint(&format!("{BAD}the guest panicked{BAD:#}\n\n{}\n", panic.text.trim_end()));
    say("The guest stands still: `inspect`, `check` and `dump` look at it.\n");
}

/// Shows steps.
struct Shown {
    is_typed: bool,
    is_verbose: bool,
}

impl Observer for Shown {
    fn detail(&self) -> Detail {
        Detail::Brief
    }

    fn step(&mut self, step: &Step) -> Result<(), TooMuch> {
        if self.is_verbose && step.output.is_none() {
            crate::cli::eprint(&trace(step));
        }
        if let Some(output) = &step.output {
            say(&format!("{}\n", text::plain(output)));
        }
        // What was printed says that it went well.
        let is_said = step.output.is_some() && step.result == StepResult::Given(Outcome::Ok);
        if self.is_typed && !self.is_verbose && !is_said {
            let Step { result, cycles, .. } = step;
            say(&format!("{result}  {FAINT}({cycles} cycles){FAINT:#}\n"));
        }
        Ok(())
    }
}
