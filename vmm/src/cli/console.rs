//! The file for the kernel's log.

use std::io::{self, Write};
use std::path::Path;

use anyhow::Context as _;
use vmkern::output::{Destination, Output, Readers};
use vmkern::script::BAD;

/// Opens the file for the kernel's log, if one was asked for.
///
/// # Errors
/// When it cannot be opened.
pub fn open(path: Option<&Path>) -> anyhow::Result<Option<Box<dyn Write + Send>>> {
    let Some(path) = path else { return Ok(None) };
    let output = Destination::of(path)
        .and_then(|to| to.grows(Readers::Umask))
        .context("cannot write the kernel's log")?;
    Ok(Some(Box::new(Log(output))))
}

/// Waits for room as what is printed does.
struct Log(Output);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes, &mut super::print::go_on).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The faults of the kernel's log in words: why it could not be written, and how much is missing.
pub fn complaints(error: Option<&io::Error>, dropped_lines: u64) -> String {
    let mut text = String::new();
    if let Some(error) = error {
        text.push_str(&format!("{BAD}error:{BAD:#} cannot write the kernel's log: {error}\n"));
    }
    let lines = match dropped_lines {
        0 => return text,
        1 => "1 line is".to_owned(),
        lines => format!("{lines} lines are"),
    };
    text.push_str(&format!(
        "{BAD}warning:{BAD:#} {lines} missing in the kernel's log: there was no room, and no \
         waiting for it\n"
    ));
    text
}
