//! A file that grows beside the one that is wanted, and takes its name when it is whole.
//!
//! Its name is that of the file, with a dot before it and random letters and `.partial` behind it.
//! It goes away by itself when it is dropped, and by [`abandon`] when the process is about to end
//! in another way. One that a killed process left is known by its lock, which nobody holds any
//! more: whoever next makes such a file for the same name removes it.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tempfile::NamedTempFile;

use super::Readers;
use super::error::OutputFault;

const SUFFIX: &str = ".partial";
/// Random letters in a name.
const LETTERS: usize = 6;
/// Bytes of a long name that are kept, so that there is room for the rest.
const NAME_MAX: usize = 200;

/// Those that there are.
static ALIVE: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Removes the partial files of this process, which is about to end at once. Waits for nobody.
pub fn abandon() {
    if let Ok(alive) = ALIVE.try_lock() {
        for path in &*alive {
            let _ = fs::remove_file(path);
        }
    }
}

/// A file on its way.
#[derive(Debug)]
pub(super) struct Partial {
    file: Option<NamedTempFile>,
    path: PathBuf,
    wanted: PathBuf,
}

impl Partial {
    /// One that is to be `wanted`, in place of what is `there`.
    pub(super) fn beside(
        wanted: PathBuf,
        there: Option<Metadata>,
        readers: Readers,
    ) -> Result<Self, OutputFault> {
        let fail = |error| OutputFault::io("make a file in its directory", error);
        let directory = wanted
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let prefix = prefix(wanted.file_name().unwrap_or_default());
        remove_left(directory, &prefix);
        let file = make(directory, &prefix, there.as_ref().map_or(readers.mode(), |_| 0o600))
            .map_err(fail)?;
        if let Some(there) = there {
            // Not everybody may give files away; then it is ours.
            let _ = fchown(file.as_file(), Some(there.uid()), Some(there.gid()));
            file.as_file()
                .set_permissions(Permissions::from_mode(there.mode() & 0o7777))
                .map_err(fail)?;
        }
        let path = file.path().to_path_buf();
        ALIVE.lock().unwrap_or_else(PoisonError::into_inner).push(path.clone());
        Ok(Self { file: Some(file), path, wanted })
    }

    pub(super) fn file(&mut self) -> &mut File {
        self.file.as_mut().expect("only `persist` takes it, which takes the whole").as_file_mut()
    }

    /// Gives it its name.
    pub(super) fn persist(mut self) -> io::Result<()> {
        match self.file.take() {
            Some(file) => file.persist(&self.wanted).map(drop).map_err(|error| error.error),
            None => Ok(()),
        }
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        drop(self.file.take());
        ALIVE.lock().unwrap_or_else(PoisonError::into_inner).retain(|path| *path != self.path);
    }
}

/// What the names of partial files of `name` begin with.
fn prefix(name: &OsStr) -> OsString {
    let bytes = name.as_bytes();
    OsString::from_vec([b".", &bytes[..bytes.len().min(NAME_MAX)], b"."].concat())
}

/// A new file, locked for as long as it is open.
fn make(directory: &Path, prefix: &OsStr, mode: u32) -> io::Result<NamedTempFile> {
    loop {
        let file = tempfile::Builder::new()
            .prefix(prefix)
            .suffix(SUFFIX)
            .rand_bytes(LETTERS)
            .permissions(Permissions::from_mode(mode))
            .tempfile_in(directory)?;
        // A file system without locks cannot tell, and nothing is removed from it either.
        let _ = file.as_file().lock();
        // Somebody may have taken it for one that was left, before it was locked.
        if file.as_file().metadata()?.nlink() > 0 {
            return Ok(file);
        }
    }
}

/// Removes what killed processes have left. What cannot be removed stays.
fn remove_left(directory: &Path, prefix: &OsStr) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    let is_partial = |name: &OsStr| {
        let rest = name.as_bytes().strip_prefix(prefix.as_bytes());
        let letters = rest.and_then(|rest| rest.strip_suffix(SUFFIX.as_bytes()));
        letters.is_some_and(|letters| {
            letters.len() == LETTERS && letters.iter().all(u8::is_ascii_alphanumeric)
        })
    };
    for path in
        entries.flatten().filter(|entry| is_partial(&entry.file_name())).map(|entry| entry.path())
    {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY);
        let Ok(file) = options.open(&path) else { continue };
        if file.metadata().is_ok_and(|found| found.is_file()) && file.try_lock().is_ok() {
            let _ = fs::remove_file(&path);
        }
    }
}
