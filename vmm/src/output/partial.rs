//! Partial files: each grows beside the file that is wanted, and takes its name when it is
//! complete.
//!
//! Its name is the file's, with a dot in front, and with random letters and `.partial` at the end.
//! It is removed when it is dropped, or by [`abandon`] when the process is about to end in another
//! way. A partial file left by a killed process is recognized by its lock, which is no longer held:
//! the next process that makes a partial file for the same name removes it.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::Readers;
use super::error::OutputFault;

const SUFFIX: &str = ".partial";
/// Random letters in a name.
const LETTERS: usize = 6;
/// Bytes of a long name that are kept, to leave room for the rest.
const NAME_MAX: usize = 200;

/// The partial files that exist.
static ALIVE: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Removes the partial files of this process, which is about to end at once. Never waits.
pub fn abandon() {
    if let Ok(alive) = ALIVE.try_lock() {
        for path in &*alive {
            let _ = fs::remove_file(path);
        }
    }
}

/// A partial file.
#[derive(Debug)]
pub(super) struct Partial {
    file: File,
    path: PathBuf,
    wanted: PathBuf,
}

impl Partial {
    /// A partial file that will become `wanted` and replace the file `there`.
    pub(super) fn beside(
        wanted: PathBuf,
        there: Option<Metadata>,
        readers: Readers,
    ) -> Result<Self, OutputFault> {
        let fail = |error| OutputFault::io("create a file in its directory", error);
        let directory = wanted
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let prefix = prefix(wanted.file_name().unwrap_or_default());
        remove_left(directory, &prefix);
        let mode = there.as_ref().map_or(readers.mode(), |_| 0o600);
        let (file, path) = make(directory, &prefix, mode).map_err(fail)?;
        ALIVE.lock().unwrap_or_else(PoisonError::into_inner).push(path.clone());
        let partial = Self { file, path, wanted };
        if let Some(there) = there {
            // The user may not be allowed to give files away; then it stays ours.
            let _ = fchown(&partial.file, Some(there.uid()), Some(there.gid()));
            partial
                .file
                .set_permissions(Permissions::from_mode(there.mode() & 0o7777))
                .map_err(fail)?;
        }
        Ok(partial)
    }

    pub(super) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Renames it to its final name.
    pub(super) fn persist(self) -> io::Result<()> {
        // The drop that follows finds nothing under the old name.
        fs::rename(&self.path, &self.wanted)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        let mut alive = ALIVE.lock().unwrap_or_else(PoisonError::into_inner);
        // This fails, harmlessly, if it was renamed or removed before.
        let _ = fs::remove_file(&self.path);
        alive.retain(|path| *path != self.path);
    }
}

/// The common prefix of the names of partial files for `name`.
fn prefix(name: &OsStr) -> OsString {
    let bytes = name.as_bytes();
    OsString::from_vec([b".", &bytes[..bytes.len().min(NAME_MAX)], b"."].concat())
}

/// A new file, locked for as long as it is open, and its path.
fn make(directory: &Path, prefix: &OsStr, mode: u32) -> io::Result<(File, PathBuf)> {
    loop {
        let mut name = prefix.to_owned();
        name.push(letters());
        name.push(SUFFIX);
        let path = directory.join(name);
        let mut options = OpenOptions::new();
        let file = match options.read(true).write(true).create_new(true).mode(mode).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(error) => return Err(error),
        };
        // On a file system without locks this fails, but then nothing is removed there either.
        let _ = file.lock();
        // Before it was locked, another process may have removed it as a leftover.
        if file.metadata()?.nlink() > 0 {
            return Ok((file, path));
        }
    }
}

/// [`LETTERS`] letters and digits, different at each call.
fn letters() -> OsString {
    const ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    // The hasher's keys are random, and differ at each call.
    let random = RandomState::new().hash_one(std::process::id()).to_le_bytes();
    let letter = |byte: &u8| ALPHABET[usize::from(*byte) % ALPHABET.len()];
    OsString::from_vec(random.iter().take(LETTERS).map(letter).collect())
}

/// Removes the leftovers of killed processes, as far as possible.
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
