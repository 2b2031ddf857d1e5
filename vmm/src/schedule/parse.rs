//! Reading schedules.
//!
//! Every value is looked at with its place in the file, so a message names the line, the key, and
//! what would be right.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::ScheduleError;
use super::model::{Base, Keep, Kind, Schedule, Step, Target};
use crate::guest::Pages;
use crate::spelling::closest;

/// Most bytes of a schedule.
const LENGTH_MAX: usize = 1 << 20;
/// Most steps.
const STEPS_MAX: usize = 10_000;

/// Keys at the top.
const TOP: [&str; 2] = ["step", "keep"];
/// Keys of a step.
const STEP: [&str; 9] =
    ["kind", "at", "after", "target", "leave", "ramp", "hold", "repeat", "pause"];
/// Keys of the closed loop.
const KEEP: [&str; 2] = ["free", "kind"];

type Value<'i> = Spanned<DeValue<'i>>;

/// A file that is being read.
struct File<'a> {
    name: &'a str,
    text: &'a str,
}

impl Schedule {
    /// Reads the schedule `text`, which came from a file of this name.
    ///
    /// # Errors
    /// The first mistake.
    pub fn parse(name: &str, text: &str) -> Result<Self, ScheduleError> {
        let file = File { name, text };
        if text.len() > LENGTH_MAX {
            return Err(file.error(0..0, format!("it is longer than {LENGTH_MAX} bytes"), None));
        }
        // 1. The TOML.
        let parsed = DeTable::parse(text).map_err(|error| {
            let span = error.span().unwrap_or(0..0);
            file.error(span, format!("this is not TOML: {}", error.message()), None)
        })?;
        let top = parsed.get_ref();
        file.known_keys(top, &TOP, "a schedule")?;
        // 2. The steps and the loop.
        let steps = top.get("step").map(|steps| file.steps(steps)).transpose()?;
        let (base, steps) = steps.unwrap_or((Base::Operations, Vec::new()));
        let keep = top.get("keep").map(|keep| file.keep(keep)).transpose()?;
        if steps.is_empty() && keep.is_none() {
            let help = "expected `[[step]]` or `[keep]`".to_owned();
            return Err(file.error(0..0, "the schedule does nothing".to_owned(), Some(help)));
        }
        let schedule = Self { base, steps, keep };
        let squeezes = |kind: Kind| kind == Kind::Squeeze;
        if keep.is_some_and(|keep| squeezes(keep.kind))
            && schedule.steps.iter().any(|step| squeezes(step.kind))
        {
            let span = top.get("keep").map_or(0..0, Spanned::span);
            let problem = "`keep` and a step both squeeze".to_owned();
            let help = "there is one balloon: one of them can seize".to_owned();
            return Err(file.error(span, problem, Some(help)));
        }
        Ok(schedule)
    }
}

impl File<'_> {
    fn error(&self, span: Range<usize>, problem: String, help: Option<String>) -> ScheduleError {
        let before = self.text.as_bytes().get(..span.start).unwrap_or_default();
        let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
        ScheduleError { file: self.name.to_owned(), line, problem, help }
    }

    /// An error about the value of `key`.
    fn wrong(&self, key: &str, value: &Value<'_>, expected: &str) -> ScheduleError {
        let got = match value.get_ref() {
            DeValue::String(text) => format!("{text:?}"),
            DeValue::Integer(number) => number.as_str().to_owned(),
            other => format!("a {}", other.type_str()),
        };
        let help = format!("expected {expected}");
        self.error(value.span(), format!("`{key}` is {got}"), Some(help))
    }

    fn known_keys(
        &self,
        table: &DeTable<'_>,
        known: &[&str],
        what: &str,
    ) -> Result<(), ScheduleError> {
        let Some(key) = table.keys().find(|key| !known.contains(&key.get_ref().as_ref())) else {
            return Ok(());
        };
        let word = key.get_ref().as_ref();
        let help = match closest(word, known.iter().copied()) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => format!("{what} has {}", known.join(" ")),
        };
        Err(self.error(key.span(), format!("unknown key `{word}`"), Some(help)))
    }

    /// The steps, which must have one base and follow each other.
    fn steps(&self, value: &Value<'_>) -> Result<(Base, Vec<Step>), ScheduleError> {
        let array = value.get_ref().as_array();
        let Some(array) = array else { return Err(self.wrong("step", value, "`[[step]]`")) };
        if array.len() > STEPS_MAX {
            let problem = format!("there are {} steps, at most {STEPS_MAX}", array.len());
            return Err(self.error(value.span(), problem, None));
        }
        let mut steps: Vec<Step> = Vec::new();
        let mut base = None;
        for (number, value) in (1..).zip(array.iter()) {
            let (own, step) = self.step(value)?;
            if *base.get_or_insert(own) != own {
                let help = "all steps have `at`, or all have `after`".to_owned();
                let problem = format!("step {number} counts in another unit than the first");
                return Err(self.error(value.span(), problem, Some(help)));
            }
            self.follows(number, value, &steps, &step, own)?;
            steps.push(step);
        }
        Ok((base.unwrap_or(Base::Operations), steps))
    }

    /// Checks that `step` begins after the steps before it, and after the end of the last of its
    /// kind.
    fn follows(
        &self,
        number: usize,
        value: &Value<'_>,
        before: &[Step],
        step: &Step,
        base: Base,
    ) -> Result<(), ScheduleError> {
        let show = |n: u64| match base {
            Base::Time => format!("{n} us"),
            Base::Operations => format!("operation {n}"),
        };
        let Some(last) = before.last() else { return Ok(()) };
        let order = |problem| {
            let help = "steps stand in the order in which they begin, and do not overlap";
            Err(self.error(value.span(), problem, Some(help.to_owned())))
        };
        if step.start < last.start {
            let (own, other) = (show(step.start), show(last.start));
            return order(format!("step {number} begins at {own}, before the last, at {other}"));
        }
        let same = before.iter().rev().find(|other| other.kind == step.kind);
        match same.and_then(Step::end) {
            Some(end) if step.start < end => {
                let (own, end) = (show(step.start), show(end));
                order(format!("step {number} begins at {own}, before the last one ends, at {end}"))
            }
            _ => Ok(()),
        }
    }

    fn step(&self, value: &Value<'_>) -> Result<(Base, Step), ScheduleError> {
        let Some(table) = value.get_ref().as_table() else {
            return Err(self.wrong("step", value, "`[[step]]`"));
        };
        self.known_keys(table, &STEP, "a step")?;
        let missing = |what: &str| {
            self.error(value.span(), "the step is incomplete".to_owned(), Some(what.to_owned()))
        };
        let both = |one: &str, other: &str| {
            let help = "expected one of the two".to_owned();
            self.error(value.span(), format!("the step has `{one}` and `{other}`"), Some(help))
        };
        // 1. When.
        let (base, start) = match (table.get("at"), table.get("after")) {
            (Some(_), Some(_)) => return Err(both("at", "after")),
            (Some(at), None) => (Base::Time, self.amount("at", at, Base::Time)?),
            (None, Some(after)) => {
                (Base::Operations, self.amount("after", after, Base::Operations)?)
            }
            (None, None) => return Err(missing("expected `at = TIME` or `after = OPERATIONS`")),
        };
        // 2. How, and how much.
        let kind = self.kind(table.get("kind"))?;
        let target = match (table.get("target"), table.get("leave")) {
            (Some(_), Some(_)) => return Err(both("target", "leave")),
            (Some(size), None) => Target::Hold(self.pages("target", size)?),
            (None, Some(size)) if kind == Kind::Seize => Target::Leave(self.pages("leave", size)?),
            (None, Some(size)) => return Err(self.wrong("leave", size, "`target` with `squeeze`")),
            (None, None) => return Err(missing("expected `target = SIZE` or `leave = SIZE`")),
        };
        // 3. For how long.
        let span = |key: &str| table.get(key).map(|span| self.amount(key, span, base)).transpose();
        let (ramp, hold) = (span("ramp")?.unwrap_or(0), span("hold")?);
        let (repeat, pause) = (self.repeat(table.get("repeat"))?, span("pause")?.unwrap_or(0));
        if hold.is_none() && repeat > 1 {
            return Err(missing("a step with `repeat` needs `hold`"));
        }
        Ok((base, Step { start, kind, target, ramp, hold, repeat, pause }))
    }

    fn repeat(&self, value: Option<&Value<'_>>) -> Result<u64, ScheduleError> {
        let Some(value) = value else { return Ok(1) };
        let number = integer(value).filter(|&number| number > 0);
        number.ok_or_else(|| self.wrong("repeat", value, "a number, at least 1"))
    }

    fn keep(&self, value: &Value<'_>) -> Result<Keep, ScheduleError> {
        let Some(table) = value.get_ref().as_table() else {
            return Err(self.wrong("keep", value, "`[keep]`"));
        };
        self.known_keys(table, &KEEP, "`keep`")?;
        let expected = "two sizes: `free = [LOW, HIGH]`";
        let Some(free) = table.get("free") else {
            let problem = "`keep` is incomplete".to_owned();
            return Err(self.error(value.span(), problem, Some(format!("expected {expected}"))));
        };
        let bounds = free.get_ref().as_array().map(|array| array.iter().collect::<Vec<_>>());
        let Some([low, high]) = bounds.as_deref() else {
            return Err(self.wrong("free", free, expected));
        };
        let (low, high) = (self.pages("free", low)?, self.pages("free", high)?);
        if low > high {
            let problem = format!("`free` begins with {low} and ends with {high}");
            return Err(self.error(free.span(), problem, Some("LOW is not above HIGH".to_owned())));
        }
        Ok(Keep { low, high, kind: self.kind(table.get("kind"))? })
    }

    fn kind(&self, value: Option<&Value<'_>>) -> Result<Kind, ScheduleError> {
        let Some(value) = value else { return Ok(Kind::Seize) };
        let word = value.get_ref().as_str().unwrap_or_default();
        let kind = Kind::ALL.into_iter().find(|kind| kind.name() == word);
        kind.ok_or_else(|| self.wrong("kind", value, "\"seize\" or \"squeeze\""))
    }

    /// A size: a string with a unit of bytes, or a number of pages.
    fn pages(&self, key: &str, value: &Value<'_>) -> Result<Pages, ScheduleError> {
        let pages = match value.get_ref() {
            DeValue::String(text) => amount(text, &SIZES).map(Pages::holding),
            DeValue::Integer(_) => integer(value).map(Pages),
            _ => None,
        };
        let expected = "a size in quotes, such as \"16M\" (K M G T), or a number of pages";
        pages.ok_or_else(|| self.wrong(key, value, expected))
    }

    /// A time or a number of operations, as the step's base says.
    fn amount(&self, key: &str, value: &Value<'_>, base: Base) -> Result<u64, ScheduleError> {
        match base {
            Base::Operations => integer(value).ok_or_else(|| {
                self.wrong(key, value, "a number of operations, as the step begins with `after`")
            }),
            Base::Time => {
                let micros = value.get_ref().as_str().and_then(|text| amount(text, &TIMES));
                let expected = "a time in quotes, such as \"250ms\" (us ms s), as the step begins \
                                with `at`";
                micros.ok_or_else(|| self.wrong(key, value, expected))
            }
        }
    }
}

/// Units of sizes, in bytes.
const SIZES: [(&str, u64); 4] = [("K", 1 << 10), ("M", 1 << 20), ("G", 1 << 30), ("T", 1 << 40)];
/// Units of times, in microseconds; the longer suffix first.
const TIMES: [(&str, u64); 3] = [("us", 1), ("ms", 1000), ("s", 1_000_000)];

/// A decimal number with one of `units`.
fn amount(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (digits, unit) =
        units.iter().find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, *unit)))?;
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse::<u64>().ok().filter(|_| is_number)?.checked_mul(unit)
}

/// A number that is not negative.
fn integer(value: &Value<'_>) -> Option<u64> {
    let number = value.get_ref().as_integer()?;
    u64::from_str_radix(number.as_str(), number.radix()).ok()
}
