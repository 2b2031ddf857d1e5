//! A directory for the files of a test.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

/// A directory that is removed with the value. Its path, and every path made from it, is UTF-8, as
/// command lines require.
pub struct Scratch(TempDir);

impl Scratch {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory can be made"))
    }

    /// The directory itself.
    pub fn dir(&self) -> &str {
        self.0.path().to_str().expect("the path is UTF-8")
    }

    /// The path of `name` in the directory, whether it exists or not.
    pub fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.dir())
    }

    /// Creates a file `name`, which may include subdirectories.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        fs::create_dir_all(Path::new(&path).parent().expect("it lies in the directory"))
            .expect("a directory can be made");
        fs::write(&path, content).expect("a file can be written");
        path
    }
}
