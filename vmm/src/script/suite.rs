//! A directory of scripts, each in a fresh guest of its own, several at once.
//!
//! Guests need descriptors, threads and memory of the host. A host that is short of them is not the
//! fault of a script: a script that could not begin while others ran waits for one of them to end
//! and tries again, and the suite continues with one job fewer. Only a script that fails while it
//! runs alone has failed. A thread that cannot be created means one job fewer, too.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

/// How one script of a suite ended.
#[derive(Debug)]
pub struct Finished<R> {
    /// Its place in the suite.
    pub index: usize,
    /// How long it took, without waits for the end of others.
    pub took: Duration,
    /// The runner's result.
    pub result: R,
}

/// The result of one attempt to run a script.
#[derive(Debug)]
pub enum Attempt<R> {
    /// It ran, or never will.
    Done(R),
    /// The host was short of something that other scripts of the suite may hold.
    Short(R),
}

/// The scripts of a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Discovered {
    /// Every `*.kmem` file, sorted by path.
    pub scripts: Vec<PathBuf>,
    /// What has such a name and is not a file: a FIFO, a socket, a device, a link to nothing or to
    /// a directory.
    pub passed_over: Vec<PathBuf>,
}

/// Looks for `*.kmem` files below `dir`. Symbolic links to directories are not followed.
///
/// # Errors
/// The path that could not be read, and why.
pub fn discover(dir: &Path) -> Result<Discovered, (PathBuf, io::Error)> {
    let mut found = Discovered::default();
    let mut todo = vec![dir.to_path_buf()];
    while let Some(dir) = todo.pop() {
        let at = |error| (dir.clone(), error);
        for entry in fs::read_dir(&dir).map_err(at)? {
            let entry = entry.map_err(at)?;
            let path = entry.path();
            if entry.file_type().map_err(|error| (path.clone(), error))?.is_dir() {
                todo.push(path);
            } else if path.extension().is_some_and(|extension| extension == "kmem") {
                // A file that may not be read is a script that fails, and not passed over.
                let is_file = path.metadata().is_ok_and(|metadata| metadata.is_file());
                if is_file { &mut found.scripts } else { &mut found.passed_over }.push(path);
            }
        }
    }
    found.scripts.sort();
    found.passed_over.sort();
    Ok(found)
}

/// How many scripts run, and how many may.
#[derive(Debug)]
struct Jobs {
    counts: Mutex<Counts>,
    changed: Condvar,
}

#[derive(Debug)]
struct Counts {
    running: usize,
    allowed: usize,
}

/// A script that runs. Others may begin when it is dropped.
struct Running<'a> {
    jobs: &'a Jobs,
    /// Whether no other ran, from the beginning on.
    alone: bool,
}

impl Jobs {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until one more may run.
    fn begin(&self) -> Running<'_> {
        let full = |counts: &mut Counts| counts.running >= counts.allowed;
        let mut counts =
            self.changed.wait_while(self.lock(), full).unwrap_or_else(PoisonError::into_inner);
        counts.running += 1;
        Running { jobs: self, alone: counts.allowed == 1 }
    }
}

impl Running<'_> {
    /// The host was short of something: fewer scripts run at a time from now on, but at least one.
    fn found_host_short(&self) {
        let mut counts = self.jobs.lock();
        counts.allowed = (counts.running - 1).clamp(1, counts.allowed);
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.jobs.lock().running -= 1;
        self.jobs.changed.notify_all();
    }
}

/// Runs number `index` until it has run or has failed alone.
fn run_one<R>(jobs: &Jobs, index: usize, run: impl Fn(usize) -> Attempt<R>) -> Finished<R> {
    loop {
        let running = jobs.begin();
        let start = Instant::now();
        match run(index) {
            Attempt::Short(_) if !running.alone => running.found_host_short(),
            Attempt::Done(result) | Attempt::Short(result) => {
                return Finished { index, took: start.elapsed(), result };
            }
        }
    }
}

/// Calls `run` for each number below `count`, in up to `jobs` threads at a time, and hands each
/// result to `done` on the caller's thread as soon as it is there. A number whose run found the
/// host short is run again when others have ended. No further number is begun once `go_on` says no.
pub fn run_all<R: Send>(
    count: usize,
    jobs: usize,
    go_on: impl Fn() -> bool + Sync,
    run: impl Fn(usize) -> Attempt<R> + Sync,
    mut done: impl FnMut(Finished<R>),
) {
    // 1. The numbers, taken one by one.
    let next = AtomicUsize::new(0);
    let wanted = jobs.clamp(1, count.max(1));
    let jobs = Jobs {
        counts: Mutex::new(Counts { running: 0, allowed: wanted }),
        changed: Condvar::new(),
    };
    // The next result; nothing when there is nothing left to begin.
    let work = || {
        let index = if go_on() { next.fetch_add(1, Ordering::Relaxed) } else { count };
        (index < count).then(|| run_one(&jobs, index, &run))
    };
    // 2. Workers, and their results on this thread.
    let (send, receive) = mpsc::channel();
    thread::scope(|scope| {
        let workers = (0..wanted).map_while(|_| {
            let (send, work) = (send.clone(), &work);
            let worker =
                move || while work().is_some_and(|finished| send.send(finished).is_ok()) {};
            // As many as the host makes.
            thread::Builder::new().spawn_scoped(scope, worker).ok()
        });
        // 3. Without a worker, this thread does it all.
        if workers.count() == 0 {
            while let Some(finished) = work() {
                done(finished);
            }
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
            let run = |index| Attempt::Done(index * 2);
            run_all(
                20,
                jobs,
                || true,
                run,
                |finished| seen.push((finished.index, finished.result)),
            );
            seen.sort_unstable();
            assert_eq!(seen, (0..20).map(|index| (index, index * 2)).collect::<Vec<_>>());
        }
        run_all(0, 4, || true, |_| Attempt::Done(()), |_| unreachable!("there is nothing to run"));
    }

    #[test]
    fn nothing_new_begins_after_a_no() {
        let begun = AtomicUsize::new(0);
        let go_on = || begun.load(Ordering::SeqCst) < 3;
        run_all(100, 1, go_on, |_| Attempt::Done(begun.fetch_add(1, Ordering::SeqCst)), |_| {});
        assert_eq!(begun.load(Ordering::SeqCst), 3);
    }

    /// Runs 50 numbers in `jobs` threads on a host with room for `room` at a time; what each came
    /// to at last.
    fn on_a_host_with(room: usize, jobs: usize) -> Vec<bool> {
        let running = AtomicUsize::new(0);
        let run = |_| {
            let fits = running.fetch_add(1, Ordering::SeqCst) < room;
            thread::yield_now();
            running.fetch_sub(1, Ordering::SeqCst);
            if fits { Attempt::Done(true) } else { Attempt::Short(false) }
        };
        let mut ends = vec![None; 50];
        run_all(
            ends.len(),
            jobs,
            || true,
            run,
            |finished| ends[finished.index] = Some(finished.result),
        );
        ends.into_iter().map(|end| end.expect("each comes to an end")).collect()
    }

    #[test]
    fn a_host_that_is_short_makes_a_suite_slower_and_fails_nothing() {
        for (room, jobs) in [(1, 2), (1, 16), (3, 16), (15, 16)] {
            assert!(
                on_a_host_with(room, jobs).into_iter().all(|held| held),
                "room for {room}, {jobs} jobs"
            );
        }
    }

    #[test]
    fn what_does_not_fit_alone_has_failed() {
        for jobs in [1, 2, 16] {
            assert!(on_a_host_with(0, jobs).into_iter().all(|held| !held), "{jobs} jobs");
        }
    }
}
