//! Scripts that say what comes of each statement, and hold: in virtual time on one CPU a run is
//! repeatable, so what one run gave, the next must give.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use crate::run::{Ran, run};

/// Runs after which what is left of a script is cut off.
const ROUNDS: usize = 10;

/// A line with what is known of it.
#[derive(Clone, Default)]
struct Line {
    text: String,
    /// Without it no run gets any further.
    is_out: bool,
    expect: Option<String>,
}

/// A script that is being learnt.
struct Known {
    lines: Vec<Line>,
    /// Threads that stay blocked.
    abandoned: Vec<String>,
}

/// What came of a script that was learnt.
pub struct Learnt {
    pub status: i32,
    /// Expectations in it.
    pub expects: usize,
}

impl Known {
    fn new(lines: Vec<String>) -> Self {
        // What it expects by chance says nothing.
        let lines = lines.into_iter().filter(|text| !text.starts_with("expect "));
        let lines = lines.map(|text| Line { text, ..Line::default() });
        Self { lines: lines.collect(), abandoned: Vec::new() }
    }

    /// The text, and the index of the line that each line of it came from.
    fn text(&self) -> (String, Vec<usize>) {
        let (mut text, mut from) = (String::new(), Vec::new());
        for (index, line) in self.lines.iter().enumerate().filter(|(_, line)| !line.is_out) {
            let _ = writeln!(text, "{}", line.text);
            from.push(index);
            if let Some(expect) = &line.expect {
                let _ = writeln!(text, "expect {expect}");
                from.push(index);
            }
        }
        for thread in &self.abandoned {
            let _ = writeln!(text, "abandon {thread}");
        }
        (text, from)
    }

    /// First and last line of the outermost block around the line `index`, or it alone.
    fn block(&self, index: usize) -> (usize, usize) {
        let (mut depth, mut start) = (0_usize, 0);
        for (at, line) in self.lines.iter().enumerate().filter(|(_, line)| !line.is_out) {
            let word = line.text.split_whitespace().next().unwrap_or_default();
            if word == "repeat" {
                start = if depth == 0 { at } else { start };
                depth += 1;
            } else if word == "end" {
                depth = depth.saturating_sub(1);
                if depth == 0 && start <= index && index <= at {
                    return (start, at);
                }
            }
        }
        (index, index)
    }

    /// Takes the line out, and all that was known of what comes after it; of a loop all of it.
    fn take_out(&mut self, index: usize) {
        let (start, end) = self.block(index);
        self.lines[start..=end].iter_mut().for_each(|line| line.is_out = true);
        self.lines[start..].iter_mut().for_each(|line| line.expect = None);
        self.abandoned.clear();
    }

    /// Cuts off the line and all behind it.
    fn cut(&mut self, index: usize) {
        let (start, _) = self.block(index);
        self.lines.truncate(start);
        self.abandoned.clear();
    }

    /// Learns from a run that did not hold. Returns whether there was anything to learn.
    fn learn(&mut self, ran: &Ran, from: &[usize], has_patience: bool) -> bool {
        let line_of = |value: &Value| Some(*from.get(index(&value["line"])?.checked_sub(1)?)?);
        let failures = ran.list("failures");
        let Some(failure) = failures.first() else { return false };
        let sleepers = sleepers(failure["got"].as_str().unwrap_or_default());
        if !sleepers.is_empty() {
            self.abandoned.extend(sleepers);
            return true;
        }
        let last = ran.list("steps").last().filter(|step| step["verb"] != "print");
        let outcome = last.and_then(|step| Some((line_of(step)?, expectation(&step["result"])?)));
        match (outcome, line_of(failure)) {
            (Some((line, expect)), Some(failed))
                if (line == failed || ran.status == 3)
                    && has_patience
                    && self.block(line) == (line, line)
                    && self.lines[line].expect.is_none() =>
            {
                self.lines[line].expect = Some(expect);
                true
            }
            (_, Some(failed)) if has_patience && ran.status == 2 => {
                let lines: Vec<usize> = failures.iter().filter_map(line_of).collect();
                self.take_out(failed);
                lines.into_iter().for_each(|line| self.take_out(line));
                true
            }
            (_, Some(failed)) if has_patience && ran.status == 1 => {
                self.take_out(failed);
                true
            }
            (_, Some(failed)) if ran.status != 5 => {
                self.cut(failed);
                true
            }
            _ => false,
        }
    }

    /// Says of each statement what it gave, where that is always the same. Returns how many
    /// expectations there are.
    fn expect_all(&mut self, ran: &Ran, from: &[usize]) -> usize {
        let mut outcomes: BTreeMap<usize, Option<String>> = BTreeMap::new();
        for step in ran.list("steps") {
            let is_mute = step["verb"] == "print" || step["verb"] == "start";
            let line = index(&step["line"]).and_then(|line| from.get(line - 1));
            if let Some(&line) = line.filter(|_| !is_mute) {
                let expect = expectation(&step["result"]);
                let known = outcomes.entry(line).or_insert_with(|| expect.clone());
                if *known != expect {
                    *known = None;
                }
            }
        }
        for (line, expect) in outcomes {
            let judges = |line: &Line| !line.text.contains("check") && line.expect.is_none();
            if judges(&self.lines[line]) {
                self.lines[line].expect = expect;
            }
        }
        self.lines.iter().filter(|line| line.expect.is_some() && !line.is_out).count()
    }
}

fn index(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|number| usize::try_from(number).ok())
}

/// The threads that a report says are still blocked at the end.
fn sleepers(got: &str) -> Vec<String> {
    if !got.contains(" still waits for ") {
        return Vec::new();
    }
    got.split(", ").filter_map(|one| one.split(' ').next()).map(str::to_owned).collect()
}

/// What `expect` calls a result, if it has a word for it.
fn expectation(result: &Value) -> Option<String> {
    let value = result["value"].as_str();
    Some(match result["kind"].as_str()? {
        "value" => value?.to_owned(),
        "error" => format!("error {}", value.filter(|name| name.starts_with("KERN_"))?),
        "panic" => {
            let message = value?.lines().next().unwrap_or_default();
            let message = alike(message);
            let message = message.split(ABSENT).next().unwrap_or_default();
            format!("panic \"{}\"", message.replace('\\', "\\\\").replace('"', "\\\""))
        }
        word => word.to_owned(),
    })
}

/// How a page fault says that nothing is at an address.
const ABSENT: &str = "(not present)";

/// A message, but for why nothing is at an address: some KVMs find a reserved bit set where there
/// is no entry.
fn alike(text: &str) -> String {
    text.replace("(reserved bit set)", ABSENT)
}

/// What is the same each time that a step is done.
fn same_of_step(step: &Value) -> Value {
    let Value::Object(mut fields) = step.clone() else { return Value::Null };
    // Time of the host's processor, and the place in the text.
    fields.retain(|name, _| name != "cycles" && name != "line");
    // Where the CPU is, which looks for work until it halts, and how often it has looked.
    if [json!(["cpus"]), json!(["threads"]), json!(["locks"])].contains(&step["arguments"]) {
        fields.remove("output");
    }
    if let Some(Value::String(output)) = fields.get_mut("output") {
        // Whether a CPU has halted already.
        *output = output.lines().filter(|line| !line.starts_with("cpus ")).collect();
    }
    if let Some(Value::String(value)) = fields.get_mut("result").map(|result| &mut result["value"])
    {
        *value = alike(value);
    }
    Value::Object(fields)
}

/// Everything that two runs of a script have in common.
fn repeated(ran: &Ran) -> Vec<Value> {
    let panic = ran.get("panic");
    let message = panic["message"].as_str().map(alike);
    let steps = ran.list("steps").iter().map(same_of_step);
    let end = [json!([message, panic["thread"], panic["cpu"]]), ran.get("stats").clone()];
    steps.chain(end).collect()
}

/// The first thing that is different.
fn difference(first: &Ran, second: &Ran) -> Option<String> {
    let (first, second) = (repeated(first), repeated(second));
    let mut changed =
        first.iter().zip(&second).enumerate().filter(|(_, (one, other))| one != other);
    if let Some((step, (one, other))) = changed.next() {
        return Some(format!("step {step} gives {one}, and then {other}"));
    }
    (first.len() != second.len())
        .then(|| format!("{} steps, and then {}", first.len(), second.len()))
}

/// Runs the script until it holds, each time with what the run before has shown. Nothing where it
/// never does, for a time limit for instance.
fn learn(
    dir: &Path,
    args: &[String],
    lines: Vec<String>,
) -> Result<Result<(Known, Ran), Ran>, String> {
    let mut known = Known::new(lines);
    for round in 0..4 * ROUNDS {
        let (text, from) = known.text();
        let ran = run(dir, args, text.as_bytes()).map_err(|why| blame(&why, &text))?;
        if ran.status == 0 {
            return Ok(Ok((known, ran)));
        }
        if !known.learn(&ran, &from, round < ROUNDS) {
            return Ok(Err(ran));
        }
    }
    Err(blame("it cannot be learnt", &known.text().0))
}

/// A fault together with the text that it was seen with.
pub fn blame(why: &str, text: &str) -> String {
    format!("{why}\n--- run as\n{text}")
}

/// What is left of a script when every statement gives what it must, or is expected to fail.
pub fn enduring(dir: &Path, args: &[String], lines: &[String]) -> Result<String, String> {
    let learnt = learn(dir, args, lines.to_vec())?;
    Ok(learnt.map_or_else(|_| lines.join("\n"), |(known, _)| known.text().0))
}

/// Makes a script hold, says of every statement what it gave, and runs that.
pub fn twice(dir: &Path, args: &[String], lines: Vec<String>) -> Result<Learnt, String> {
    let (mut known, ran) = match learn(dir, args, lines)? {
        Ok(learnt) => learnt,
        Err(ran) => return Ok(Learnt { status: ran.status, expects: 0 }),
    };
    let (_, from) = known.text();
    let expects = known.expect_all(&ran, &from);
    let (text, _) = known.text();
    let again = run(dir, args, text.as_bytes()).map_err(|why| blame(&why, &text))?;
    match difference(&ran, &again) {
        _ if again.status != 0 => {
            Err(blame(&format!("it does not hold again: {}", again.get("failures")), &text))
        }
        Some(difference) => Err(blame(&difference, &text)),
        None => Ok(Learnt { status: 0, expects }),
    }
}
