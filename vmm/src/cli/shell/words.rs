//! What the editor of a shell knows of the language: the words that could follow.

use std::cell::Cell;

use rustyline::completion::Completer;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::validate::Validator;
use rustyline::{Context, Helper};
use vmkern::script::{Completion, complete};

/// Words that are the shell's own.
const OWN: [&str; 2] = ["exit", "help"];

/// Completes words, and notes whether anything was typed.
#[derive(Debug, Default)]
pub struct Words {
    /// The names that are bound.
    pub names: Vec<String>,
    /// Whether the line at the prompt has not been empty all the time.
    pub is_begun: Cell<bool>,
}

impl Completer for Words {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        pos: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        let Some(typed) = line.get(..pos) else { return Ok((pos, Vec::new())) };
        let Completion { start, mut words } = complete(typed, &self.names);
        if typed[..start].trim().is_empty() {
            let own = OWN.iter().filter(|word| word.starts_with(&typed[start..]));
            words.extend(own.map(|word| (*word).to_owned()));
        }
        Ok((start, words))
    }
}

/// There are no hints. The editor asks for one after each change of the line.
impl Hinter for Words {
    type Hint = String;

    fn hint(&self, line: &str, _: usize, _: &Context<'_>) -> Option<String> {
        if !line.is_empty() {
            self.is_begun.set(true);
        }
        None
    }
}

impl Highlighter for Words {}
impl Validator for Words {}
impl Helper for Words {}
