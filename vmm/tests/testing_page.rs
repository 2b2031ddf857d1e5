//! The page "Testing with vmkern": its project is the one beside this file, to the letter, and it
//! builds and passes where somebody else's project would.

mod scratch;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use scratch::Scratch;

/// What the project's path to this crate is on the page.
const ON_THE_PAGE: &str = "path = \"../vmkern/vmm\"";
/// What it is in the project.
const IN_THE_PROJECT: &str = "path = \"../..\"";
/// The files that the page shows.
const SHOWN: [&str; 2] = ["Cargo.toml", "tests/kmem.rs"];
/// The files that it only names.
const NAMED: [&str; 1] = ["scripts/first-fit.kmem"];

fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn project() -> PathBuf {
    package().join("tests/testing-project")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The blocks of the page, each with the file that it is of.
fn blocks(page: &str) -> Vec<(String, String)> {
    let mut blocks: Vec<(String, String)> = Vec::new();
    let mut file = None;
    for line in page.lines() {
        if let Some(name) = line.strip_prefix("<!-- of: ") {
            file = Some(name.trim_end_matches(" -->").to_owned());
            blocks.push((name.trim_end_matches(" -->").to_owned(), String::new()));
        } else if file.is_some() && (line.is_empty() || line.starts_with("    ")) {
            let (_, text) = blocks.last_mut().expect("a block has begun");
            text.push_str(line.strip_prefix("    ").unwrap_or(line));
            text.push('\n');
        } else {
            assert!(!line.starts_with("    "), "a block that says not of which file it is: {line}");
            file = None;
        }
    }
    blocks
}

#[test]
fn the_page_shows_the_project_that_is_tested() {
    let page = read(&package().join("../docs/testing.md"));
    let blocks = blocks(&page);
    for name in SHOWN {
        let file = read(&project().join(name)).replace(IN_THE_PROJECT, ON_THE_PAGE);
        let of_file = blocks.iter().filter(|(of, _)| of == name);
        let shown: Vec<&str> = of_file.map(|(_, text)| text.trim_matches('\n')).collect();
        assert_eq!(shown.join("\n\n").trim_end(), file.trim_end(), "{name}");
    }
    for (name, _) in &blocks {
        assert!(SHOWN.contains(&&**name), "{name} is not compared");
    }
    for name in NAMED {
        assert!(page.contains(name), "{name} is not on the page");
    }
}

/// Copies the project to a place outside of this workspace.
fn copy(scratch: &Scratch) {
    for name in SHOWN.into_iter().chain(NAMED) {
        let path = format!("path = {:?}", package());
        scratch.file(name, read(&project().join(name)).replace(IN_THE_PROJECT, &path));
    }
    // The versions of this workspace, which are there without a network.
    scratch.file("Cargo.lock", read(&package().join("../Cargo.lock")));
}

#[test]
fn the_project_of_the_page_builds_without_the_command_and_passes() {
    let scratch = Scratch::new();
    copy(&scratch);
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["test", "--offline", "--color", "never"]).current_dir(scratch.dir());
    // What is built stays for the next time. The kernel is the one that is built already.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("testing-project");
    cargo.env("CARGO_TARGET_DIR", target);
    cargo.env("VMKERN_KERNEL_IMAGE", env!("VMKERN_KERNEL_ELF"));
    cargo.env("CARGO_PROFILE_DEV_DEBUG", "0").env("CARGO_INCREMENTAL", "0");
    let output = cargo.output().expect("cargo can be started");
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    let tests = read(&project().join("tests/kmem.rs")).matches("#[test]").count();
    assert!(out.contains(&format!("{tests} passed; 0 failed")), "{out}\n{err}");
}
