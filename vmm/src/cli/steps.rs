//! The steps of a run: shown, kept, or written as JSON.

use vmkern::script::{Detail, FAINT, Observer, RunReport, RunStream, Step, StepReport, TooMuch};
use vmkern::text;

use super::progress::Progress;

/// Where steps go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// What is printed goes to standard output, at once.
    Shown,
    /// Steps go into the object of JSON: none of them is in memory for long.
    Written,
}

/// Whether each step is shown on standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trace {
    /// It is.
    Shown,
    /// It is not.
    Off,
}

/// Bytes of JSON that wait to be written together.
const BUFFER: usize = 64 << 10;

/// One line for a step.
pub fn trace(step: &Step) -> String {
    let Step { line, runner, verb, result, cycles, .. } = step;
    format!(
        "{FAINT}{line:>5}{FAINT:#} {runner:<4} {verb:<20} {result}  {FAINT}({cycles} \
         cycles){FAINT:#}\n"
    )
}

/// Takes the steps of one run as they come.
#[derive(Debug)]
pub struct Collector {
    output: Output,
    trace: Trace,
    stream: RunStream,
    waiting: String,
    progress: Progress,
    /// How many there were.
    pub count: usize,
}

impl Collector {
    /// Nothing taken yet.
    pub fn new(output: Output, trace: Trace) -> Self {
        let (stream, waiting) = (RunStream::default(), String::new());
        Self { output, trace, stream, waiting, progress: Progress::new(trace), count: 0 }
    }

    /// The run is over: nothing of its progress is left on the terminal.
    pub fn run_ended(&self) {
        self.progress.clear();
    }

    /// Writes what is left of the object.
    pub fn end(mut self, report: &RunReport) {
        match self.stream.end(report) {
            Ok(text) => self.waiting.push_str(&text),
            Err(error) => super::complain(
                &anyhow::Error::new(error).context("cannot write the report as JSON"),
            ),
        }
        self.waiting.push('\n');
        super::print::json(&self.waiting);
    }
}

impl Observer for Collector {
    fn detail(&self) -> Detail {
        match self.output {
            Output::Shown => Detail::Brief,
            Output::Written => Detail::Full,
        }
    }

    fn step(&mut self, step: &Step) -> Result<(), TooMuch> {
        self.count += 1;
        self.progress.step(step.line, self.count);
        if self.trace == Trace::Shown && step.output.is_none() {
            super::eprint(&trace(step));
        }
        match self.output {
            Output::Shown => {
                if let Some(output) = &step.output {
                    self.progress.aside(|| super::print(&format!("{}\n", text::plain(output))));
                }
            }
            Output::Written => {
                if let Ok(text) = self.stream.step(&StepReport::from(step.clone())) {
                    self.waiting.push_str(&text);
                }
                if self.waiting.len() >= BUFFER {
                    super::print::json(&self.waiting);
                    self.waiting.clear();
                }
            }
        }
        Ok(())
    }
}

/// The output of a script of a suite, up to a bound: a script that prints without end must not take
/// the memory of the others.
#[derive(Debug, Default)]
pub struct Kept {
    text: String,
    /// Lines that were left out.
    surplus: u64,
}

impl Kept {
    /// Bytes that are kept. The line that reaches this bound is kept whole.
    const MOST: usize = 1 << 20;

    fn add(&mut self, line: &str) {
        if self.text.len() < Self::MOST {
            self.text.push_str(line);
            self.text.push('\n');
        } else {
            self.surplus += 1;
        }
    }

    /// The kept text, with a line on what is missing.
    pub fn text(mut self) -> String {
        if self.surplus > 0 {
            self.text.push_str(&format!("[{} more lines were printed]\n", self.surplus));
        }
        self.text
    }
}

/// Bytes that `vmkern test --json` keeps of a script's steps.
const KEPT_STEPS: usize = 16 << 20;

/// Keeps what one script of a suite prints, and its steps, up to a bound.
#[derive(Debug, Default)]
pub struct Keeper {
    /// Whether steps are kept.
    detail: Detail,
    /// The printed text, a line for each step that printed anything.
    pub text: Kept,
    /// The steps.
    pub steps: Vec<StepReport>,
    bytes: usize,
}

impl Keeper {
    /// Nothing kept yet.
    pub fn new(detail: Detail) -> Self {
        Self { detail, ..Self::default() }
    }
}

impl Observer for Keeper {
    fn detail(&self) -> Detail {
        self.detail
    }

    fn step(&mut self, step: &Step) -> Result<(), TooMuch> {
        if let Some(output) = &step.output {
            self.text.add(output);
        }
        if self.detail == Detail::Full {
            let report = StepReport::from(step.clone());
            self.bytes += report.weight();
            if self.bytes > KEPT_STEPS {
                let message = format!(
                    "more steps than the {} MiB that `vmkern test --json` keeps",
                    KEPT_STEPS >> 20
                );
                return Err(TooMuch {
                    message,
                    expected: "fewer, or `vmkern run --json`, which keeps none".to_owned(),
                });
            }
            self.steps.push(report);
        }
        Ok(())
    }
}
