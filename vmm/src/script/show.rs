//! Statements for failure reports: the call, and the values that a reader needs.

use crate::guest::PressureTarget;

use super::ast::{Arg, Call, Expr, MapRef, Term, TermKind};
use super::eval::Run;
use super::names::map_name;
use super::outcome::{number, shown};
use super::verbs::{FLAGS, PROTECTIONS, Value};

/// Whether a reader of a report would want to know the value of `term`.
pub(super) fn is_worth_telling(term: &Term) -> bool {
    match &term.kind {
        TermKind::Number(..)
        | TermKind::PageSize
        | TermKind::LoopIndex
        | TermKind::Rand(..)
        | TermKind::Group(_) => false,
        TermKind::Value(_)
        | TermKind::Element(..)
        | TermKind::Counter(_)
        | TermKind::Now
        | TermKind::Cycles
        | TermKind::MapField(..) => true,
    }
}

/// The terms of `expr` that a reader would want to know the values of. Random draws, and elements
/// that a draw chose, are left out: their text does not say which ones they were.
pub(super) fn names<'e>(expr: &'e Expr, into: &mut Vec<&'e Term>) {
    for term in expr.terms() {
        match &term.kind {
            TermKind::Group(inner) => names(inner, into),
            TermKind::Element(_, index) => {
                names(index, into);
                if !draws(index) {
                    into.push(term);
                }
            }
            TermKind::MapField(MapRef::Bound(map), _) if is_drawn(map) => {}
            _ if is_worth_telling(term) => into.push(term),
            _ => {}
        }
    }
}

/// Whether a random draw chooses the element of a series that `map` is.
fn is_drawn(map: &Term) -> bool {
    matches!(&map.kind, TermKind::Element(_, index) if draws(index))
}

/// Whether `expr` contains a random draw.
fn draws(expr: &Expr) -> bool {
    expr.terms().any(|term| match &term.kind {
        TermKind::Rand(..) => true,
        TermKind::Group(inner) | TermKind::Element(_, inner) => draws(inner),
        _ => false,
    })
}

impl Run<'_> {
    /// The call as C would write it.
    pub(super) fn called(&self, what: &Call, values: &[Value]) -> String {
        format!("{}({})", what.verb.name, self.arguments(what, values).join(", "))
    }

    /// The arguments of a call with these values, one by one.
    pub(super) fn arguments(&self, what: &Call, values: &[Value]) -> Vec<String> {
        what.args.iter().zip(values).map(|(arg, value)| self.argument(arg, value)).collect()
    }

    fn argument(&self, arg: &Arg, value: &Value) -> String {
        match (value, arg) {
            (Value::Map(_), Arg::Map(MapRef::Bound(term))) => {
                self.source.text(term.span).to_owned()
            }
            (Value::Map(map), _) => map_name(*map).to_owned(),
            (Value::Kind(kind), _) => kind.to_string(),
            (Value::Allows(protection), _) => {
                let name = PROTECTIONS.iter().find(|(_, allows)| allows == protection);
                name.map_or_else(|| format!("{protection:?}"), |(name, _)| (*name).to_owned())
            }
            (Value::Chunk(bytes), _) => number(*bytes),
            (Value::Amount(PressureTarget::More(pages)), _) => number(pages.bytes()),
            (Value::Amount(PressureTarget::Leave(pages)), _) => format!("leave {}", pages.0),
            (Value::Thread(thread), _) => thread.to_string(),
            (Value::Op(_, values), Arg::Call(inner)) => self.called(inner, values),
            (Value::Op(..), _) => String::new(),
            (Value::Look(look), _) => look.to_string(),
            (Value::Fail(request), _) => request.to_string(),
            (Value::File(name), _) => format!("{name:?}"),
            (Value::Number(value), Arg::Number(expr))
            | (Value::Seed(Some(value)), Arg::Seed(expr)) => shown(*value, self.radix(expr)),
            (Value::Number(value) | Value::Seed(Some(value)), _) => number(*value),
            (Value::Seed(None), _) => "zero".to_owned(),
            (Value::Flags(flags), _) if flags.is_empty() => "0".to_owned(),
            (Value::Flags(flags), _) => {
                let set = FLAGS
                    .iter()
                    .filter(|(_, flag)| flags.contains(*flag))
                    .map(|(name, _)| format!("M_{name}"));
                set.collect::<Vec<_>>().join("|")
            }
        }
    }
}
