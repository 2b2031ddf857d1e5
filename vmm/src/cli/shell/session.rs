//! One guest of a shell, from its boot to its end.

use std::sync::Arc;

use vmkern::guest::LogEnd;
use vmkern::script::{
    BAD, Detail, Diagnostic, Ending, FAINT, GuestOptions, GuestTarget, Interpreter, Judging,
    NotUtf8, Observer, Panic, Progress, STRONG, Source, Status, Step, StepResult, Stop, TooMuch,
    explain, launch_status,
};
use vmkern::{Guest, LaunchError, Outcome, text};

use super::ShellArgs;
use super::input::{Draft, Input, Read};
use super::own::{self, Own, Word};
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
    /// A `guest` line asks for another guest.
    ForAnother {
        /// The options of that line.
        options: Box<GuestOptions>,
        /// Lines so far, that one included.
        lines: usize,
    },
    /// There was no guest. The reason has been printed.
    Unbooted(Status),
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
            Err(status) => return Left::Unbooted(status),
        };
        // 2. The lines, judged leniently at a terminal.
        let mut shown = Shown { is_typed: input.is_typed(), is_verbose: self.args.verbose };
        let ended = {
            let (lets, seed) = (self.args.guest.lets(), self.guest.seed());
            let interpreter = Interpreter::new(NAME, lets, &mut target, seed, &stop, &mut shown)
                .behind(self.lines);
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

    /// Boots the guest. The reason of a failure has been printed when this returns.
    fn boot(&self, stop: &Arc<Stop>) -> Result<GuestTarget, Status> {
        let refused = |error: anyhow::Error| {
            crate::cli::complain(&error);
            Status::Usage
        };
        // A quick boot could be over before the first look at the clock.
        if self.guest.timeout().is_zero() {
            refused(anyhow::anyhow!(
                "timeout must be more than 0: it limits the boot and each line"
            ));
            return Err(Status::Timeout);
        }
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
    stop.watch(&guest);
    guest.await_ready()?;
    Ok(guest)
}

/// How the lines of a session came to an end.
enum Ended {
    Left(Left),
    /// The script that the lines were has ended.
    Script(Box<Ending>, Source),
}

/// A session under way.
struct Talk<'t> {
    session: &'t Session<'t>,
    interpreter: Interpreter<'t>,
    /// Whether the last thing that happened was a Ctrl-C.
    was_interrupted: bool,
    /// Whether the shell has said that the guest is dead.
    is_mourned: bool,
    /// The status that the shell will end with.
    status: Status,
}

impl<'t> Talk<'t> {
    fn new(session: &'t Session<'t>, interpreter: Interpreter<'t>) -> Self {
        let (was_interrupted, is_mourned, status) = (false, false, Status::Ok);
        Self { session, interpreter, was_interrupted, is_mourned, status }
    }

    fn run(mut self, input: &mut Input) -> Ended {
        // 1. A greeting, before the first line alone.
        if input.is_typed() && self.session.lines == 0 {
            let about = concat!("vmkern ", env!("CARGO_PKG_VERSION"));
            say(&format!("{STRONG}{about}{STRONG:#}: `help` helps, Ctrl-D leaves\n"));
        }
        loop {
            // 2. A line, or the end of them.
            let prompt = if self.interpreter.progress() == Progress::More { MORE } else { PROMPT };
            let names = self.interpreter.names();
            let line = match input.read(prompt, names, self.session.signals) {
                Ok(Read::Line(line)) => line,
                Ok(Read::End) => return self.end(input),
                Ok(Read::Interrupted(Draft::Empty)) if self.was_interrupted => {
                    return Ended::Left(Left::With(Status::Interrupted));
                }
                Ok(Read::Interrupted(_)) => {
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
            // 3. What the line says.
            self.was_interrupted = false;
            let line = line.strip_suffix(b"\n").unwrap_or(&line);
            if let Some(ended) = self.line(line, input) {
                return ended;
            }
            // 4. A Ctrl-C that stops one line stops those that were pasted with it.
            if self.was_interrupted {
                input.forget_pasted();
            }
        }
    }

    /// There are no more lines.
    fn end(mut self, input: &Input) -> Ended {
        if let Some(status) = self.session.signals.status() {
            return Ended::Left(Left::With(status));
        }
        if input.is_typed() {
            say("\n");
        }
        self.leave(input)
    }

    /// Ends the script: what is unfinished decides the status, as at the end of `vmkern run`.
    fn leave(&mut self, input: &Input) -> Ended {
        if self.is_mourned {
            return Ended::Left(Left::With(self.status));
        }
        if input.is_typed() {
            self.interpreter.forget_interrupt();
            for thread in self.interpreter.unjoined() {
                say(&format!("{FAINT}joining {thread}; Ctrl-C stops that{FAINT:#}\n"));
            }
        }
        self.interpreter.restart_clock();
        let ending = self.interpreter.finish();
        Ended::Script(Box::new(ending), self.interpreter.source().clone())
    }

    /// The number of the line that is being read.
    fn number(&self) -> usize {
        self.interpreter.source().line_count() + 1
    }

    /// Does what `line` says, and returns how the session ends with it, if it does.
    fn line(&mut self, line: &[u8], input: &Input) -> Option<Ended> {
        // 1. Text, and words of the shell's own.
        let text = match Source::from_bytes(NAME, line) {
            Ok(source) => source.line(1).to_owned(),
            Err(error) => {
                let error = NotUtf8 { line: self.number(), ..error };
                crate::cli::eprint(&format!("{BAD}error:{BAD:#} {}\n", error.at(NAME)));
                return Some(Ended::Left(Left::With(Status::Usage)));
            }
        };
        if let Some(done) = self.own(&text, input) {
            return done.map(|ended| *ended);
        }
        // 2. A statement. A Ctrl-C that came too late for the line before does not count.
        if input.is_typed() {
            self.interpreter.forget_interrupt();
        }
        let ended = match self.interpreter.line(&text) {
            Ok(_) => None,
            Err(ending) => self.failed(ending, input),
        };
        // 3. A `guest` line.
        if let Some(options) = self.interpreter.take_guest() {
            return Some(self.for_another(options));
        }
        // 4. A guest that is dead ends neither the shell nor a look at it.
        if input.is_typed() && ended.is_none() {
            self.mourn();
        }
        ended
    }

    /// Does what `text` says if that is a word of the shell's own, and returns how the session ends
    /// with it, if it does.
    fn own(&mut self, text: &str, input: &Input) -> Option<Option<Box<Ended>>> {
        if self.interpreter.progress() == Progress::More {
            return None;
        }
        let own = own::read(self.number(), text)?;
        if own == Ok(Own::Guest) && !self.is_mourned {
            return None;
        }
        self.interpreter.skip_line(text);
        let done = own.and_then(|own| match own {
            Own::Exit => Ok(Some(self.leave(input))),
            Own::Help(word) => explain_word(word).map(|()| None),
            Own::Guest => Ok(Some(self.for_another(GuestOptions::default()))),
        });
        let ended = done
            .unwrap_or_else(|error| self.failed(Box::new(Ending::Script(Box::new(error))), input));
        Some(ended.map(Box::new))
    }

    fn for_another(&self, options: GuestOptions) -> Ended {
        let lines = self.interpreter.source().line_count();
        Ended::Left(Left::ForAnother { options: Box::new(options), lines })
    }

    /// Something did not hold: the end of a script. At a terminal the session continues.
    fn failed(&mut self, ending: Box<Ending>, input: &Input) -> Option<Ended> {
        if !input.is_typed() {
            return Some(Ended::Script(ending, self.interpreter.source().clone()));
        }
        if let Some(status) = self.session.signals.status() {
            return Some(Ended::Left(Left::With(status)));
        }
        match *ending {
            Ending::Interrupted => {
                self.interpreter.forget_interrupt();
                self.was_interrupted = true;
                say("interrupted\n");
                for (thread, state) in self.interpreter.outstanding() {
                    say(&format!("{FAINT}{thread}: {state}{FAINT:#}\n"));
                }
            }
            Ending::ExpectedPanic(_) => self.status = Status::Ok,
            _ => crate::cli::eprint(&explain(&ending, self.interpreter.source(), "")),
        }
        // Its report says how the guest died.
        if self.interpreter.is_guest_dead() && !self.is_mourned {
            self.bury(ending.status());
        }
        None
    }

    /// Says once how the guest died, if it did.
    fn mourn(&mut self) {
        if self.is_mourned || !self.interpreter.is_guest_dead() {
            return;
        }
        if let Some(Panic { text, .. }) = self.interpreter.panic() {
            crate::cli::eprint(&format!("{BAD}the guest panicked{BAD:#}\n\n{}\n", text.trim_end()));
        }
        self.bury(Status::Panicked);
    }

    /// From now on the guest can only be looked at. The shell will end with `status`.
    fn bury(&mut self, status: Status) {
        say("The guest is dead: `inspect`, `check` and `dump` look at it, `guest` starts \
             another.\n");
        self.interpreter.bury();
        (self.is_mourned, self.status) = (true, status);
    }
}

/// Explains a word of the language, or all of it.
fn explain_word(word: Option<Word<'_>>) -> Result<(), Diagnostic> {
    let Some(Word { text, span }) = word else {
        say(&help::language());
        return Ok(());
    };
    let explained = help::of_word(text).ok_or_else(|| {
        let message = format!("`{text}` is not a word of the language");
        let error = Diagnostic::new(span, message, "a verb, a keyword or a name", text);
        error.suggest(help::like(text))
    })?;
    say(&explained);
    Ok(())
}

fn say(text: &str) {
    crate::cli::print(text);
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
        // A statement that printed something needs no `ok`.
        let is_said = step.output.is_some() && step.result == StepResult::Given(Outcome::Ok);
        if self.is_typed && !self.is_verbose && !is_said {
            let Step { result, cycles, .. } = step;
            say(&format!("{result}  {FAINT}({cycles} cycles){FAINT:#}\n"));
        }
        Ok(())
    }
}
