//! Programmes as text, in the grammar of `fail(9)`: `[N%][M*]action[(argument)][->...]`.
//!
//! Numbers are decimal, or hexadecimal with `0x`; a probability is a decimal fraction above 0 and
//! at most 100, with at most four places. Of several probabilities or counts of one term the last
//! one holds. There are no blanks inside.

use core::fmt;

use super::site::Returns;
use super::{CHANCE_MAX, FailAction, FailPoint, FailSite, TERMS_MAX, UNLIMITED};

/// Longest delay in microseconds: the CPU does nothing else.
const DELAY_MAX: u64 = 10_000_000;
/// Longest sleep in milliseconds: a day.
const SLEEP_MAX: u64 = 24 * 60 * 60 * 1000;
/// Places of a probability after the point.
const PLACES: usize = 4;

/// A term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Term {
    /// What is executed.
    pub action: FailAction,
    /// Its argument: milliseconds, microseconds, or the value returned.
    pub argument: u64,
    /// The probability in millionths.
    pub chance: u32,
    /// How often it is executed, if there is a limit.
    pub count: Option<u64>,
}

impl Term {
    /// `off`.
    pub const OFF: Self =
        Self { action: FailAction::Off, argument: 0, chance: CHANCE_MAX, count: None };
}

/// A programme for a site: 1 to [`TERMS_MAX`] terms that the site takes.
#[derive(Clone, Copy, Debug)]
pub struct FailSpec {
    terms: [Term; TERMS_MAX],
    length: usize,
}

/// The rule that a text breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecRule {
    /// An action is expected.
    Action,
    /// A number has no digits, or too many.
    Number,
    /// A probability is not above 0, not at most 100, or has too many places.
    Probability,
    /// A count is 0.
    Count,
    /// The argument's parenthesis is not closed.
    Parenthesis,
    /// Something other than `->` follows a term.
    Arrow,
    /// There are more than [`TERMS_MAX`] terms.
    Length,
    /// The site does not take the action.
    Refused(FailSite, FailAction),
    /// The function has no such value.
    Value(FailSite),
    /// The time is too long.
    Time(u64),
}

/// A text that is not a programme for its site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpecError {
    /// The byte of the text at which the rule is broken.
    pub at: usize,
    /// The rule.
    pub rule: SpecRule,
}

impl FailSpec {
    /// The programme that disarms a site.
    pub const OFF: Self = Self::one(Term::OFF);

    /// The programme that executes `term` only.
    #[must_use]
    pub const fn one(term: Term) -> Self {
        Self { terms: [term; TERMS_MAX], length: 1 }
    }

    /// The programme that executes `first` as long as its count lasts, and then `second`.
    #[must_use]
    pub const fn two(first: Term, second: Term) -> Self {
        let mut terms = [first; TERMS_MAX];
        terms[1] = second;
        Self { terms, length: 2 }
    }

    /// The programme that fails hit number `nth` of `site`, counted from 1, and no other, with the
    /// value that the function fails with by default; `None` if it cannot fail, or `nth` is 0.
    #[must_use]
    pub fn nth(site: FailSite, nth: u64) -> Option<Self> {
        let argument = site.returns().value(None)?;
        let once =
            Term { action: FailAction::Return, argument, chance: CHANCE_MAX, count: Some(1) };
        match nth.checked_sub(1)? {
            0 => Some(Self::one(once)),
            before => Some(Self::two(Term { count: Some(before), ..Term::OFF }, once)),
        }
    }

    /// Reads `text`, a programme for `site`.
    ///
    /// # Errors
    /// The first rule that it breaks, and where.
    pub fn parse(site: FailSite, text: &str) -> Result<Self, SpecError> {
        let mut reader = Reader { site, text, at: 0 };
        let mut spec = Self::one(reader.term()?);
        while reader.at < text.len() {
            if !reader.take("->") {
                return Err(reader.error(SpecRule::Arrow));
            }
            let Some(slot) = spec.terms.get_mut(spec.length) else {
                return Err(reader.error(SpecRule::Length));
            };
            *slot = reader.term()?;
            spec.length += 1;
        }
        Ok(spec)
    }

    /// The programme that `point` has, or `None` if it is not one.
    #[must_use]
    pub fn of(point: &FailPoint) -> Option<Self> {
        let length = usize::try_from(point.length.get()).ok()?;
        let mut spec = Self { terms: [Term::OFF; TERMS_MAX], length };
        if length == 0 || length > TERMS_MAX {
            return None;
        }
        for (slot, term) in spec.terms.iter_mut().zip(&point.terms).take(length) {
            let (count, chance) = (term.remaining(), term.chance.get());
            *slot =
                Term { action: term.action.known()?, argument: term.argument.get(), chance, count };
        }
        Some(spec)
    }

    /// The terms.
    #[must_use]
    pub fn terms(&self) -> &[Term] {
        &self.terms[..self.length]
    }

    /// Whether it is `off` alone, which disarms the site.
    #[must_use]
    pub fn is_off(&self) -> bool {
        matches!(
            self.terms(),
            [Term { action: FailAction::Off, chance: CHANCE_MAX, count: None, .. }]
        )
    }
}

impl PartialEq for FailSpec {
    fn eq(&self, other: &Self) -> bool {
        self.terms() == other.terms()
    }
}

impl Eq for FailSpec {}

/// The canonical text: what [`FailSpec::parse`] reads.
impl fmt::Display for FailSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, term) in self.terms().iter().enumerate() {
            let arrow = if number == 0 { "" } else { "->" };
            write!(f, "{arrow}{term}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.chance < CHANCE_MAX {
            let parts = CHANCE_MAX / 100;
            let (whole, mut rest) = (self.chance / parts, self.chance % parts);
            write!(f, "{whole}")?;
            let mut places = PLACES;
            while rest != 0 && rest.is_multiple_of(10) {
                rest /= 10;
                places -= 1;
            }
            if rest != 0 {
                write!(f, ".{rest:0places$}")?;
            }
            f.write_str("%")?;
        }
        if let Some(count) = self.count {
            write!(f, "{count}*")?;
        }
        f.write_str(self.action.name())?;
        match self.argument {
            0 => Ok(()),
            argument => write!(f, "({argument})"),
        }
    }
}

/// A place in a text.
struct Reader<'a> {
    site: FailSite,
    text: &'a str,
    at: usize,
}

impl Reader<'_> {
    const fn error(&self, rule: SpecRule) -> SpecError {
        SpecError { at: self.at, rule }
    }

    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    /// Passes over `word` if it is next.
    fn take(&mut self, word: &str) -> bool {
        let found = self.rest().starts_with(word);
        self.at += if found { word.len() } else { 0 };
        found
    }

    /// A term: its modifiers, its action, and the action's argument.
    fn term(&mut self) -> Result<Term, SpecError> {
        let mut term = Term::OFF;
        while self.rest().starts_with(|c: char| c.is_ascii_digit()) {
            self.modifier(&mut term)?;
        }
        let start = self.at;
        let action = FailAction::ALL.into_iter().find(|action| self.take(action.name()));
        term.action = action.ok_or(self.error(SpecRule::Action))?;
        if self.rest().starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_') {
            self.at = start;
            return Err(self.error(SpecRule::Action));
        }
        self.admit(&mut term, start)?;
        Ok(term)
    }

    /// A probability or a count.
    fn modifier(&mut self, term: &mut Term) -> Result<(), SpecError> {
        let start = self.at;
        let whole = self.number()?;
        let fraction_at = self.at;
        if self.take(".") {
            let digits = self.rest().bytes().take_while(u8::is_ascii_digit).count();
            self.at += digits;
        }
        let fraction = self.at - fraction_at;
        if self.take("%") {
            let chance = chance(whole, &self.text[fraction_at..fraction_at + fraction]);
            self.at = start;
            term.chance = chance.ok_or(self.error(SpecRule::Probability))?;
            self.at = fraction_at + fraction + 1;
            // `1%*sleep(50)`, an example of `fail(9)`: a count without a number is none.
            self.take("*");
            return Ok(());
        }
        if fraction != 0 || !self.take("*") {
            return Err(self.error(SpecRule::Number));
        }
        if whole == 0 {
            return Err(SpecError { at: start, rule: SpecRule::Count });
        }
        term.count = Some(whole).filter(|&count| count < UNLIMITED);
        Ok(())
    }

    /// Reads the argument of the action at `start`, and checks that the site takes both.
    fn admit(&mut self, term: &mut Term, start: usize) -> Result<(), SpecError> {
        let refused = SpecError { at: start, rule: SpecRule::Refused(self.site, term.action) };
        if !self.site.takes(term.action) {
            return Err(refused);
        }
        let at = self.at + 1;
        let argument = if self.take("(") { Some(self.number()?) } else { None };
        if argument.is_some() && !self.take(")") {
            return Err(self.error(SpecRule::Parenthesis));
        }
        let given = argument.unwrap_or(0);
        term.argument = match term.action {
            FailAction::Return => match self.site.returns().value(argument) {
                Some(value) => value,
                None => return Err(SpecError { at, rule: SpecRule::Value(self.site) }),
            },
            FailAction::Sleep if given > SLEEP_MAX => {
                return Err(SpecError { at, rule: SpecRule::Time(SLEEP_MAX) });
            }
            FailAction::Delay if given > DELAY_MAX => {
                return Err(SpecError { at, rule: SpecRule::Time(DELAY_MAX) });
            }
            FailAction::Off | FailAction::Panic => 0,
            FailAction::Sleep | FailAction::Delay | FailAction::Print => given,
        };
        Ok(())
    }

    /// An unsigned number.
    fn number(&mut self) -> Result<u64, SpecError> {
        let start = self.at;
        let radix = if self.take("0x") { 16 } else { 10 };
        let rest = self.rest();
        let end = rest.find(|c: char| !c.is_digit(radix)).unwrap_or(rest.len());
        let value = u64::from_str_radix(&rest[..end], radix);
        let value = value.map_err(|_| SpecError { at: start, rule: SpecRule::Number })?;
        self.at += end;
        Ok(value)
    }
}

/// The probability of `whole` percent and `fraction`, a point with digits or nothing, in
/// millionths.
fn chance(whole: u64, fraction: &str) -> Option<u32> {
    let digits = fraction.strip_prefix('.').unwrap_or_default();
    if digits.len() > PLACES || (digits.is_empty() && !fraction.is_empty()) {
        return None;
    }
    let padded = digits.bytes().chain(core::iter::repeat(b'0')).take(PLACES);
    let rest = padded.fold(0u64, |rest, digit| rest * 10 + u64::from(digit - b'0'));
    let parts = whole.checked_mul(u64::from(CHANCE_MAX) / 100)?.checked_add(rest)?;
    u32::try_from(parts).ok().filter(|chance| (1..=CHANCE_MAX).contains(chance))
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rule {
            SpecRule::Action => {
                f.write_str("expected an action, one of ")?;
                list(f, FailAction::ALL.iter().map(|action| action.name()))
            }
            SpecRule::Number => f.write_str(
                "expected a number below 2^64, and `%` or `*` after it if an action follows",
            ),
            SpecRule::Probability => f.write_str(
                "a probability must be above 0 and at most 100, with at most four places",
            ),
            SpecRule::Count => f.write_str("a count must be at least 1"),
            SpecRule::Parenthesis => f.write_str("expected `)` after the argument"),
            SpecRule::Arrow => f.write_str("expected `->` or the end after a term"),
            SpecRule::Length => write!(f, "there are more than {TERMS_MAX} terms"),
            SpecRule::Refused(site, FailAction::Sleep) => write!(
                f,
                "{} does not take `sleep`: its caller may not sleep; `delay` spins",
                site.name()
            ),
            SpecRule::Refused(site, action) => {
                write!(f, "{} does not take `{}`: it cannot fail", site.name(), action.name())
            }
            SpecRule::Value(site) => {
                write!(f, "{} can only return ", site.name())?;
                values(f, site.returns())
            }
            SpecRule::Time(max) => write!(f, "the argument must be at most {max}"),
        }
    }
}

impl core::error::Error for SpecError {}

fn list(f: &mut fmt::Formatter<'_>, words: impl Iterator<Item = &'static str>) -> fmt::Result {
    for (number, word) in words.enumerate() {
        write!(f, "{}{word}", if number == 0 { "" } else { ", " })?;
    }
    Ok(())
}

fn values(f: &mut fmt::Formatter<'_>, returns: Returns) -> fmt::Result {
    match returns {
        Returns::Never => f.write_str("nothing"),
        Returns::Null => f.write_str("0 (null)"),
        Returns::Early => f.write_str("0"),
        Returns::Code(codes) => {
            for (number, code) in codes.iter().enumerate() {
                let comma = if number == 0 { "" } else { ", " };
                write!(f, "{comma}{} ({code})", *code as u32)?;
            }
            Ok(())
        }
    }
}
