//! The statements of keywords: `let`, `assert`, `print` and `expect`.

use std::sync::Arc;

use vmkern_abi::control::KernReturn;

use super::{Above, Parser};
use crate::script::ast::{Compare, Expect, Expected, PrintArg, StmtKind};
use crate::script::diagnostic::Diagnostic;
use crate::script::expr::{self, Blanks, unexpected};
use crate::script::lexer::{Kind, Lexer};
use crate::script::scope::Form;
use crate::script::source::Span;
use crate::script::verbs::{Gives, Verb};
use crate::script::words;
use crate::spelling::closest;

impl Parser {
    pub(super) fn binding(&mut self, lexer: &mut Lexer<'_>, span: Span) -> Result<(), Diagnostic> {
        let head = lexer.next()?;
        let (place, form) = self.place(lexer, &head)?;
        if let Some(verb) = lexer.peek()?.word().and_then(Verb::named) {
            let token = lexer.next()?;
            let message = format!("`let` binds a number, and `{}` is a verb", verb.name);
            return Err(Diagnostic::new(token.span, message, "an expression", token.describe())
                .help(format!(
                    "without `let`: `{} = {} ...`",
                    head.word().unwrap_or("NAME"),
                    verb.name
                )));
        }
        let value = expr::parse(lexer, &self.scope, Blanks::Allowed)?;
        words::end(lexer)?;
        let is_preset =
            form == Form::Single && self.presets.iter().any(|&(name, _)| name == place.name);
        if !is_preset {
            self.scope.bind(place.name, form, Gives::Number);
            self.push(span, StmtKind::Let { place, value });
        }
        Ok(())
    }

    pub(super) fn assertion(
        &mut self,
        lexer: &mut Lexer<'_>,
        span: Span,
    ) -> Result<(), Diagnostic> {
        let left = expr::parse(lexer, &self.scope, Blanks::Allowed)?;
        let token = lexer.next()?;
        let Some(compare) = Compare::ALL.into_iter().find(|compare| token.is(compare.sign()))
        else {
            let error = unexpected(&token, "an operator: == != < <= > >=");
            return Err(if token.is("=") { error.suggest(Some("==")) } else { error });
        };
        let right = expr::parse(lexer, &self.scope, Blanks::Allowed)?;
        words::end(lexer)?;
        self.push(span, StmtKind::Assert { left, compare, right });
        Ok(())
    }

    pub(super) fn print(&mut self, lexer: &mut Lexer<'_>, span: Span) -> Result<(), Diagnostic> {
        let mut args = Vec::new();
        while lexer.peek()?.kind != Kind::End {
            let next = lexer.peek()?.clone();
            args.push(if let Kind::Text(text) = next.kind {
                lexer.next()?;
                PrintArg::Text(text)
            } else if next.word() == Some("hex") {
                lexer.next()?;
                let open = lexer.peek()?;
                if !open.is("(") || open.spaced {
                    return Err(unexpected(open, "`(EXPR)` right behind `hex`"));
                }
                PrintArg::Hex(expr::parse(lexer, &self.scope, Blanks::End)?)
            } else {
                PrintArg::Number(expr::parse(lexer, &self.scope, Blanks::End)?)
            });
        }
        self.push(span, StmtKind::Print(args));
        Ok(())
    }

    pub(super) fn expectation(
        &mut self,
        lexer: &mut Lexer<'_>,
        span: Span,
        word: Span,
        above: Above,
    ) -> Result<(), Diagnostic> {
        let what = self.expected(lexer)?;
        words::end(lexer)?;
        match above {
            Above::Verb => {
                self.push(span, StmtKind::Expect(Arc::new(Expect { span, what })));
                Ok(())
            }
            Above::Wrong => Ok(()),
            Above::Nothing => Err(Diagnostic::new(
                word,
                "`expect` has nothing to judge",
                "a verb just above",
                "`expect`",
            )),
        }
    }

    fn expected(&self, lexer: &mut Lexer<'_>) -> Result<Expected, Diagnostic> {
        // 1. Words.
        const WHAT: &str = "ok, null, blocked, a number, error KERN_* or panic \"TEXT\"";
        let token = lexer.peek()?.clone();
        let simple = match token.word() {
            Some("ok") => Expected::Ok,
            Some("null") => Expected::Null,
            Some("blocked") => Expected::Blocked,
            Some("error") => {
                lexer.next()?;
                return error_name(lexer);
            }
            Some("panic") => {
                lexer.next()?;
                let text = lexer.next()?;
                return match text.kind {
                    Kind::Text(text) => Ok(Expected::Panic(text)),
                    _ => Err(unexpected(&text, "a string: a part of the panic's message")),
                };
            }
            // 2. A number, unless it is a word that was meant for one of those.
            _ => {
                return match expr::parse(lexer, &self.scope, Blanks::Allowed) {
                    Err(error) if error.span == token.span && token.word().is_some() => {
                        let words = ["ok", "null", "blocked", "error", "panic"];
                        let help = closest(token.word().unwrap_or_default(), words);
                        let mut error = Diagnostic { expected: WHAT.to_owned(), ..error };
                        if let Some(word) = help {
                            error = error.suggest(Some(word));
                        }
                        Err(error)
                    }
                    Err(error) if error.span == token.span => {
                        Err(Diagnostic { expected: WHAT.to_owned(), ..error })
                    }
                    other => other.map(Expected::Number),
                };
            }
        };
        // 3. The word itself.
        lexer.next()?;
        Ok(simple)
    }
}

/// The error that `expect error` names.
fn error_name(lexer: &mut Lexer<'_>) -> Result<Expected, Diagnostic> {
    let name = lexer.next()?;
    let word = name.word().unwrap_or_default();
    let error = || {
        let names = KernReturn::ALL.map(KernReturn::name);
        let error = Diagnostic::new(name.span, "unknown error", "a KERN_* name", name.describe());
        let meant = closest(word, names).or_else(|| closest(&format!("KERN_{word}"), names));
        let all = format!("they are {}", names.join(" "));
        if meant.is_some() { error.suggest(meant) } else { error.help(all) }
    };
    KernReturn::from_name(word).map(Expected::Error).ok_or_else(error)
}
