//! The values of expressions and arguments.

use vmkern_abi::addr::{GuestVirt, PAGE_SIZE};
use vmkern_abi::control::{MapId, Op};

use super::ast::{Arg, Call, Expr, MapRef, NameId, Place, Term, TermKind, ThreadRef, WhatArg};
use super::diagnostic::Diagnostic;
use super::env::{Bound, SERIES_MAX, SeriesFull};
use super::eval::{Over, Run, wrong};
use super::lexer::Radix;
use super::look::Look;
use super::outcome::{self, StepResult};
use super::show;
use super::source::Span;
use super::target::TargetError;
use super::verbs::{Action, CHUNK, Value};
use crate::guest::ThreadId;
use crate::inspect::What;

impl Run<'_> {
    pub(super) fn eval(&mut self, at: Span, expr: &Expr) -> Result<u64, Over> {
        let mut value = self.term(at, &expr.first)?;
        let mut span = expr.first.span;
        for (operator, term) in &expr.rest {
            let right = self.term(at, term)?;
            span = span.to(term.span);
            value = operator.apply(value, right).ok_or_else(|| {
                let found = format!("{value} {} {right}", operator.sign());
                let message = format!("{found} is not an unsigned 64-bit number");
                wrong(Diagnostic::new(span, message, "a result from 0 to 2^64-1", found))
            })?;
        }
        Ok(value)
    }

    /// The value of `term`, noted for a report where a reader would want to know it.
    fn term(&mut self, at: Span, term: &Term) -> Result<u64, Over> {
        let value = self.value_of(at, term)?;
        if show::is_worth_telling(term) {
            self.seen.push((term.span, value));
        }
        Ok(value)
    }

    fn value_of(&mut self, at: Span, term: &Term) -> Result<u64, Over> {
        // 1. What is known without the guest, or asks it for a word.
        let target = |run: &mut Self, result: Result<u64, TargetError>| {
            result.map_err(|error| run.lost(at, None, error))
        };
        match &term.kind {
            TermKind::Number(value, _) => Ok(*value),
            TermKind::Cycles => Ok(self.cycles),
            TermKind::Now => {
                let value = self.target.now();
                target(self, value)
            }
            TermKind::PageSize => Ok(PAGE_SIZE),
            TermKind::LoopIndex => Ok(self.loops.last().map_or(0, |&(_, i)| i)),
            TermKind::Group(inner) => self.eval(at, inner),
            TermKind::Counter(name) => {
                let value = self.target.counter(name);
                target(self, value)
            }
            TermKind::MapField(map, field) => {
                let map = self.map(at, map)?;
                let value = self.target.map_field(map, *field);
                target(self, value)
            }
            // 2. A draw, between bounds that make sense.
            TermKind::Rand(low, high) => {
                let (low, high) = (self.eval(at, low)?, self.eval(at, high)?);
                if low > high {
                    let found = format!("rand({low},{high})");
                    let message = format!("{found} has no number to draw");
                    return Err(wrong(Diagnostic::new(
                        term.span,
                        message,
                        "LO not above HI",
                        found,
                    )));
                }
                Ok(self.random.between(low, high))
            }
            // 3. A name. A series has a value for each index.
            TermKind::Value(_) | TermKind::Element(..) => {
                let (value, index) = self.lookup(at, term)?;
                match value {
                    // A map as a number is the address of its vm_map.
                    Some(Bound::Number(value, _) | Bound::Map(MapId(value))) => Ok(value),
                    other => Err(self.misfit(term, other, index, "a bound number")),
                }
            }
        }
    }

    /// The map that `map` stands for.
    pub(super) fn map(&mut self, at: Span, map: &MapRef) -> Result<MapId, Over> {
        match map {
            MapRef::Named(map) => Ok(*map),
            MapRef::Bound(term) => match self.lookup(at, term)? {
                (Some(Bound::Map(map)), _) => Ok(map),
                (other, index) => {
                    Err(self.misfit(term, other, index, "a map bound by kmem_suballoc"))
                }
            },
        }
    }

    /// The value of a `$NAME` or `$NAME[EXPR]`, and that of the index.
    fn lookup(&mut self, at: Span, term: &Term) -> Result<(Option<Bound>, Option<u64>), Over> {
        match &term.kind {
            TermKind::Value(name) => Ok((self.env.get(*name, None), None)),
            TermKind::Element(name, index) => {
                let index = self.eval(at, index)?;
                Ok((self.env.get(*name, Some(index)), Some(index)))
            }
            _ => Ok((None, None)),
        }
    }

    /// The error for a bound value that is not what is needed.
    fn misfit(&self, term: &Term, value: Option<Bound>, index: Option<u64>, needed: &str) -> Over {
        let shown = self.source.text(term.span);
        let index = index.map_or(String::new(), |index| format!(" (index {index})"));
        let message = match value {
            None => format!("`{shown}`{index} has not been bound"),
            Some(Bound::Number(value, radix)) => {
                format!(
                    "`{shown}`{index} is not a map, but the number {}",
                    outcome::shown(value, radix)
                )
            }
            Some(Bound::Map(_)) => format!("`{shown}`{index} is a map"),
            Some(Bound::Other(outcome)) => {
                format!(
                    "`{shown}`{index} has no value: its statement gave {}",
                    StepResult::Given(*outcome)
                )
            }
            Some(Bound::Started) => {
                format!(
                    "`{shown}`{index} has no value yet: its statement was started, and has not \
                     been joined"
                )
            }
        };
        wrong(Diagnostic::new(term.span, message, needed, format!("`{shown}`")))
    }

    /// How reports write the value of `expr`: in hexadecimal if a number in it is written so, or a
    /// name's value.
    pub(super) fn radix(&self, expr: &Expr) -> Radix {
        let of = |term: &Term| match &term.kind {
            TermKind::Number(_, radix) => *radix,
            TermKind::Group(inner) => self.radix(inner),
            TermKind::Value(name) => match self.env.get(*name, None) {
                Some(Bound::Number(_, radix)) => radix,
                _ => Radix::Decimal,
            },
            _ => Radix::Decimal,
        };
        expr.terms().map(of).max().unwrap_or_default()
    }

    /// Binds a place to a value.
    pub(super) fn bind(
        &mut self,
        span: Span,
        place: (NameId, Option<u64>),
        value: Bound,
    ) -> Result<(), Over> {
        self.env.bind(place.0, place.1, value).map_err(|SeriesFull| {
            let message = format!(
                "the series of this script have {SERIES_MAX} elements, and this would be one more"
            );
            wrong(Diagnostic::new(
                span,
                message,
                "fewer elements in all series together",
                "another element",
            ))
        })
    }

    /// The thread that `thread` names.
    pub(super) fn thread(&mut self, at: Span, thread: &ThreadRef) -> Result<ThreadId, Over> {
        let index = match thread {
            ThreadRef::Fixed(thread) => return Ok(*thread),
            ThreadRef::Computed(index) => index,
        };
        let number = self.eval(at, index)?;
        let thread = u8::try_from(number).ok().and_then(ThreadId::new);
        thread.ok_or_else(|| {
            let found = format!("`t[{number}]`");
            wrong(Diagnostic::new(
                index.span,
                format!("{found} is not a thread"),
                "t0 to t63",
                found,
            ))
        })
    }

    /// Where a value goes.
    pub(super) fn place(&mut self, at: Span, place: &Place) -> Result<(NameId, Option<u64>), Over> {
        let index = place.index.as_ref().map(|index| self.eval(at, index)).transpose()?;
        Ok((place.name, index))
    }

    /// The values of a call's arguments.
    pub(super) fn values(&mut self, at: Span, call: &Call) -> Result<Vec<Value>, Over> {
        let mut values = Vec::with_capacity(call.args.len());
        for arg in &call.args {
            values.push(match arg {
                Arg::Map(map) => Value::Map(self.map(at, map)?),
                Arg::Number(expr) => Value::Number(self.eval(at, expr)?),
                Arg::Flags(flags) => Value::Flags(*flags),
                Arg::Seed(expr) => Value::Seed(Some(self.eval(at, expr)?)),
                Arg::Zero => Value::Seed(None),
                Arg::Kind(kind) => Value::Kind(*kind),
                Arg::Allows(protection) => Value::Allows(*protection),
                Arg::Chunk(None) => Value::Chunk(CHUNK),
                Arg::Chunk(Some(expr)) => Value::Chunk(self.eval(at, expr)?),
                Arg::Bytes(expr) => Value::more(self.eval(at, expr)?),
                Arg::Leave(expr) => Value::leave(self.eval(at, expr)?),
                Arg::Thread(thread) => Value::Thread(self.thread(at, thread)?),
                Arg::File(name) => Value::File(name.clone()),
                Arg::Fail(request) => Value::Fail(request.clone()),
                Arg::What(what) => Value::Look(self.what(at, what)?),
                Arg::Call(inner) => {
                    let values = self.values(at, inner)?;
                    Value::Op(self.operation(at, inner, &values)?, values)
                }
            });
        }
        Ok(values)
    }

    /// The view of an `inspect`.
    fn what(&mut self, at: Span, what: &WhatArg) -> Result<Look, Over> {
        Ok(Look::At(match what {
            WhatArg::Plain(what) => what.clone(),
            WhatArg::Map(map) => What::Map(self.map(at, map)?.into()),
            WhatArg::Page(pfn) => What::Page(self.eval(at, pfn)?),
            WhatArg::Vtop(va) => What::Vtop(GuestVirt::new(self.eval(at, va)?)),
            WhatArg::PageTable(None) => What::page_tables(),
            WhatArg::PageTable(Some((start, end))) => {
                let span = start.span.to(end.span);
                let (start, end) = (self.eval(at, start)?, self.eval(at, end)?);
                What::page_table(start, end).ok_or_else(|| {
                    let found = format!("{start:#x}..{end:#x}");
                    wrong(Diagnostic::new(
                        span,
                        format!("{found} is empty"),
                        "an end above the start",
                        found,
                    ))
                })?
            }
            WhatArg::Diff(file) => return Ok(Look::Since(file.clone())),
        }))
    }

    /// The operation that a call with these values is.
    pub(super) fn operation(
        &mut self,
        at: Span,
        call: &Call,
        values: &[Value],
    ) -> Result<Op, Over> {
        let op = match call.verb.action {
            Action::Operation(build) => build(values),
            _ => None,
        };
        op.ok_or_else(|| {
            let error = TargetError::Broken(format!("`{}` makes no operation", call.verb.name));
            let called = self.called(call, values);
            self.lost(at, Some(called), error)
        })
    }
}
