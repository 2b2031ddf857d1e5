//! A directory of scripts, each in a fresh guest of its own, several at once.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use std::{fs, io, thread};

/// How one script of a suite ended.
#[derive(Debug)]
pub struct Finished<R> {
    /// Its place in the suite.
    pub index: usize,
    /// How long it took.
    pub took: Duration,
    /// What the runner made of it.
    pub result: R,
}

/// Every `*.kmem` file below `dir`, sorted by path. Symbolic links to directories are not followed.
///
/// # Errors
/// The path that could not be read, and why.
pub fn discover(dir: &Path) -> Result<Vec<PathBuf>, (PathBuf, io::Error)> {
    let mut scripts = Vec::new();
    let mut todo = vec![dir.to_path_buf()];
    while let Some(dir) = todo.pop() {
        let at = |error| (dir.clone(), error);
        for entry in fs::read_dir(&dir).map_err(at)? {
            let entry = entry.map_err(at)?;
            let path = entry.path();
            if entry.file_type().map_err(|error| (path.clone(), error))?.is_dir() {
                todo.push(path);
            } else if path.extension().is_some_and(|extension| extension == "kmem") {
                scripts.push(path);
            }
        }
    }
    scripts.sort();
    Ok(scripts)
}

/// Calls `run` once for each number below `count`, in `jobs` threads, and hands each result to `done` on the caller's
/// thread as soon as it is there. No further number is begun once `go_on` says no.
pub fn run_all<R: Send>(
    count: usize,
    jobs: usize,
    go_on: impl Fn() -> bool + Sync,
    run: impl Fn(usize) -> R + Sync,
    mut done: impl FnMut(Finished<R>),
) {
    let next = AtomicUsize::new(0);
    let (send, receive) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, count.max(1)) {
            let send = send.clone();
            let (next, go_on, run) = (&next, &go_on, &run);
            scope.spawn(move || {
                while go_on() {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        break;
                    }
                    let start = Instant::now();
                    let result = run(index);
                    if send.send(Finished { index, took: start.elapsed(), result }).is_err() {
                        break;
                    }
                }
            });
        }
        drop(send);
        for finished in receive {
            done(finished);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_runs_once_whatever_the_number_of_threads() {
        for jobs in [0, 1, 3, 100] {
            let mut seen = Vec::new();
            run_all(20, jobs, || true, |index| index * 2, |finished| seen.push((finished.index, finished.result)));
            seen.sort_unstable();
            assert_eq!(seen, (0..20).map(|index| (index, index * 2)).collect::<Vec<_>>());
        }
        run_all(0, 4, || true, |_| (), |_| unreachable!("there is nothing to run"));
    }

    #[test]
    fn nothing_new_begins_after_a_no() {
        let begun = AtomicUsize::new(0);
        let go_on = || begun.load(Ordering::SeqCst) < 3;
        run_all(100, 1, go_on, |_| begun.fetch_add(1, Ordering::SeqCst), |_| {});
        assert_eq!(begun.load(Ordering::SeqCst), 3);
    }
}
