//! The command's own documentation: help, version, completions, manual pages, tables of the book.

use std::process::{Command, Output};

fn vmkern(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmkern"));
    command.args(args).env("NO_COLOR", "1").env_remove("CLICOLOR_FORCE");
    command.output().expect("the command can be started")
}

/// The output of a command that succeeds.
#[track_caller]
fn out(args: &[&str]) -> String {
    let output = vmkern(args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).expect("it is UTF-8")
}

#[test]
fn help_knows_the_subcommands_first_and_then_the_verbs() {
    assert_eq!(out(&["help", "run"]), out(&["run", "--help"]));
    assert_eq!(out(&["help", "bench", "boot"]), out(&["bench", "boot", "--help"]));
    // Both a subcommand and a verb.
    assert_eq!(out(&["help", "check"]), out(&["check", "--help"]));
    let text = out(&["help", "kmem_malloc"]);
    assert!(text.starts_with("kmem_malloc MAP SIZE [FLAGS]\n"), "{text}");
    assert!(text.contains("wired memory of kmem_object, zeroed with ZERO only"), "{text}");
    assert!(out(&["help", "malloc"]).contains("not yet of this kernel"));
    let text = out(&["help"]);
    for part in ["repeat COUNT ... end", "kmem_suballoc PARENT SIZE [system]", "v_free_count"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let output = vmkern(&["help", "kmem_maloc"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("did you mean `kmem_malloc`?"));
}

#[test]
fn the_version_names_the_interface_to_the_guest() {
    let text = out(&["--version"]);
    assert!(text.contains(&format!("ABI {}", vmkern::abi::ABI_VERSION)), "{text}");
}

#[test]
fn colours_can_be_chosen() {
    let styled = |args: &[&str]| out(args).contains("\x1b[");
    assert!(!styled(&["help"]) && !styled(&["--color", "never", "help"]));
    assert!(styled(&["help", "--color=always"]) && styled(&["--color", "always", "run", "--help"]));
    let output = vmkern(&["--color", "pink", "help"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn shells_of_the_host_complete_every_subcommand() {
    for shell in ["bash", "zsh", "fish"] {
        let text = out(&["completions", shell]);
        for word in ["doctor", "inspect", "completions"] {
            assert!(text.contains(word), "{shell}: {word}");
        }
    }
}

#[test]
fn shells_of_the_host_offer_what_can_stand_at_each_place_and_nothing_hidden() {
    for shell in ["bash", "zsh", "fish"] {
        let text = out(&["completions", shell]);
        assert!(!text.contains("book"), "{shell}");
        for word in ["map-size", "kern.hz=", "supervisor"] {
            assert!(text.contains(word), "{shell}: {word}");
        }
        // The generator for fish knows no words of positional arguments.
        assert!(shell == "fish" || text.contains("expect"), "{shell}");
    }
    let completed = |words: &[&str]| -> Vec<String> {
        let script = format!(
            "source <({} completions bash); COMP_WORDS=({}); COMP_CWORD={}; \
             _vmkern vmkern \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"; \
             printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            env!("CARGO_BIN_EXE_vmkern"),
            words.join(" "),
            words.len() - 1,
        );
        let output = Command::new("bash").args(["-c", &script]).current_dir("/").output();
        let output = output.expect("bash is there");
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
    };
    for (words, expected) in [
        (&["vmkern", "check", "--only", "map-siz"] as &[&str], "map-size"),
        (&["vmkern", "run", "--set", "kern.h"], "kern.hz="),
        (&["vmkern", "run", "--privilege", "s"], "supervisor"),
        (&["vmkern", "help", "kmem_mal"], "kmem_malloc"),
        (&["vmkern", "run", "--console", "us"], "usr"),
    ] {
        assert_eq!(completed(words), [expected], "{words:?}");
    }
    // A number is not a file.
    assert!(!completed(&["vmkern", "run", "--seed", "us"]).contains(&"usr".to_owned()));
}

#[test]
fn there_is_a_page_for_each_subcommand() {
    assert!(out(&["man"]).starts_with(".ie"));
    let scratch = tempfile::tempdir().expect("a directory can be made");
    let pages = scratch.path().join("man1");
    out(&["man", pages.to_str().expect("the path is UTF-8")]);
    for name in ["vmkern.1", "vmkern-run.1", "vmkern-bench-boot.1"] {
        assert!(pages.join(name).is_file(), "{name}");
    }
}

#[test]
fn the_book_has_a_table_of_each_kind() {
    for (name, part) in [
        ("lines", "| `let NAME = EXPR` |"),
        ("results", "| `null` | null |"),
        ("names", "| `page_size` | 4096 |"),
        ("verbs", "| `verify ADDR SIZE SEED\\|zero` |"),
        ("later-verbs", "`madvise`"),
        ("options", "| `-v`, `--verbose` |"),
        ("tunables", "| `kern.hz` |"),
        ("rules", "| `pte-wired` |"),
        ("statuses", "| 129, 130, 143 |"),
    ] {
        let text = out(&["book", name]);
        assert!(text.contains(part), "{part} is not in {text}");
    }
}
