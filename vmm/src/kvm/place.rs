//! Whether a vCPU's thread needs the CPU on which another thread polls for it.
//!
//! **Protocol.** The thread notes its CPU each time it enters the guest. A thread that is about to
//! poll for an answer compares that CPU with its own: if they are the same, the answer cannot come
//! while it polls. The host may have migrated the vCPU's thread since, without its notice. So
//! before the note is used, the host is asked, and the note is corrected. That costs microseconds,
//! while polling in vain costs hundreds.

use std::fs;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

use rustix::thread::{gettid, sched_getcpu};

/// The number of no CPU.
const NOWHERE: usize = usize::MAX;
/// The index of the CPU in `/proc/PID/task/TID/stat`, counted from the field after the name
/// (`proc_pid_stat(5)`: field 39).
const PROCESSOR: usize = 36;

/// The CPU on which a thread last noted itself.
#[derive(Debug)]
pub(super) struct Place {
    thread: AtomicI32,
    cpu: AtomicUsize,
}

impl Default for Place {
    fn default() -> Self {
        Self { thread: AtomicI32::new(0), cpu: AtomicUsize::new(NOWHERE) }
    }
}

impl Place {
    /// Notes the calling thread's CPU. It is always the same thread that calls.
    pub(super) fn note(&self) {
        if self.thread.load(Ordering::Relaxed) == 0 {
            self.thread.store(gettid().as_raw_nonzero().get(), Ordering::Relaxed);
        }
        self.cpu.store(sched_getcpu(), Ordering::Relaxed);
    }

    /// Whether the thread is on the CPU that runs this. A thread without a note counts as
    /// elsewhere.
    pub(super) fn is_here(&self) -> bool {
        let here = sched_getcpu();
        if self.cpu.load(Ordering::Relaxed) != here {
            return false;
        }
        let cpu = cpu_of(self.thread.load(Ordering::Relaxed)).unwrap_or(NOWHERE);
        self.cpu.store(cpu, Ordering::Relaxed);
        cpu == here
    }
}

/// The CPU on which `thread` of this process runs, waits to run, or last ran.
fn cpu_of(thread: i32) -> Option<usize> {
    let stat = fs::read_to_string(format!("/proc/self/task/{thread}/stat")).ok()?;
    // The name may contain anything, including parentheses.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(PROCESSOR)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread;

    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    use super::*;

    fn stay_on(cpu: usize) {
        let mut only = CpuSet::new();
        only.set(cpu);
        sched_setaffinity(None, &only).expect("a CPU that this thread may use");
    }

    #[test]
    fn a_moved_thread_is_found_elsewhere_until_it_says_so_and_one_that_left_is_not_believed() {
        let allowed = sched_getaffinity(None).expect("the host tells");
        let cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).collect();
        let (Some(&first), Some(&last)) = (cpus.first(), cpus.last()) else {
            panic!("no CPU at all")
        };
        let place = Place::default();
        assert!(!place.is_here());
        let (ask, asked) = channel::<usize>();
        let (tell, told) = channel();
        thread::scope(|scope| {
            scope.spawn(|| {
                for cpu in asked {
                    stay_on(cpu);
                    place.note();
                    tell.send(()).expect("the receiver lives");
                }
            });
            for cpu in [first, last] {
                ask.send(cpu).expect("the thread lives");
                told.recv().expect("the thread lives");
                for here in [first, last] {
                    stay_on(here);
                    assert_eq!(
                        place.is_here(),
                        here == cpu,
                        "the thread is on {cpu}, and this one on {here}"
                    );
                }
            }
            // A note that the host contradicts.
            place.cpu.store(first, Ordering::Relaxed);
            stay_on(first);
            assert_eq!(place.is_here(), first == last);
            assert_eq!(place.cpu.load(Ordering::Relaxed), last);
            drop(ask);
        });
    }
}
