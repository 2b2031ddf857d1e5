//! The scripts of the repository, each in a fresh guest.

use std::path::Path;
use std::process::{Command, Stdio};

#[test]
fn every_script_of_the_corpus_holds_whatever_the_size_of_memory() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/scripts");
    for memory in ["8M", "64M", "1G"] {
        let output = Command::new(env!("CARGO_BIN_EXE_vmkern"))
            .args(["test", "--memory", memory])
            .arg(&corpus)
            .stdin(Stdio::null())
            .output()
            .expect("the command can be started");
        assert!(output.status.success(), "{memory}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
