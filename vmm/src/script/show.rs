//! Statements for failure reports: what was called, and which values are worth telling.

use std::fmt::Write as _;

use vmkern_abi::control::MapKind;

use super::ast::{Arg, Call, Expr, MapRef, Term, TermKind};
use super::names::map_name;
use super::outcome::number;
use super::source::Source;
use super::verbs::{FLAGS, Value};

/// The terms of `expr` that a reader would want to know the values of. Random draws are left out: another draw would
/// be another number.
pub(super) fn names<'e>(expr: &'e Expr, into: &mut Vec<&'e Term>) {
    for term in std::iter::once(&*expr.first).chain(expr.rest.iter().map(|(_, term)| term)) {
        match &term.kind {
            TermKind::Number(_) | TermKind::PageSize | TermKind::LoopIndex | TermKind::Rand(..) => {}
            TermKind::Group(inner) => names(inner, into),
            TermKind::Element(_, index) => {
                names(index, into);
                if !draws(index) {
                    into.push(term);
                }
            }
            TermKind::MapField(MapRef::Bound(map), _) if matches!(&map.kind, TermKind::Element(_, index) if draws(index)) =>
                {}
            TermKind::Value(_) | TermKind::Counter(_) | TermKind::MapField(..) => into.push(term),
        }
    }
}

/// Whether `expr` contains a random draw.
fn draws(expr: &Expr) -> bool {
    std::iter::once(&*expr.first).chain(expr.rest.iter().map(|(_, term)| term)).any(|term| match &term.kind {
        TermKind::Rand(..) => true,
        TermKind::Group(inner) | TermKind::Element(_, inner) => draws(inner),
        _ => false,
    })
}

/// The call as C would write it.
pub(super) fn call(what: &Call, values: &[Value], source: &Source) -> String {
    let mut text = format!("{}(", what.verb.name);
    for (index, (arg, value)) in what.args.iter().zip(values).enumerate() {
        if index > 0 {
            text.push_str(", ");
        }
        let _ = match value {
            Value::Map(map) => match arg {
                Arg::Map(MapRef::Bound(term)) => write!(text, "{}", source.text(term.span)),
                _ => write!(text, "{}", map_name(*map)),
            },
            Value::Kind(MapKind::User) => write!(text, "user"),
            Value::Kind(MapKind::System) => write!(text, "system"),
            Value::Thread(thread) => write!(text, "{thread}"),
            Value::Op(_, values) => match arg {
                Arg::Call(inner) => write!(text, "{}", call(inner, values, source)),
                _ => Ok(()),
            },
            Value::Look(look) => write!(text, "{look}"),
            Value::File(name) => write!(text, "{name:?}"),
            Value::Number(value) => write!(text, "{}", number(*value)),
            Value::Zero => write!(text, "zero"),
            Value::Flags(flags) if flags.is_empty() => write!(text, "0"),
            Value::Flags(flags) => {
                let set = FLAGS.iter().filter(|(_, flag)| flags.contains(*flag)).map(|(name, _)| format!("M_{name}"));
                write!(text, "{}", set.collect::<Vec<_>>().join("|"))
            }
        };
    }
    text.push(')');
    text
}
