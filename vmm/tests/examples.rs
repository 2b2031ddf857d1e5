//! Every example in help or in the book runs as printed, and help fits a terminal.
//!
//! An example is a line of a help's `Examples:`, or of an indented or fenced block of the book,
//! that starts `vmkern` at its beginning or after a pipe. It runs in a directory with the files
//! that examples name, and must end with status 0. An example that needs a program that this
//! machine lacks is reported and skipped; under `CI` it fails.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

const SUBCOMMANDS: &[&[&str]] = &[
    &[],
    &["run"],
    &["test"],
    &["check"],
    &["inspect"],
    &["doctor"],
    &["bench"],
    &["bench", "boot"],
    &["bench", "kmem"],
    &["bench", "ring"],
    &["kernel"],
    &["shell"],
    &["help"],
    &["completions"],
    &["man"],
];

/// Seconds after which an example counts as hung: many times what the longest takes on a busy
/// machine.
const LIMIT: &str = "600";

/// The names of scripts in examples.
const SCRIPTS: &[&str] = &["FILE.kmem", "first.kmem", "heap.kmem", "DIR/one.kmem", "DIR/two.kmem"];

/// The schedule in examples.
const SCHEDULE: &str = "[[step]]\nafter = 1\ntarget = \"1M\"\n";

/// Scripts of the corpus for the examples' directory `tests/scripts`: only a few, because other
/// tests run all of them.
const CORPUS: &[&str] = &[
    "first-fit.kmem",
    "inspect.kmem",
    "nofault-panic.kmem",
    "protect.kmem",
    "page-floors.kmem",
    "pageable.kmem",
    "plain-free-wakes-nobody.kmem",
    "rollback.kmem",
    "smallest.kmem",
    "stalls.kmem",
    "two-sleepers.kmem",
    "virtual-time.kmem",
    "wait-for-room.kmem",
    "64M/asked-before-anybody-waits.kmem",
    "64M/half-an-allocation.kmem",
    "64M/nokva-rescue.kmem",
    "64M/vmwait.kmem",
];

const SCRIPT: &str =
    "a = kmem_malloc kmem_map 12K ZERO|NOWAIT\nfill $a 12K 7\nkmem_free kmem_map $a 12K\n";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("vmm lies in the repository").to_owned()
}

fn help(words: &[&str], columns: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_vmkern"))
        .args(words)
        .arg("--help")
        .env("COLUMNS", columns)
        .output()
        .expect("the command can be started");
    assert!(output.status.success(), "{words:?}: {output:?}");
    String::from_utf8(output.stdout).expect("help is UTF-8")
}

/// A directory with the files that examples name.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().expect("a directory can be made"));
        fs::create_dir_all(place.0.path().join("bin")).expect("a directory can be made");
        fs::create_dir_all(place.0.path().join("DIR")).expect("a directory can be made");
        // Directories of a home that examples write to.
        for directory in [
            ".local/share/bash-completion/completions",
            ".local/share/man",
            ".config/fish/completions",
            ".zfunc",
        ] {
            fs::create_dir_all(place.0.path().join(directory)).expect("a directory can be made");
        }
        symlink(env!("CARGO_BIN_EXE_vmkern"), place.0.path().join("bin/vmkern"))
            .expect("a link can be made");
        let scripts = place.0.path().join("tests/scripts");
        fs::create_dir_all(scripts.join("64M")).expect("a directory can be made");
        for name in CORPUS {
            let from = repository().join("tests/scripts").join(name);
            fs::copy(from, scripts.join(name)).expect("a script of the corpus can be copied");
        }
        for name in SCRIPTS {
            fs::write(place.0.path().join(name), SCRIPT).expect("a file can be written");
        }
        fs::write(place.0.path().join("pressure.toml"), SCHEDULE).expect("a file can be written");
        for image in ["guest.img", "before.img", "after.img"] {
            let output = place.sh(&format!("vmkern run --save-dump {image} FILE.kmem"));
            assert!(output.status.success(), "{output:?}");
        }
        place
    }

    /// Runs a shell line, within [`LIMIT`].
    fn sh(&self, line: &str) -> Output {
        let path = std::env::var("PATH").expect("there is a PATH");
        Command::new("timeout")
            .args(["--kill-after=5", LIMIT, "sh", "-c", line])
            .current_dir(&self.0)
            .env("HOME", self.0.path())
            .env("PATH", format!("{}:{path}", self.0.path().join("bin").display()))
            .stdin(Stdio::null())
            .output()
            .expect("a shell can be started")
    }

    /// A program that `line` needs and that is missing.
    fn missing(&self, line: &str) -> Option<&'static str> {
        let absent = |program: &&str| {
            line.contains(*program) && !self.sh(&format!("command -v {program}")).status.success()
        };
        let needs = ["jq", "qemu-system-x86_64"].into_iter().find(absent);
        // `vmkern man` needs no reader of pages by itself.
        needs.or_else(|| Some("man").filter(|_| line.contains("| man")).filter(absent))
    }
}

/// The commands among `lines`, with continued lines joined and comments cut off.
fn commands<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut commands = Vec::new();
    let mut open: Option<String> = None;
    for line in lines {
        let line = line.trim();
        let text = match open.take() {
            Some(begun) => format!("{begun} {line}"),
            None => line.trim_start_matches("$ ").to_owned(),
        };
        if let Some(begun) = text.strip_suffix('\\') {
            open = Some(begun.trim_end().to_owned());
            continue;
        }
        // A line of a Cargo.toml names the crate, not the command.
        let starts = text.starts_with("vmkern ") && !text.starts_with("vmkern = ")
            || text.starts_with("qemu-system")
            || text.contains("| vmkern ");
        if starts && !text.contains("[OPTIONS]") && !text.contains("|---") {
            commands.push(without_comment(&text));
        }
    }
    commands
}

/// A command without its comment, which follows ` #` or two blanks.
fn without_comment(line: &str) -> String {
    let end = [" #", "  "].iter().filter_map(|mark| line.find(mark)).min().unwrap_or(line.len());
    line[..end].trim_end().to_owned()
}

/// The lines of a help after `Examples:`, up to the next paragraph.
fn of_help(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| !line.starts_with("Example"));
    commands(lines.skip(1).take_while(|line| !line.trim().is_empty()))
}

/// The lines of a page's blocks of code.
fn of_page(page: &str) -> Vec<String> {
    let mut fenced = false;
    let lines = page.lines().filter(move |line| {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            return false;
        }
        fenced || line.starts_with("    ")
    });
    commands(lines)
}

fn pages() -> Vec<PathBuf> {
    let mut pages = vec![repository().join("README.md")];
    let docs = fs::read_dir(repository().join("docs")).expect("the book can be read");
    pages.extend(docs.map(|entry| entry.expect("an entry can be read").path()));
    pages.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    pages
}

#[test]
fn every_example_runs_as_it_is_printed() {
    let mut examples = BTreeSet::new();
    for words in SUBCOMMANDS {
        examples.extend(of_help(&help(words, "100")));
    }
    let of_helps = examples.len();
    for page in pages() {
        examples.extend(of_page(&fs::read_to_string(page).expect("a page can be read")));
    }
    assert!(
        of_helps >= 15 && examples.len() >= of_helps + 10,
        "examples are not recognised: {examples:#?}"
    );
    let place = Place::new();
    let mut failures = Vec::new();
    // The kernel must be written before the commands that boot it.
    let (first, rest): (Vec<_>, Vec<_>) =
        examples.iter().partition(|line| line.starts_with("vmkern kernel"));
    for line in first.into_iter().chain(rest) {
        match place.missing(line) {
            Some(program) if std::env::var_os("CI").is_some() => {
                failures.push(format!("{line}\n  needs {program}"))
            }
            Some(program) => eprintln!("left out, as {program} is missing: {line}"),
            None => {
                let output = place.sh(line);
                // QEMU's exit device reports success as 33.
                let wanted = if line.starts_with("qemu") { 33 } else { 0 };
                if output.status.code() != Some(wanted) {
                    failures.push(format!(
                        "{line}\n  {}\n  {}",
                        output.status,
                        String::from_utf8_lossy(&output.stderr)
                    ));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn every_help_has_examples() {
    let of = |words: &[&str]| of_help(&help(words, "100"));
    let without: Vec<_> = SUBCOMMANDS.iter().filter(|words| of(words).is_empty()).collect();
    assert!(without.is_empty(), "{without:?}");
    // Nothing that the command lists is missing here.
    let listed = help(&[], "100");
    let commands = listed.split("Commands:\n").nth(1).expect("it lists them");
    let names = commands.lines().take_while(|line| !line.is_empty());
    for name in names.filter_map(|line| line.strip_prefix("  ")?.split(' ').next()) {
        assert!(name.is_empty() || SUBCOMMANDS.contains(&&[name][..]), "{name}");
    }
}

#[test]
fn help_is_never_wider_than_the_terminal_or_100_columns() {
    for words in SUBCOMMANDS {
        for (columns, limit) in [("100", 100), ("300", 100), ("80", 80)] {
            let text = help(words, columns);
            let wide: Vec<_> = text.lines().filter(|line| line.chars().count() > limit).collect();
            assert!(
                wide.is_empty(),
                "vmkern {} --help on {columns} columns: {wide:#?}",
                words.join(" ")
            );
        }
    }
}

/// A line that wraps on a narrow terminal cannot be copied.
#[test]
fn no_example_is_wider_than_80_columns() {
    for words in SUBCOMMANDS {
        let text = help(words, "100");
        let examples = text
            .lines()
            .skip_while(|line| !line.starts_with("Example"))
            .take_while(|line| !line.is_empty());
        let wide: Vec<_> = examples.filter(|line| line.chars().count() > 80).collect();
        assert!(wide.is_empty(), "vmkern {} --help: {wide:#?}", words.join(" "));
    }
}

#[test]
fn an_example_is_what_stands_before_its_comment() {
    let page = "text\n\n    vmkern run a.kmem   # say\n    $ vmkern check x.img\n    vmkern run \
                [OPTIONS] [FILE]\n\nvmkern is\n";
    assert_eq!(of_page(page), ["vmkern run a.kmem", "vmkern check x.img"]);
    let help = "Examples:\n  vmkern run                take the tour\n  echo 'a b' | vmkern run -v \
                -\n\nExit status";
    assert_eq!(of_help(help), ["vmkern run", "echo 'a b' | vmkern run -v -"]);
}
