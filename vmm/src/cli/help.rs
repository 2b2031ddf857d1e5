//! `vmkern help`, and parts that several helps share.

use std::fmt::Write as _;

use clap::{Args, Command, CommandFactory as _};
use vmkern::guest::Tunables;
use vmkern::script::{
    LINES, Line, NAMES, NUMBERS, RESULTS, Status, VERBS, Verb, closest, fail_sites,
};

pub use super::columns::MOST as WIDTH;
use super::columns::{Page, width};

/// Columns of the left one of two.
const LEFT: usize = 34;

const EXAMPLES: &str = "\
Examples:
  vmkern help                     the script language
  vmkern help kmem_malloc         a verb
  vmkern help expect              a keyword
  vmkern help v_free_count        a name
  vmkern help bench boot          a subcommand";

/// Explains a subcommand, a word of the script language, or all of that language.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct HelpArgs {
    /// A subcommand (`run`, `bench boot`), or a verb, a keyword or a name of the script language
    /// (`kmem_malloc`, `expect`, `v_free_count`); without it, the whole language.
    #[arg(value_name = "COMMAND|WORD")]
    words: Vec<String>,
}

/// Runs the subcommand.
pub fn run(args: &HelpArgs) -> Status {
    // 1. The language.
    let Some((first, rest)) = args.words.split_first() else {
        super::print(&language());
        return Status::Ok;
    };
    // 2. What a subcommand says of itself. One that has the name of a verb comes first.
    let command = super::Cli::command();
    let mut found = Some(&command);
    for word in &args.words {
        found = found.and_then(|command| command.find_subcommand(word));
    }
    if found.is_some() {
        let asked = ["vmkern"].into_iter().chain(args.words.iter().map(String::as_str));
        match super::Cli::command().try_get_matches_from(asked.chain(["--help"])) {
            Err(help) => super::print(&help.render().ansi().to_string()),
            Ok(_) => super::complain(&anyhow::anyhow!("`{first}` has no help")),
        }
        return Status::Ok;
    }
    // 3. A word of the language.
    match of_word(first).filter(|_| rest.is_empty()) {
        Some(text) => {
            super::print(&text);
            Status::Ok
        }
        None => unknown(&args.words),
    }
}

/// The subcommands of `command` that are not hidden.
pub fn visible(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|known| !known.is_hide_set())
}

/// Reports that `words` have no help, and suggests the nearest word that has some.
fn unknown(words: &[String]) -> Status {
    let command = super::Cli::command();
    let first = words.first().map_or("", String::as_str);
    let subcommand = closest(first, visible(&command).map(Command::get_name));
    let meant = subcommand.or_else(|| like(first));
    let meant = meant.map_or(String::new(), |name| format!("; did you mean `{name}`?"));
    let shown = vmkern::text::one_line(words.join(" ").as_bytes());
    super::complain(&anyhow::anyhow!(
        "`{shown}` is neither a subcommand nor a word of the script language{meant}"
    ));
    Status::Usage
}

/// The words of the language that [`of_word`] explains.
pub fn language_words() -> impl Iterator<Item = &'static str> {
    let verbs = VERBS.iter().map(|verb| verb.name);
    let keywords = LINES.iter().flat_map(|line| line.words.iter().copied());
    let rows = [&NUMBERS[..], &RESULTS, &NAMES].into_iter().flatten();
    verbs.chain(keywords).chain(rows.flat_map(|(name, _)| row_words(name)))
}

/// A word of the language that is like `word`.
pub fn like(word: &str) -> Option<&'static str> {
    closest(word, language_words())
}

/// The explanation of a verb, a keyword or a name of the language.
pub fn of_word(word: &str) -> Option<String> {
    if let Some(verb) = Verb::named(word) {
        return Some(of_verb(verb));
    }
    if let Some(line) = LINES.iter().find(|line| line.words.contains(&word)) {
        return Some(of_line(line));
    }
    let mut rows = [&NUMBERS[..], &RESULTS, &NAMES].into_iter().flatten();
    let (name, says) = rows.find(|(name, _)| row_words(name).any(|known| known == word))?;
    let mut page = Page::new(width(), LEFT);
    page.row(&name.replace('`', ""), says);
    Some(page.finish())
}

/// The words in the left column of a table: names, without the rest of their forms.
fn row_words(name: &'static str) -> impl Iterator<Item = &'static str> {
    let is_word =
        |word: &&str| word.len() > 1 && word.starts_with(|c: char| c.is_ascii_lowercase());
    name.split('`')
        .skip(1)
        .step_by(2)
        .filter_map(move |code| code.split([' ', '(']).next().filter(is_word))
}

/// The explanation of a verb.
fn of_verb(verb: &Verb) -> String {
    let mut page = Page::new(width(), LEFT);
    page.heading(&verb.signature());
    if !verb.is_offered() {
        page.paragraph(2, "is part of the language, but not yet of this kernel");
        return page.finish();
    }
    page.row("does", verb.does);
    page.row("gives", verb.result);
    for param in verb.params {
        page.row(&param.to_string(), param.says());
    }
    page.finish()
}

/// The explanation of a form of a line.
fn of_line(line: &Line) -> String {
    let mut page = Page::new(width(), LEFT);
    page.heading(&line.form.replace('`', ""));
    page.row("does", line.says);
    for (name, says) in line.parts {
        page.row(&name.replace('`', ""), says);
    }
    page.heading("Example");
    for text in line.example {
        page.line(2, text);
    }
    page.finish()
}

/// The whole language.
pub fn language() -> String {
    let mut page = Page::new(width(), LEFT);
    // 1. Lines, and what they are made of.
    page.paragraph(
        0,
        "A script has one statement a line; # starts a comment. vmkern help WORD explains a verb, \
         a keyword or a name, vmkern --help lists the subcommands.",
    );
    let lines = LINES.map(|line| (line.form, line.says));
    let sections = [
        ("Lines", &lines[..]),
        ("What expect knows", &RESULTS),
        ("Numbers", &NUMBERS),
        ("Names", &NAMES),
    ];
    for (title, rows) in sections {
        page.heading(title);
        for (name, says) in rows {
            page.row(&name.replace('`', ""), says);
        }
    }
    // 2. Verbs, those of later kernels by name alone.
    page.heading("Verbs");
    for verb in VERBS.iter().filter(|verb| verb.is_offered()) {
        page.row(&verb.signature(), verb.does);
    }
    let later: Vec<_> =
        VERBS.iter().filter(|verb| !verb.is_offered()).map(|verb| verb.name).collect();
    page.heading("Not yet of this kernel");
    page.paragraph(2, &later.join(" "));
    page.finish()
}

/// `end`, and behind it the table of exit statuses in one line.
pub fn with_statuses(end: &str) -> String {
    format!("{end}\n\n{}", statuses())
}

/// The table of exit statuses in one line.
pub fn statuses() -> String {
    let rows = Status::TABLE.iter().map(|row| format!("{} {}", row.numbers(" or "), row.brief));
    format!("Exit status: {}.", rows.collect::<Vec<_>>().join("; "))
}

/// The tunables of `--set`, the sites of `--fail`, and `end` behind them.
pub fn with_tunables(end: &str) -> String {
    format!("{}\n\n{}\n\n{end}", tunables(), sites())
}

/// The section that lists the fail points.
fn sites() -> String {
    let list = fail_sites().replace('\n', "\n  ");
    format!(
        "Sites of --fail, with the actions that they take and what failing there means:\n  {list}"
    )
}

/// The section that lists them, a tunable a paragraph.
fn tunables() -> String {
    let mut text = "Tunables of --set, with the least and the greatest value:".to_owned();
    for tunable in Tunables::TABLE {
        let (min, max) = (tunable.range.start(), tunable.range.end());
        let max = if *max == u64::MAX { String::new() } else { max.to_string() };
        let _ = write!(text, "\n  {} {min}..{max}\n      {}", tunable.name, tunable.says);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_language_fits_its_columns() {
        let text = vmkern::text::unstyled(&language());
        for verb in VERBS {
            assert!(text.contains(verb.name), "{} is missing", verb.name);
        }
        for line in text.lines() {
            assert!(line.chars().count() <= WIDTH && !line.contains('`'), "{line}");
        }
    }

    #[test]
    fn each_word_of_the_language_has_an_explanation() {
        for word in language_words() {
            let text = of_word(word).unwrap_or_else(|| panic!("{word} is not explained"));
            assert!(text.contains(word), "{word}: {text}");
        }
        for word in ["intr", "end", "null", "now", "rand", "kmem_alloc", "malloc", "ticks"] {
            assert!(language_words().any(|known| known == word), "{word}");
        }
        assert_eq!(of_word("nonsense"), None);
        assert_eq!(like("exspect"), Some("expect"));
    }

    #[test]
    fn exit_statuses_are_told_in_one_line() {
        let text = statuses();
        assert!(text.starts_with("Exit status: 0 all held; 1 an expectation failed; "), "{text}");
        assert!(text.ends_with("129, 130 or 143 ended by SIGHUP, SIGINT or SIGTERM."), "{text}");
    }
}
