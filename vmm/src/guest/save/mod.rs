//! Writing a guest's dump to a file, a device or a pipe.
//!
//! A file appears complete or not at all ([`Destination::whole`]): an error, an interruption or a
//! full disk leaves no partial dump, and keeps an existing file.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::handle::Guest;
use super::live::Hold;
use crate::dump::{self, About, Saved, Saving};
use crate::inspect::{InspectError, Source};
use crate::output::{Destination, GoOn, Output, OutputError, Readers};
use crate::text::name;

/// A dump cannot be written.
#[derive(Error)]
#[non_exhaustive]
pub enum SaveError {
    /// The file cannot be written. Nothing is left behind, and an existing file is unchanged.
    #[error("memory dump `{}`: cannot {operation}: {source}{}", name(path), room(*.needed))]
    Io {
        /// The file.
        path: PathBuf,
        /// The operation that failed.
        operation: &'static str,
        /// Bytes that the dump needs on the disk, if the disk is full.
        needed: Option<u64>,
        /// Why it failed.
        source: io::Error,
    },
    /// Nothing can be written to this path. It is unchanged.
    #[error("memory dump {0}")]
    Output(#[from] OutputError),
    /// The guest cannot be read.
    #[error(transparent)]
    Source(#[from] InspectError),
    /// The caller ended it. No file is left behind.
    #[error("interrupted")]
    Interrupted,
}

vmkern_inspect::debug_as_printed!(SaveError);

fn room(needed: Option<u64>) -> String {
    needed.map_or(String::new(), |bytes| format!(" (it takes {} MiB)", bytes.div_ceil(1 << 20)))
}

impl dump::Sink for Output {
    fn write(&mut self, bytes: &[u8], go_on: GoOn<'_>) -> io::Result<()> {
        Output::write(self, bytes, go_on)
    }

    fn skip(&mut self, bytes: u64, go_on: GoOn<'_>) -> io::Result<()> {
        Output::skip(self, bytes, go_on)
    }
}

/// Writes a dump of `source` to `to`. It reports to `progress` from time to time, which may end it.
pub(crate) fn save(
    source: &dyn Source,
    to: Destination,
    about: &About,
    progress: &mut dyn FnMut(Saving) -> ControlFlow<()>,
) -> Result<Saved, SaveError> {
    let path = to.path().to_path_buf();
    let mut file = to.whole(Readers::Owner)?;
    let failed = |operation: &'static str, needed: Option<u64>, source: io::Error| SaveError::Io {
        path: path.clone(),
        operation,
        needed,
        source,
    };
    let saved = dump::save(source, &mut file, about, progress).map_err(|error| match error {
        dump::SaveError::Write { needed, source } => failed("write it", needed, source),
        dump::SaveError::Source(error) => SaveError::Source(error),
        dump::SaveError::Interrupted => SaveError::Interrupted,
    })?;
    file.finish().map_err(|error| {
        let needed = (error.kind() == io::ErrorKind::StorageFull).then_some(saved.stored);
        failed("give it its name", needed, error)
    })?;
    Ok(saved)
}

impl Guest {
    /// Writes a dump of this guest's memory and CPUs to `path`: a new file, which replaces an
    /// existing one, a device, a FIFO, or `-` for standard output. The guest is held while it is
    /// written. Also works on a dead guest: the dump then shows it at its death.
    ///
    /// # Errors
    /// See [`SaveError`].
    pub fn save_dump(&self, path: impl AsRef<Path>) -> Result<Saved, SaveError> {
        self.save_dump_to(Destination::of_bytes(path)?, "", &mut |_| ControlFlow::Continue(()))
    }

    /// As [`Guest::save_dump`], to an open destination; the dump names `program` as the guest's
    /// program. It reports to `progress` at each MiB, and from time to time while there is no room;
    /// [`ControlFlow::Break`] ends it.
    ///
    /// # Errors
    /// See [`SaveError`].
    // For the command, which opens the destination before the guest runs.
    #[doc(hidden)]
    pub fn save_dump_to(
        &self,
        to: Destination,
        program: &str,
        progress: &mut dyn FnMut(Saving) -> ControlFlow<()>,
    ) -> Result<Saved, SaveError> {
        let source = self.live(Hold::Yes).map_err(InspectError::from)?;
        let about = About { program: program.to_owned(), build_id: self.kernel().build_id() };
        save(&source, to, &about, progress)
    }
}

#[cfg(test)]
mod tests;
