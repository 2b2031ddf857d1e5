//! Which parts of a dump's file hold bytes: the rest are holes, zeros that take no room on the
//! disk.
//!
//! A sparse file costs nothing, however long it is. Only the bytes that were written are examined.

use std::fs::File;

use vmkern_abi::addr::PAGE_SIZE;

use self::seek::{data, hole};
use super::Run;

/// Where bytes and holes begin, as Linux reports it.
#[cfg(target_os = "linux")]
mod seek {
    use std::fs::File;

    use rustix::fs::{SeekFrom, seek};
    use rustix::io::Errno;

    /// Where the next bytes begin, from `from` on; `None` when there are no more.
    pub fn data(file: &File, from: u64) -> Result<Option<u64>, Errno> {
        next(file, SeekFrom::Data(from))
    }

    /// Where the next hole begins, from `from` on. The end of the file is one.
    pub fn hole(file: &File, from: u64) -> Result<Option<u64>, Errno> {
        next(file, SeekFrom::Hole(from))
    }

    fn next(file: &File, from: SeekFrom) -> Result<Option<u64>, Errno> {
        match seek(file, from) {
            Ok(at) => Ok(Some(at)),
            Err(Errno::NXIO) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Other systems do not report it, and all of the file counts as bytes.
#[cfg(not(target_os = "linux"))]
mod seek {
    use std::fs::File;

    /// Where the next bytes begin: here.
    pub fn data(_: &File, from: u64) -> Result<Option<u64>, ()> {
        Ok(Some(from))
    }

    /// Where the next hole begins: unknown.
    pub fn hole(_: &File, _: u64) -> Result<Option<u64>, ()> {
        Err(())
    }
}

/// The next bytes of `file` in `[from, end)`, as whole pages; `None` when only holes follow. On a
/// file system without holes, everything is bytes.
fn next(file: &File, from: u64, end: u64) -> Option<(u64, u64)> {
    let start = data(file, from).unwrap_or(Some(from))?;
    let start = (start / PAGE_SIZE * PAGE_SIZE).max(from);
    if start >= end {
        return None;
    }
    let hole = hole(file, start).ok().flatten().unwrap_or(end);
    Some((start, hole.next_multiple_of(PAGE_SIZE).clamp(start + PAGE_SIZE, end)))
}

/// Splits `run` into pieces, each of which is bytes followed by a hole. The first may have no
/// bytes.
pub(super) fn split(file: &File, run: Run) -> Vec<Run> {
    let stored_end = run.offset + run.stored_end.since(run.start);
    let place = |offset: u64| run.start.add(offset - run.offset);
    let mut pieces = vec![Run { stored_end: run.start, ..run }];
    let mut from = run.offset;
    while from < stored_end
        && let Some((start, end)) = next(file, from, stored_end)
    {
        match pieces.last_mut() {
            // These bytes continue the last piece's, or begin at the run's start.
            Some(last) if last.stored_end == place(start) => last.stored_end = place(end),
            last => {
                if let Some(last) = last {
                    last.end = place(start);
                }
                pieces.push(Run {
                    start: place(start),
                    end: run.end,
                    stored_end: place(end),
                    offset: start,
                });
            }
        }
        from = end;
    }
    pieces
}
