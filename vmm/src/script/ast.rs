//! A script after all names are resolved.

use std::fmt;
use std::sync::Arc;

use vmkern_abi::control::{Context, KernReturn, MallocFlags, MapId, MapKind};
use vmkern_abi::layout::Protection;

use super::fail_point::FailRequest;
use super::guest_line::GuestOptions;
use super::lexer::Radix;
use super::names::MapField;
use super::source::{Source, Span};
use super::verbs::{Verb, squeeze};
use crate::GuestBuilder;
use crate::guest::ThreadId;
use crate::inspect::What;

/// A script that can run: every verb is one that the kernel offers, and every name has been bound
/// by a line above.
#[derive(Clone, Debug)]
pub struct Script {
    pub(super) source: Source,
    pub(super) body: Vec<Stmt>,
    /// The bindings of `--let`.
    pub(super) presets: Vec<(NameId, u64)>,
    pub(super) guest: GuestOptions,
}

impl Script {
    /// The guest that the script asks for on its `guest` line.
    #[must_use]
    pub fn guest(&self) -> &GuestOptions {
        &self.guest
    }

    /// `builder` with the devices that the script uses.
    pub(crate) fn furnish(&self, builder: GuestBuilder) -> GuestBuilder {
        if self.has(squeeze::NAME) { builder.balloon() } else { builder }
    }

    /// Whether it has a statement of the verb `verb`.
    #[must_use]
    pub fn has(&self, verb: &str) -> bool {
        has(&self.body, verb)
    }

    /// The text it was made from.
    #[must_use]
    pub fn source(&self) -> &Source {
        &self.source
    }
}

/// Whether one of `body` is a statement of the verb `verb`.
fn has(body: &[Stmt], verb: &str) -> bool {
    body.iter().any(|stmt| match &stmt.kind {
        StmtKind::Do(statement) => statement.call.verb.name == verb,
        StmtKind::Repeat { body, .. } => has(body, verb),
        _ => false,
    })
}

/// A bound name: its number among the script's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NameId(pub(super) usize);

/// Where a statement runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Runner {
    /// On a kernel thread: `tN:`.
    Thread(ThreadId),
    /// In an interrupt handler: `intr:`.
    Interrupt,
}

impl Runner {
    /// The runner of statements that name none.
    pub const DEFAULT: Self = Self::Thread(ThreadId::MAIN);

    /// The same as the guest knows it.
    #[must_use]
    pub fn context(self) -> Context {
        match self {
            Self::Thread(thread) => thread.into(),
            Self::Interrupt => Context::Interrupt,
        }
    }
}

impl fmt::Display for Runner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Thread(thread) => thread.fmt(f),
            Self::Interrupt => f.write_str("intr"),
        }
    }
}

/// A thread as a script names it.
#[derive(Clone, Debug)]
pub(super) enum ThreadRef {
    /// `t0` to `t63`.
    Fixed(ThreadId),
    /// `t[EXPR]`.
    Computed(Box<Expr>),
}

/// The part of a statement in front of its colon.
#[derive(Clone, Debug)]
pub(super) enum RunnerRef {
    Thread(ThreadRef),
    Interrupt,
}

/// Whether a statement is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// The script goes on when it has finished or is blocked.
    Wait,
    /// `start`: the script goes on at once.
    Start,
}

#[derive(Clone, Debug)]
pub(super) struct Stmt {
    pub span: Span,
    pub kind: StmtKind,
}

#[derive(Clone, Debug)]
pub(super) enum StmtKind {
    Do(Arc<Do>),
    /// The result that the statement just above must have.
    Expect(Arc<Expect>),
    Let {
        place: Place,
        value: Expr,
    },
    Assert {
        left: Expr,
        compare: Compare,
        right: Expr,
    },
    Repeat {
        count: Expr,
        body: Vec<Stmt>,
    },
    Print(Vec<PrintArg>),
}

/// A verb with its arguments and its thread. Shared: it outlives its line while its thread has
/// not finished.
#[derive(Clone, Debug)]
pub(super) struct Do {
    pub span: Span,
    /// The part in front of the colon, if there is one.
    pub runner: Option<RunnerRef>,
    pub pace: Pace,
    pub bind: Option<Place>,
    pub call: Call,
}

/// A verb with its arguments.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub verb: &'static Verb,
    pub args: Vec<Arg>,
}

/// Where a value is bound: a name, or one of a series.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub name: NameId,
    pub index: Option<Expr>,
}

#[derive(Clone, Debug)]
pub(super) enum Arg {
    Map(MapRef),
    Number(Expr),
    /// The seed of a pattern.
    Seed(Expr),
    /// The word `zero` where a seed could stand.
    Zero,
    Flags(MallocFlags),
    /// `system`, or nothing.
    Kind(MapKind),
    /// What a range allows.
    Allows(Protection),
    /// Bytes of a piece, if the script says it.
    Chunk(Option<Expr>),
    /// Bytes to seize.
    Bytes(Expr),
    /// `leave`, and the pages that stay free.
    Leave(Expr),
    Thread(ThreadRef),
    /// A statement to do later.
    Call(Call),
    File(String),
    Fail(FailRequest),
    What(WhatArg),
}

/// The view of an `inspect`, before its numbers are evaluated.
#[derive(Clone, Debug)]
pub(super) enum WhatArg {
    Plain(What),
    Map(MapRef),
    Page(Expr),
    Vtop(Expr),
    /// Start, and first address past the range.
    PageTable(Option<(Expr, Expr)>),
    Diff(String),
}

/// A map: by its name, or by a name that kmem_suballoc bound.
#[derive(Clone, Debug)]
pub(super) enum MapRef {
    Named(MapId),
    /// A [`TermKind::Value`] or [`TermKind::Element`].
    Bound(Box<Term>),
}

#[derive(Clone, Debug)]
pub(super) enum PrintArg {
    Text(String),
    Number(Expr),
    /// `hex(EXPR)`.
    Hex(Expr),
}

#[derive(Clone, Debug)]
pub(super) struct Expect {
    pub span: Span,
    pub what: Expected,
}

#[derive(Clone, Debug)]
pub(super) enum Expected {
    Ok,
    Null,
    Blocked,
    Number(Expr),
    Error(KernReturn),
    Panic(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compare {
    Equal,
    Different,
    Less,
    AtMost,
    Greater,
    AtLeast,
}

impl Compare {
    pub const ALL: [Self; 6] =
        [Self::Equal, Self::Different, Self::Less, Self::AtMost, Self::Greater, Self::AtLeast];

    pub fn sign(self) -> &'static str {
        match self {
            Self::Equal => "==",
            Self::Different => "!=",
            Self::Less => "<",
            Self::AtMost => "<=",
            Self::Greater => ">",
            Self::AtLeast => ">=",
        }
    }

    pub fn holds(self, left: u64, right: u64) -> bool {
        match self {
            Self::Equal => left == right,
            Self::Different => left != right,
            Self::Less => left < right,
            Self::AtMost => left <= right,
            Self::Greater => left > right,
            Self::AtLeast => left >= right,
        }
    }
}

/// Terms joined by operators, combined from left to right. A flat list, so that a long sum is not
/// a deep tree.
#[derive(Clone, Debug)]
pub(super) struct Expr {
    pub span: Span,
    pub first: Box<Term>,
    pub rest: Vec<(Operator, Term)>,
}

impl From<Term> for Expr {
    fn from(term: Term) -> Self {
        Self { span: term.span, first: Box::new(term), rest: Vec::new() }
    }
}

impl Expr {
    /// The number that it is, if it is nothing but a number.
    pub fn literal(&self) -> Option<u64> {
        match self.first.kind {
            TermKind::Number(value, _) if self.rest.is_empty() => Some(value),
            _ => None,
        }
    }

    /// Every term that is added, subtracted and so on.
    pub fn terms(&self) -> impl Iterator<Item = &Term> {
        std::iter::once(&*self.first).chain(self.rest.iter().map(|(_, term)| term))
    }
}

#[derive(Clone, Debug)]
pub(super) struct Term {
    pub span: Span,
    pub kind: TermKind,
}

#[derive(Clone, Debug)]
pub(super) enum TermKind {
    Number(u64, Radix),
    /// `$NAME`.
    Value(NameId),
    /// `$NAME[EXPR]`.
    Element(NameId, Expr),
    /// `$i`.
    LoopIndex,
    /// A counter of the kernel, by its name in `VmMeter`.
    Counter(&'static str),
    PageSize,
    /// Microseconds of the guest's clock.
    Now,
    /// Cycles of the last statement that was judged.
    Cycles,
    MapField(MapRef, MapField),
    /// `rand(LO,HI)`.
    Rand(Expr, Expr),
    /// `(EXPR)`.
    Group(Expr),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

impl Operator {
    pub const ALL: [Self; 5] =
        [Self::Add, Self::Subtract, Self::Multiply, Self::Divide, Self::Remainder];

    pub fn sign(self) -> &'static str {
        match self {
            Self::Add => "+",
            Self::Subtract => "-",
            Self::Multiply => "*",
            Self::Divide => "/",
            Self::Remainder => "%",
        }
    }

    /// The result, or `None` where it is not an unsigned 64-bit number.
    pub fn apply(self, left: u64, right: u64) -> Option<u64> {
        match self {
            Self::Add => left.checked_add(right),
            Self::Subtract => left.checked_sub(right),
            Self::Multiply => left.checked_mul(right),
            Self::Divide => left.checked_div(right),
            Self::Remainder => left.checked_rem(right),
        }
    }
}
