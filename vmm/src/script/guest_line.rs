//! `guest KEY=VALUE...`: the guest that a script needs.
//!
//! The keys are the names of the command line's options and of the kernel's tunables. Each value is
//! tried by itself here, so an error names its place. Whether the values fit together is checked
//! when the guest is launched.

use std::time::Duration;

use vmkern_abi::boot::Tunables;

use super::diagnostic::Diagnostic;
use super::lexer::{Kind, Lexer};
use super::source::Span;
use super::values;
use crate::spelling::closest;
use crate::{Guest, GuestBuilder, Privilege, TimeMode};

/// The options of a `guest` line. The command line decides those that are missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestOptions {
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// CPUs.
    pub vcpus: Option<u32>,
    /// Privilege of the kernel's body.
    pub privilege: Option<Privilege>,
    /// How the kernel's clock moves.
    pub time: Option<TimeMode>,
    /// Time limit of the run.
    pub timeout: Option<Duration>,
    /// Seed of `rand`.
    pub seed: Option<u64>,
    /// Kernel tunables.
    pub tunables: Vec<(String, u64)>,
}

impl GuestOptions {
    /// Whether nothing is asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The guest that they describe; what they do not name is at its default.
    pub fn builder(&self) -> GuestBuilder {
        fn with<T: Copy>(
            builder: GuestBuilder,
            value: Option<T>,
            set: impl FnOnce(GuestBuilder, T) -> GuestBuilder,
        ) -> GuestBuilder {
            match value {
                Some(value) => set(builder, value),
                None => builder,
            }
        }
        let builder = with(Guest::builder(), self.memory, GuestBuilder::memory);
        let builder = with(builder, self.vcpus, GuestBuilder::vcpus);
        let builder = with(builder, self.privilege, GuestBuilder::privilege);
        let builder = with(builder, self.time, GuestBuilder::time);
        let builder = with(builder, self.timeout, GuestBuilder::timeout);
        let builder = with(builder, self.seed, GuestBuilder::seed);
        let tunables = self.tunables.iter();
        tunables.fold(builder, |builder, (name, value)| builder.tunable(name, *value))
    }

    /// These options together with `later` ones, which count for what they name.
    #[must_use]
    pub fn and(self, later: &Self) -> Self {
        let mut tunables = self.tunables;
        tunables.retain(|(name, _)| !later.tunables.iter().any(|(other, _)| other == name));
        tunables.extend(later.tunables.iter().cloned());
        Self {
            memory: later.memory.or(self.memory),
            vcpus: later.vcpus.or(self.vcpus),
            privilege: later.privilege.or(self.privilege),
            time: later.time.or(self.time),
            timeout: later.timeout.or(self.timeout),
            seed: later.seed.or(self.seed),
            tunables,
        }
    }
}

/// The keys that are not tunables.
pub(super) const KEYS: [&str; 7] =
    ["memory", "vcpus", "time", "timeout", "seed", "privilege", "policy"];

/// Parses what follows `guest`.
pub(super) fn parse(lexer: &mut Lexer<'_>) -> Result<GuestOptions, Diagnostic> {
    // 1. The rest of the line, as one word.
    const EXPECTED: &str = "KEY=VALUE, as in `guest memory=256M vcpus=2`";
    let rest = lexer.rest();
    let Kind::Word(text) = rest.kind else {
        return Err(Diagnostic::new(
            rest.span,
            "`guest` lacks an argument",
            EXPECTED,
            rest.describe(),
        ));
    };
    // 2. Its words, each a key and a value, up to a comment.
    let mut options = GuestOptions::default();
    let mut seen = Vec::new();
    let mut at = 0;
    while let Some(start) = text[at..].find(|c: char| !c.is_whitespace()).map(|blanks| at + blanks)
    {
        let word = text[start..].split(char::is_whitespace).next().unwrap_or_default();
        at = start + word.len();
        if word.starts_with('#') {
            break;
        }
        let span = Span { start: rest.span.start + start, end: rest.span.start + at, ..rest.span };
        let found = format!("`{word}`");
        let Some((key, value)) =
            word.split_once('=').filter(|(key, value)| !key.is_empty() && !value.is_empty())
        else {
            let error = Diagnostic::new(span, format!("{found} is not KEY=VALUE"), EXPECTED, found);
            return Err(error.help("write `=` here without blanks around it"));
        };
        // 3. Each key once.
        if seen.contains(&key) {
            return Err(Diagnostic::new(
                span,
                format!("`{key}` is given twice"),
                "each key once",
                found,
            ));
        }
        seen.push(key);
        set(&mut options, key, value, span)?;
    }
    Ok(options)
}

/// Why a value is refused.
struct Bad(String);

fn set(options: &mut GuestOptions, key: &str, value: &str, span: Span) -> Result<(), Diagnostic> {
    // 1. Options of the guest.
    let found = format!("`{key}={value}`");
    let wrong = |Bad(expected): Bad| {
        Diagnostic::new(span, format!("bad value of `{key}`"), expected, found.clone())
    };
    match key {
        "memory" => {
            options.memory = Some(tried(values::size(value), GuestBuilder::memory).map_err(wrong)?)
        }
        "vcpus" => {
            let count = values::number(value)
                .and_then(|count| u32::try_from(count).map_err(|_| "1 to 64".to_owned()));
            options.vcpus = Some(tried(count, GuestBuilder::vcpus).map_err(wrong)?);
        }
        "privilege" => {
            let privilege =
                Privilege::from_name(value).ok_or_else(|| "auto, supervisor or user".to_owned());
            options.privilege = Some(tried(privilege, GuestBuilder::privilege).map_err(wrong)?);
        }
        "time" => {
            let time = TimeMode::from_name(value).ok_or_else(|| "virtual or real".to_owned());
            options.time = Some(tried(time, GuestBuilder::time).map_err(wrong)?);
        }
        "timeout" => {
            options.timeout =
                Some(tried(values::time(value), GuestBuilder::timeout).map_err(wrong)?)
        }
        "seed" => {
            options.seed = Some(tried(values::number(value), GuestBuilder::seed).map_err(wrong)?)
        }
        // 2. What this kernel cannot do, or the command line alone can say.
        "policy" => match value {
            "classic" => {}
            "modern" => {
                let message = "`policy=modern` is part of the language, but not yet of this kernel";
                return Err(Diagnostic::new(span, message, "policy=classic", found));
            }
            _ => return Err(wrong(Bad("classic".to_owned()))),
        },
        "kernel" | "set" | "let" => {
            let message = format!("`{key}` can be given on the command line only");
            return Err(Diagnostic::new(span, message, keys(), found));
        }
        // 3. Tunables of the kernel.
        name if Tunables::NAMES.contains(&name) => {
            let number = values::number(value).map_err(Bad).map_err(wrong)?;
            let tried = Guest::builder().tunable(name, number).validate();
            tried.map_err(|error| wrong(Bad(error.to_string())))?;
            options.tunables.push((name.to_owned(), number));
        }
        _ => {
            let known = KEYS.into_iter().chain(Tunables::NAMES.iter().copied());
            let error = Diagnostic::new(span, format!("unknown key `{key}`"), keys(), found);
            return Err(error.suggest(closest(key, known)));
        }
    }
    Ok(())
}

/// Checks a value in a guest whose other options are the defaults.
fn tried<T: Copy>(
    value: Result<T, String>,
    set: impl FnOnce(GuestBuilder, T) -> GuestBuilder,
) -> Result<T, Bad> {
    let value = value.map_err(|error| Bad(error.trim_start_matches("expected ").to_owned()))?;
    set(Guest::builder(), value).validate().map_err(|error| Bad(error.to_string()))?;
    Ok(value)
}

fn keys() -> String {
    let names = KEYS.into_iter().chain(Tunables::NAMES.iter().copied());
    format!("one of {}", names.collect::<Vec<_>>().join(" "))
}
