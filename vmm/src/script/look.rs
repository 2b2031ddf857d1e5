//! `inspect WHAT` in a script: what is looked at.

use std::fmt;

use super::ast::{Expr, WhatArg};
use super::diagnostic::Diagnostic;
use super::expr::{self, Blanks, unexpected};
use super::lexer::{Kind, Lexer};
use super::scope::Scope;
use crate::inspect::What;
use crate::spelling::closest;

/// The view of an `inspect`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look {
    /// The guest as it is.
    At(What),
    /// The differences from the dump in this file.
    Since(String),
}

impl fmt::Display for Look {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(what) => what.fmt(f),
            Self::Since(file) => write!(f, "diff {file:?}"),
        }
    }
}

/// The words that can follow `inspect`.
pub(super) const NAMES: [&str; 14] = [
    "summary",
    "maps",
    "map",
    "objects",
    "pages",
    "page",
    "vtop",
    "pagetable",
    "threads",
    "cpus",
    "locks",
    "fail",
    "pressure",
    "diff",
];

/// Parses what follows `inspect`.
pub(super) fn parse(lexer: &mut Lexer<'_>, scope: &Scope) -> Result<WhatArg, Diagnostic> {
    // 1. Views without arguments.
    let token = lexer.next()?;
    let word = token.word().unwrap_or_default();
    Ok(match word {
        "summary" => WhatArg::Plain(What::Summary),
        "maps" => WhatArg::Plain(What::Maps),
        "objects" => WhatArg::Plain(What::Objects),
        "pages" => WhatArg::Plain(What::Pages),
        "threads" => WhatArg::Plain(What::Threads),
        "cpus" => WhatArg::Plain(What::Cpus),
        "locks" => WhatArg::Plain(What::Locks),
        "fail" => WhatArg::Plain(What::Fail),
        "pressure" => WhatArg::Plain(What::Pressure),
        // 2. Views of one thing.
        "map" => WhatArg::Map(expr::map(lexer, scope)?),
        "page" => WhatArg::Page(expr::parse(lexer, scope, Blanks::End)?),
        "vtop" => WhatArg::Vtop(expr::parse(lexer, scope, Blanks::End)?),
        "pagetable" => WhatArg::PageTable(range(lexer, scope)?),
        "diff" => {
            let rest = lexer.rest();
            if rest.kind == Kind::End {
                return Err(Diagnostic::new(
                    rest.span,
                    "`inspect diff` lacks an argument",
                    "FILE",
                    rest.describe(),
                ));
            }
            WhatArg::Diff(lexer.file()?)
        }
        // 3. An unknown view: advice by the known names.
        _ => {
            let message = format!("{} cannot be inspected", token.describe());
            let error = Diagnostic::new(
                token.span,
                message,
                format!("{}, diff FILE", What::usages().join(", ")),
                word,
            );
            return Err(error.suggest(closest(word, NAMES)));
        }
    })
}

/// Nothing, or `START..END`, with a blank in place of the dots too.
fn range(lexer: &mut Lexer<'_>, scope: &Scope) -> Result<Option<(Expr, Expr)>, Diagnostic> {
    if lexer.peek()?.kind == Kind::End {
        return Ok(None);
    }
    let start = expr::parse(lexer, scope, Blanks::End)?;
    if lexer.accept("..")?.is_none() && lexer.peek()?.kind == Kind::End {
        return Err(unexpected(lexer.peek()?, "`..` and the end of the range"));
    }
    Ok(Some((start, expr::parse(lexer, scope, Blanks::End)?)))
}

impl WhatArg {
    /// The numbers in it.
    pub(super) fn numbers(&self) -> impl Iterator<Item = &Expr> {
        let (first, second) = match self {
            Self::Page(expr) | Self::Vtop(expr) => (Some(expr), None),
            Self::PageTable(Some((start, end))) => (Some(start), Some(end)),
            Self::Plain(_) | Self::Map(_) | Self::PageTable(None) | Self::Diff(_) => (None, None),
        };
        first.into_iter().chain(second)
    }
}
