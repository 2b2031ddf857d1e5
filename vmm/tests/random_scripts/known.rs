//! Scripts with the expected result of each statement: in virtual time on one CPU a run is
//! repeatable, so a second run must have the results of the first.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use crate::run::{Ran, run};

/// Runs after which the rest of a script is cut off.
const ROUNDS: usize = 10;

/// A line, with what is known about it.
#[derive(Clone, Default)]
struct Line {
    text: String,
    /// Left out, because no run gets past it.
    is_out: bool,
    expect: Option<String>,
}

/// A script whose results are being learnt.
struct Known {
    lines: Vec<Line>,
    /// Threads that stay blocked.
    abandoned: Vec<String>,
}

/// The result of learning a script.
pub struct Learnt {
    pub status: i32,
    /// The number of its expectations.
    pub expects: usize,
}

impl Known {
    fn new(lines: Vec<String>) -> Self {
        // Its own random expectations are of no use.
        let lines = lines.into_iter().filter(|text| !text.starts_with("expect "));
        let lines = lines.map(|text| Line { text, ..Line::default() });
        Self { lines: lines.collect(), abandoned: Vec::new() }
    }

    /// The text, and for each of its lines the index of the original line.
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

    /// First and last line of the outermost block around line `index`, or just that line.
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

    /// Takes out the line, or its whole loop, and forgets what was known about later lines.
    fn take_out(&mut self, index: usize) {
        let (start, end) = self.block(index);
        self.lines[start..=end].iter_mut().for_each(|line| line.is_out = true);
        self.lines[start..].iter_mut().for_each(|line| line.expect = None);
        self.abandoned.clear();
    }

    /// Cuts off the line and everything after it.
    fn cut(&mut self, index: usize) {
        let (start, _) = self.block(index);
        self.lines.truncate(start);
        self.abandoned.clear();
    }

    /// Learns from a run that failed. Returns whether there was anything to learn.
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

    /// Adds the expected result to each statement whose result is always the same. Returns the
    /// number of expectations.
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

/// The threads that are still blocked at the end, according to a report.
fn sleepers(got: &str) -> Vec<String> {
    if !got.contains(" still waits for ") {
        return Vec::new();
    }
    got.split(", ").filter_map(|one| one.split(' ').next()).map(str::to_owned).collect()
}

/// The operand of `expect` for a result, if there is one.
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

/// The words of a page fault for an address without a mapping.
const ABSENT: &str = "(not present)";

/// A message without the reason for a missing mapping: some KVMs report a reserved bit where there
/// is no entry.
fn alike(text: &str) -> String {
    text.replace("(reserved bit set)", ABSENT)
}

/// The part of a step that is the same in each run.
fn same_of_step(step: &Value) -> Value {
    let Value::Object(mut fields) = step.clone() else { return Value::Null };
    // Time of the host's processor, and the line number.
    fields.retain(|name, _| name != "cycles" && name != "line");
    // The CPU polls for work until it halts: its position and its number of polls vary.
    if [json!(["cpus"]), json!(["threads"]), json!(["locks"])].contains(&step["arguments"]) {
        fields.remove("output");
    }
    if let Some(Value::String(output)) = fields.get_mut("output") {
        // Whether a CPU has halted already varies, too.
        *output = output.lines().filter(|line| !line.starts_with("cpus ")).collect();
    }
    if let Some(Value::String(value)) = fields.get_mut("result").map(|result| &mut result["value"])
    {
        *value = alike(value);
    }
    Value::Object(fields)
}

/// Everything that two runs of a script must have in common.
fn repeated(ran: &Ran) -> Vec<Value> {
    let panic = ran.get("panic");
    let message = panic["message"].as_str().map(alike);
    let steps = ran.list("steps").iter().map(same_of_step);
    let end = [json!([message, panic["thread"], panic["cpu"]]), ran.get("stats").clone()];
    steps.chain(end).collect()
}

/// The first difference.
fn difference(first: &Ran, second: &Ran) -> Option<String> {
    let (first, second) = (repeated(first), repeated(second));
    let mut changed =
        first.iter().zip(&second).enumerate().filter(|(_, (one, other))| one != other);
    if let Some((step, (one, other))) = changed.next() {
        return Some(format!("step {step} returns {one}, and then {other}"));
    }
    (first.len() != second.len())
        .then(|| format!("{} steps, and then {}", first.len(), second.len()))
}

/// Runs the script until it succeeds, each time with what the previous run has shown. `None` if it
/// never does, for example because of a time limit.
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

/// A fault, together with the script's text.
pub fn blame(why: &str, text: &str) -> String {
    format!("{why}\n--- run as\n{text}")
}

/// The rest of a script in which every statement succeeds or is expected to fail.
pub fn enduring(dir: &Path, args: &[String], lines: &[String]) -> Result<String, String> {
    let learnt = learn(dir, args, lines.to_vec())?;
    Ok(learnt.map_or_else(|_| lines.join("\n"), |(known, _)| known.text().0))
}

/// Makes a script succeed, adds the expected result to every statement, and runs that.
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
