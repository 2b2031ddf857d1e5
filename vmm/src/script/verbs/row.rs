//! A row of the table of verbs: the name, the arguments, the effect and the result, each once.
//! The parser reads arguments by it, and the usage line, the help and the book's table are printed
//! from it.

use std::fmt;

use vmkern_abi::control::{MallocFlags, MapId, MapKind, Op};
use vmkern_abi::layout::Protection;

use super::host::HostVerb;
use crate::guest::{Pages, PressureTarget, ThreadId};
use crate::script::fail_point::FailRequest;
use crate::script::look::Look;
use crate::script::{expr, words};

/// The kind of an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Param {
    /// A map, with its name in the usage line.
    Map(&'static str),
    /// A number, with its name in the usage line.
    Number(&'static str),
    /// A number, or the word `zero`.
    Seed,
    /// Flags of malloc(9) joined by `|`; can be left out.
    Flags,
    /// The word `system`; can be left out.
    Kind,
    /// What a range allows: `rw`, `r` or `none`.
    Allows,
    /// The bytes of a piece; can be left out.
    Chunk,
    /// How much to seize: bytes, or `leave` and a number of pages.
    Amount,
    /// A thread.
    Thread,
    /// A verb that is an operation, with its arguments.
    Op,
    /// The name of a file: a word without blanks, or a string.
    File,
    /// A fail point and its programme: the rest of the line.
    Fail,
    /// A view of the guest.
    Look,
}

impl fmt::Display for Param {
    /// As a usage line shows it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Map(name) | Self::Number(name) => name,
            Self::Seed => "SEED|zero",
            Self::Flags => "[FLAGS]",
            Self::Kind => "[system]",
            Self::Allows => "rw|r|none",
            Self::Amount => "SIZE|leave PAGES",
            Self::Chunk => "[CHUNK]",
            Self::Thread => "THREAD",
            Self::Op => "STATEMENT",
            Self::File => "FILE",
            Self::Fail => "SITE SPEC|off|list",
            Self::Look => "WHAT",
        })
    }
}

impl Param {
    /// Whether it follows rules of its own, and need not be made of tokens.
    pub(in crate::script) fn is_raw(self) -> bool {
        matches!(self, Self::File | Self::Fail)
    }

    /// Its possible values.
    #[must_use]
    pub fn says(self) -> &'static str {
        match self {
            Self::Map(_) => expr::MAP,
            Self::Number("SIZE") => "bytes, with a suffix of K M G or none",
            Self::Number("TIME") => "microseconds, or a number with a suffix of us ms s",
            Self::Number("COUNT") => "pages",
            Self::Number("PERCENT") => "1 to 100",
            Self::Number(_) => "a number, a `$NAME` or an expression without blanks",
            Self::Seed => "a number, or the word `zero`",
            Self::Flags => {
                "joined by `|`: WAITOK NOWAIT ZERO USE_RESERVE; none is 0, which may sleep"
            }
            Self::Kind => "makes it a system map",
            Self::Allows => "reads and writes, reads only, or nothing",
            Self::Chunk => "bytes of a piece, whole pages; 16K without it",
            Self::Amount => {
                "bytes, rounded up to pages; or `leave` and the number of pages that stay free"
            }
            Self::Thread => words::THREADS,
            Self::Op => "a verb that the guest does, with its arguments",
            Self::File => "a word without blanks or a string; `-` is standard output",
            Self::Fail => {
                "[N%][M*]action[(argument)][->...] of off return sleep delay panic print; \
                 `fail list` names the sites"
            }
            Self::Look => {
                "summary, maps, map NAME, objects, pages, page PFN, vtop ADDR, \
                 pagetable [START..END], threads, cpus, locks, fail, pressure, diff FILE"
            }
        }
    }
}

/// An argument after evaluation. Each parameter has a value of its own name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A map.
    Map(MapId),
    /// A number.
    Number(u64),
    /// The seed of a pattern; none for `zero`.
    Seed(Option<u64>),
    /// Flags.
    Flags(MallocFlags),
    /// The kind of a map.
    Kind(MapKind),
    /// What a range allows.
    Allows(Protection),
    /// The bytes of a piece.
    Chunk(u64),
    /// How much to seize.
    Amount(PressureTarget),
    /// A thread.
    Thread(ThreadId),
    /// An operation to do later, with its own arguments.
    Op(Op, Vec<Value>),
    /// The name of a file.
    File(String),
    /// What a `fail` does.
    Fail(FailRequest),
    /// A view of the guest.
    Look(Look),
}

impl Value {
    /// This many bytes more, rounded up to pages.
    pub(in crate::script) const fn more(bytes: u64) -> Self {
        Self::Amount(PressureTarget::More(Pages::holding(bytes)))
    }

    /// All free pages but this many.
    pub(in crate::script) const fn leave(pages: u64) -> Self {
        Self::Amount(PressureTarget::Leave(Pages(pages)))
    }
}

/// Makes an operation from arguments that fit the verb's [`Verb::params`].
pub type Build = fn(&[Value]) -> Option<Op>;

/// How a verb is done.
#[derive(Clone, Copy, Debug)]
pub(in crate::script) enum Action {
    /// The guest does an operation.
    Operation(Build),
    /// The script does it itself.
    Host(&'static dyn HostVerb),
    /// Nothing: the kernel does not offer it. Holds its arguments as a usage line will show them.
    Absent(&'static str),
}

/// The value that a statement binds to its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gives {
    /// A number.
    Number,
    /// A map.
    Map,
    /// The value of the statement that it waits for.
    Either,
}

/// A verb.
#[derive(Debug)]
pub struct Verb {
    /// Its name.
    pub name: &'static str,
    /// Its arguments.
    pub params: &'static [Param],
    /// Its effect, in one line of Markdown.
    pub does: &'static str,
    /// Its result, in words.
    pub result: &'static str,
    /// The kind of its value.
    pub gives: Gives,
    pub(in crate::script) action: Action,
}

impl PartialEq for Verb {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Verb {
    /// Whether this kernel offers it.
    #[must_use]
    pub fn is_offered(&self) -> bool {
        !matches!(self.action, Action::Absent(_))
    }

    /// Whether the guest does it, on a thread or in an interrupt handler.
    #[must_use]
    pub fn is_operation(&self) -> bool {
        matches!(self.action, Action::Operation(_))
    }

    /// Whether the guest has to run for it.
    pub(in crate::script) fn needs_guest(&self) -> bool {
        match self.action {
            Action::Operation(_) => true,
            Action::Host(verb) => verb.needs_guest(),
            Action::Absent(_) => false,
        }
    }

    /// Name and arguments.
    #[must_use]
    pub fn signature(&self) -> String {
        let mut text = self.name.to_owned();
        match self.action {
            Action::Absent("") => {}
            Action::Absent(usage) => text.extend([" ", usage]),
            Action::Operation(_) | Action::Host(_) => {
                for param in self.params {
                    text.push_str(&format!(" {param}"));
                }
            }
        }
        text
    }
}

/// The row of a verb that is an operation: its arguments, each with what it is, then the operation
/// that they make, its effect, and its result.
macro_rules! op {
    (
        $name:ident($($arg:ident: $kind:ident $(($shown:literal))?),*) => $op:expr,
        $does:literal, $result:literal
    ) => {
        $crate::script::verbs::Verb {
            name: stringify!($name),
            params: &[$($crate::script::verbs::Param::$kind $(($shown))?),*],
            does: $does,
            result: $result,
            gives: $crate::script::verbs::Gives::Number,
            action: $crate::script::verbs::row::Action::Operation(|values| match *values {
                [$($crate::script::verbs::Value::$kind($arg)),*] => Some($op),
                _ => None,
            }),
        }
    };
}
pub(super) use op;

/// The row of a verb that this kernel does not offer yet.
pub(super) const fn later(name: &'static str, usage: &'static str) -> Verb {
    let action = Action::Absent(usage);
    Verb { name, params: &[], does: "", result: "", gives: Gives::Number, action }
}
