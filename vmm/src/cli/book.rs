//! `vmkern book`, hidden: the tables of the book in Markdown. `scripts/book.sh` puts them between
//! their marks.

use clap::{Args, CommandFactory as _, ValueEnum};
use vmkern::check::{Group, rules};
use vmkern::guest::{FailAction, FailSite, Tunables};
use vmkern::script::{LINES, NAMES, RESULTS, Status, VERBS};

use super::help;

/// Prints a table of the book.
#[derive(Debug, Args)]
pub struct BookArgs {
    table: Table,
}

/// The tables.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Table {
    /// Lines of a script.
    Lines,
    /// Results that `expect` knows.
    Results,
    /// Names in expressions.
    Names,
    /// Verbs that the kernel offers.
    Verbs,
    /// Verbs that it does not offer yet.
    LaterVerbs,
    /// Options of `vmkern run`.
    Options,
    /// Kernel tunables.
    Tunables,
    /// Sites of fail points.
    FailSites,
    /// Rules of the check, a table for each group.
    Rules,
    /// Exit statuses.
    Statuses,
    /// The same in one line.
    StatusLine,
}

/// Runs the subcommand.
pub fn run(args: &BookArgs) -> Status {
    let pairs = |rows: &[(&str, &str)]| {
        rows.iter().map(|(left, right)| vec![(*left).to_owned(), (*right).to_owned()]).collect()
    };
    super::print(&match args.table {
        Table::Lines => {
            table(&["line", "meaning"], pairs(&LINES.map(|line| (line.form, line.says))))
        }
        Table::Results => table(&["`expect`", "holds when the result was"], pairs(&RESULTS)),
        Table::Names => table(&["name", "value"], pairs(&NAMES)),
        Table::Verbs => table(&["verb", "what it does", "result"], verbs()),
        Table::LaterVerbs => later_verbs(),
        Table::Options => table(&["option", "meaning"], options()),
        Table::Tunables => table(&["tunable", "meaning", "values"], tunables()),
        Table::FailSites => table(
            &["site", "actions besides `off` and `print`", "failing there means"],
            fail_sites(),
        ),
        Table::Rules => rule_tables(),
        Table::StatusLine => help::statuses() + "\n",
        Table::Statuses => table(&["status", "meaning"], statuses()),
    });
    Status::Ok
}

/// A table of Markdown.
fn table(head: &[&str], rows: Vec<Vec<String>>) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let head: Vec<String> = head.iter().map(|&cell| cell.to_owned()).collect();
    let mut text = line(&head) + &format!("|{}\n", "---|".repeat(head.len()));
    for row in rows {
        text.push_str(&line(&row));
    }
    text
}

/// `text` as code within a table.
fn code(text: &str) -> String {
    format!("`{}`", text.replace('|', "\\|"))
}

fn verbs() -> Vec<Vec<String>> {
    let offered = VERBS.iter().filter(|verb| verb.is_offered());
    let row = |verb: &vmkern::script::Verb| {
        vec![code(&verb.signature()), verb.does.to_owned(), verb.result.to_owned()]
    };
    offered.map(row).collect()
}

fn later_verbs() -> String {
    let later = VERBS.iter().filter(|verb| !verb.is_offered());
    let names: Vec<String> = later.map(|verb| code(verb.name)).collect();
    format!("{}\n", names.join(" "))
}

fn options() -> Vec<Vec<String>> {
    let mut root = super::Cli::command();
    root.build();
    let Some(run) = root.find_subcommand("run") else { return Vec::new() };
    let shown = run.get_arguments().filter(|option| {
        !option.is_hide_set() && !matches!(option.get_long(), Some("help" | "version") | None)
    });
    let row = |option: &clap::Arg| {
        let short = option.get_short().map_or(String::new(), |short| format!("`-{short}`, "));
        let takes = option.get_action().takes_values();
        let value = option.get_value_names().filter(|_| takes).and_then(|names| names.first());
        let value = value.map_or(String::new(), |name| format!(" {name}"));
        let long = format!("--{}{value}", option.get_long().unwrap_or_default());
        let says = option.get_help().map(ToString::to_string).unwrap_or_default();
        vec![short + &code(&long), says.replace('|', "\\|")]
    };
    shown.map(row).collect()
}

fn tunables() -> Vec<Vec<String>> {
    let row = |tunable: &vmkern::abi::boot::Tunable| {
        let (min, max) = (tunable.range.start(), tunable.range.end());
        let max = if *max == u64::MAX { String::new() } else { format!(" to {max}") };
        let says = tunable.says.split_whitespace().collect::<Vec<_>>().join(" ");
        vec![
            code(tunable.name),
            says,
            format!("{min}{}", if max.is_empty() { " up" } else { &max }),
        ]
    };
    Tunables::TABLE.iter().map(row).collect()
}

fn fail_sites() -> Vec<Vec<String>> {
    let row = |site: FailSite| {
        let takes = FailAction::ALL.into_iter().filter(|&action| {
            site.takes(action) && !matches!(action, FailAction::Off | FailAction::Print)
        });
        let takes: Vec<String> = takes.map(|action| code(action.name())).collect();
        vec![code(site.name()), takes.join(" "), site.effect().to_owned()]
    };
    FailSite::ALL.map(row).to_vec()
}

/// A heading and a table for each group of rules.
fn rule_tables() -> String {
    let mut text = String::new();
    for group in Group::ALL {
        let of_group = rules().filter(|rule| rule.group == group);
        let rows = of_group.map(|rule| vec![code(rule.id), rule.says.to_owned()]).collect();
        text += &format!("### {}\n\n{}\n", group.title(), table(&["rule", "holds when"], rows));
    }
    text
}

fn statuses() -> Vec<Vec<String>> {
    Status::TABLE.iter().map(|row| vec![row.numbers(", "), row.says.to_owned()]).collect()
}
