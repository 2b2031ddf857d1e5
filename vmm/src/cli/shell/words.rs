//! What the editor of a shell knows of the language: the words that could follow.

use rustyline::completion::Completer;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::validate::Validator;
use rustyline::{Context, Helper};
use vmkern::script::{Completion, complete};

/// Words that are the shell's own.
const OWN: [&str; 2] = ["exit", "help"];

/// Completes words.
#[derive(Debug, Default)]
pub struct Words {
    /// The names that are bound.
    pub names: Vec<String>,
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

impl Hinter for Words {
    type Hint = String;
}

impl Highlighter for Words {}
impl Validator for Words {}
impl Helper for Words {}
