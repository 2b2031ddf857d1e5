//! What is shown, or kept, of each step of a run.

use vmkern::script::{FAINT, Step, StepReport};

/// Where the output of `print` goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// To standard output, at once.
    Shown,
    /// Into the report.
    Kept,
}

/// Whether each step is shown on standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trace {
    /// It is.
    Shown,
    /// It is not.
    Off,
}

/// One line for a step.
pub fn trace(step: &Step) -> String {
    let Step { line, runner, verb, result, cycles, output: _ } = step;
    format!("{FAINT}{line:>5}{FAINT:#} {runner:<4} {verb:<20} {result}  {FAINT}({cycles} cycles){FAINT:#}\n")
}

/// Collects the steps of one run.
#[derive(Debug)]
pub struct Collector {
    output: Output,
    trace: Trace,
    /// The steps, when the output is kept.
    pub steps: Vec<StepReport>,
    /// How many there were.
    pub count: usize,
}

impl Collector {
    /// Nothing collected yet.
    pub fn new(output: Output, trace: Trace) -> Self {
        Self { output, trace, steps: Vec::new(), count: 0 }
    }

    /// Takes a step.
    pub fn take(&mut self, step: &Step) {
        self.count += 1;
        if self.trace == Trace::Shown && step.output.is_none() {
            super::eprint(&trace(step));
        }
        match self.output {
            Output::Shown => {
                if let Some(output) = &step.output {
                    super::print(&format!("{output}\n"));
                }
            }
            Output::Kept => self.steps.push(step.clone().into()),
        }
    }
}
