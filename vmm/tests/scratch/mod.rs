//! A directory for the files of a test.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

/// A directory that goes away with the value. Its path, and all that is made of it, is UTF-8, as
/// command lines want it.
pub struct Scratch(TempDir);

impl Scratch {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory can be made"))
    }

    /// The directory itself.
    pub fn dir(&self) -> &str {
        self.0.path().to_str().expect("the path is UTF-8")
    }

    /// Where `name` is, or would be, in the directory.
    pub fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.dir())
    }

    /// Makes a file `name`, which may lie in directories below.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        fs::create_dir_all(Path::new(&path).parent().expect("it lies in the directory"))
            .expect("a directory can be made");
        fs::write(&path, content).expect("a file can be written");
        path
    }
}
