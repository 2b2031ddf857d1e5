//! Writing a guest's dump to a file, a device or a pipe.
//!
//! A file appears whole or not at all ([`Destination::whole`]): an error, an interruption or a full
//! disk leaves neither a half dump nor takes away what was there.

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
    /// The file cannot be written. None is left behind, and one of the same name is as it was.
    #[error("memory dump `{}`: cannot {operation}: {source}{}", name(path), room(*.needed))]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done.
        operation: &'static str,
        /// Bytes that the dump takes on the disk, where the disk is full.
        needed: Option<u64>,
        /// Why it failed.
        source: io::Error,
    },
    /// It cannot be written there at all. What is there is as it was.
    #[error("memory dump {0}")]
    Output(#[from] OutputError),
    /// The guest cannot be read.
    #[error(transparent)]
    Source(#[from] InspectError),
    /// Somebody wanted it to end. No file is left behind.
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

/// Writes a dump of `source` to `to`. `progress` is told now and then how far it is, and may end
/// it.
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
    /// Writes a dump of this guest's memory and CPUs to `path`: to a new file, in place of one that
    /// is there, into a device or a FIFO, or, as `-`, to standard output. The guest is held
    /// meanwhile. Works on a dead guest too: the dump shows it as it died.
    ///
    /// # Errors
    /// See [`SaveError`].
    pub fn save_dump(&self, path: impl AsRef<Path>) -> Result<Saved, SaveError> {
        self.save_dump_to(Destination::of_bytes(path)?, "", &mut |_| ControlFlow::Continue(()))
    }

    /// As [`Guest::save_dump`], to what is known already; the dump says that the guest ran
    /// `program`. `progress` is told how far it is at each MiB, and now and then while there is no
    /// room, and ends it by [`ControlFlow::Break`].
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
