//! `vmkern help`, and parts that several helps share.

use std::fmt::Write as _;

use clap::{Args, CommandFactory as _};
use vmkern::guest::Tunables;
use vmkern::script::{FAINT, LINES, NAMES, NUMBERS, RESULTS, STRONG, Status, VERBS, Verb, closest};

/// Columns of a help at most; on a narrower terminal it is as wide as that.
pub const WIDTH: usize = 100;

/// Columns of the left one of two.
const LEFT: usize = 34;

/// Explains a subcommand, a verb of the script language, or all of that language.
#[derive(Debug, Args)]
pub struct HelpArgs {
    /// A subcommand (`run`, `bench boot`) or a verb (`kmem_malloc`); without it, the whole
    /// language.
    #[arg(value_name = "COMMAND|VERB")]
    words: Vec<String>,
}

/// Runs the subcommand.
pub fn run(args: &HelpArgs) -> Status {
    let Some((first, rest)) = args.words.split_first() else {
        super::print(&language());
        return Status::Ok;
    };
    // Subcommands come first, as they did before there were verbs.
    let command = super::Cli::command();
    let mut found = Some(&command);
    for word in &args.words {
        found = found.and_then(|command| command.find_subcommand(word));
    }
    if found.is_none() {
        return no_subcommand(first, rest);
    }
    // What the subcommand says of itself.
    let asked = ["vmkern"].into_iter().chain(args.words.iter().map(String::as_str));
    match super::Cli::command().try_get_matches_from(asked.chain(["--help"])) {
        Err(help) => super::print(&help.render().ansi().to_string()),
        Ok(_) => super::complain(&anyhow::anyhow!("`{first}` has no help")),
    }
    Status::Ok
}

/// Explains a verb, or says what there is.
fn no_subcommand(first: &str, rest: &[String]) -> Status {
    if let (Some(verb), []) = (Verb::named(first), rest) {
        super::print(&of_verb(verb));
        return Status::Ok;
    }
    let words: Vec<&str> = [first].into_iter().chain(rest.iter().map(String::as_str)).collect();
    let command = super::Cli::command();
    let subcommands: Vec<String> =
        command.get_subcommands().map(|known| known.get_name().to_owned()).collect();
    let known = subcommands.iter().map(String::as_str).chain(VERBS.iter().map(|verb| verb.name));
    let meant =
        closest(first, known).map_or(String::new(), |name| format!("; did you mean `{name}`?"));
    let shown = vmkern::text::one_line(words.join(" ").as_bytes());
    super::complain(&anyhow::anyhow!("`{shown}` is neither a subcommand nor a verb{meant}"));
    Status::Usage
}

/// In a shell: explains a verb, or the language.
pub fn of_the_language(word: Option<&str>) {
    match word {
        None => super::print(&language()),
        Some(word) => match Verb::named(word) {
            Some(verb) => super::print(&of_verb(verb)),
            None => {
                no_subcommand(word, &[]);
            }
        },
    }
}

/// What there is to say about a verb.
fn of_verb(verb: &Verb) -> String {
    let mut text = format!("{STRONG}{}{STRONG:#}\n", verb.signature());
    if !verb.is_offered() {
        text.push_str("  is part of the language, but not yet of this kernel\n");
        return text;
    }
    row(&mut text, "does", verb.does);
    row(&mut text, "gives", verb.result);
    for param in verb.params {
        row(&mut text, &param.to_string(), param.says());
    }
    text
}

/// The whole language.
fn language() -> String {
    let mut text = String::new();
    wrapped(
        &mut text,
        "",
        "A script has one statement a line; # starts a comment. vmkern help VERB explains a verb, \
         vmkern --help lists the subcommands.",
    );
    text.push('\n');
    section(&mut text, "Lines", &LINES);
    section(&mut text, "What expect knows", &RESULTS);
    section(&mut text, "Numbers", &NUMBERS);
    section(&mut text, "Names", &NAMES);
    let _ = write!(text, "\n{STRONG}Verbs{STRONG:#}\n");
    for verb in VERBS.iter().filter(|verb| verb.is_offered()) {
        row(&mut text, &verb.signature(), verb.does);
    }
    let later: Vec<_> =
        VERBS.iter().filter(|verb| !verb.is_offered()).map(|verb| verb.name).collect();
    let _ = write!(text, "\n{STRONG}Not yet of this kernel{STRONG:#}\n");
    wrapped(&mut text, "  ", &later.join(" "));
    text.push('\n');
    text
}

fn section(text: &mut String, title: &str, rows: &[(&str, &str)]) {
    let _ = write!(text, "\n{STRONG}{title}{STRONG:#}\n");
    for (name, says) in rows {
        row(text, &name.replace('`', ""), says);
    }
}

/// A row of two columns, the left one alone on its line where it is too wide.
fn row(text: &mut String, left: &str, says: &str) {
    let pad = " ".repeat(LEFT);
    let _ = write!(text, "  {FAINT}");
    wrapped(text, "  ", left);
    let _ = write!(text, "{FAINT:#}");
    let used = 2 + left.chars().count();
    if used + 2 > LEFT {
        text.push('\n');
        text.push_str(&pad);
    } else {
        text.push_str(&" ".repeat(LEFT - used));
    }
    wrapped(text, &pad, &unlinked(says));
    text.push('\n');
}

/// Adds `words`, whose lines after the first begin with `pad`.
fn wrapped(text: &mut String, pad: &str, words: &str) {
    let mut column = pad.len();
    if text.ends_with('\n') {
        text.push_str(pad);
    }
    for (index, word) in words.split_whitespace().enumerate() {
        let len = word.chars().count();
        if index > 0 && column + 1 + len > WIDTH {
            text.push('\n');
            text.push_str(pad);
            column = pad.len();
        } else if index > 0 {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += len;
    }
}

/// Markdown without its links and marks of code.
fn unlinked(markdown: &str) -> String {
    let mut text = markdown.replace('`', "");
    while let Some((before, label, after)) = link(&text) {
        text = format!("{before}{label}{after}");
    }
    text
}

/// The first link: what stands before it, its label, and what stands behind it.
fn link(text: &str) -> Option<(&str, &str, &str)> {
    let (before, rest) = text.split_once('[')?;
    let (label, rest) = rest.split_once("](")?;
    let (_, after) = rest.split_once(')')?;
    Some((before, label, after))
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

/// What a help ends with, behind the tunables of `--set`.
pub fn with_tunables(end: &str) -> String {
    format!("{}\n\n{end}", tunables())
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
    fn links_lose_their_targets() {
        assert_eq!(unlinked("an [image](image.md) of `x[1]`"), "an image of x[1]");
        assert_eq!(unlinked("[`a b`](c.md) and [d](e)"), "a b and d");
    }

    #[test]
    fn exit_statuses_are_told_in_one_line() {
        let text = statuses();
        assert!(text.starts_with("Exit status: 0 all held; 1 an expectation failed; "), "{text}");
        assert!(text.ends_with("129, 130 or 143 ended by SIGHUP, SIGINT or SIGTERM."), "{text}");
    }
}
