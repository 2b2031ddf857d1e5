//! The scripts of the repository, each in a fresh guest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Far more than any script takes, even on a busy machine.
const TIMEOUT: &str = "600s";

fn run(corpus: &Path, memory: &str, vcpus: &str) {
    let output = Command::new(env!("CARGO_BIN_EXE_vmkern"))
        .args(["test", "--timeout", TIMEOUT, "--memory", memory, "--vcpus", vcpus])
        .arg(corpus)
        .stdin(Stdio::null())
        .output()
        .expect("the command can be started");
    assert!(
        output.status.success(),
        "{memory}, {vcpus} CPUs: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/scripts")
}

#[test]
fn every_script_of_the_corpus_holds_in_64_mib() {
    run(&corpus(), "64M", "1");
}

#[test]
fn every_script_of_the_corpus_holds_on_two_and_on_four_cpus() {
    for vcpus in ["2", "4"] {
        run(&corpus(), "64M", vcpus);
    }
}

/// Scripts in subfolders need a certain size of memory; all others do not.
#[test]
fn scripts_that_are_not_about_a_size_of_memory_hold_in_8_mib_and_in_1_gib() {
    let any_size = Path::new(env!("CARGO_TARGET_TMPDIR")).join("any-size");
    // A script may have moved since an earlier run.
    if any_size.exists() {
        fs::remove_dir_all(&any_size).expect("the folder can be emptied");
    }
    fs::create_dir_all(&any_size).expect("the folder can be made");
    for entry in fs::read_dir(corpus()).expect("the corpus is there") {
        let path = entry.expect("the corpus can be read").path();
        if path.is_file() {
            let name = path.file_name().expect("a file has a name");
            fs::copy(&path, any_size.join(name)).expect("the script can be copied");
        }
    }
    for memory in ["8M", "1G"] {
        run(&any_size, memory, "1");
    }
}
