//! Whether a vCPU's thread needs the CPU that somebody waits on.
//!
//! **Protocol.** The thread notes its CPU each time that it enters the guest. A thread that is
//! about to look for an answer without sleeping compares that CPU with its own: where both are the
//! same, the answer cannot come while it looks. The host may have moved the vCPU's thread since,
//! without telling it. So before the note is believed, the host is asked, and the note is
//! corrected. That costs microseconds, where a look in vain costs hundreds.

use std::fs;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

use rustix::thread::{gettid, sched_getcpu};

/// No CPU has this number.
const NOWHERE: usize = usize::MAX;
/// Where `/proc/PID/task/TID/stat` has the CPU, counted from the field behind the name
/// (`proc_pid_stat(5)`: field 39).
const PROCESSOR: usize = 36;

/// Where a thread was when it last said so.
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
    /// The calling thread says where it is. It is always the same thread.
    pub(super) fn note(&self) {
        if self.thread.load(Ordering::Relaxed) == 0 {
            self.thread.store(gettid().as_raw_nonzero().get(), Ordering::Relaxed);
        }
        self.cpu.store(sched_getcpu(), Ordering::Relaxed);
    }

    /// Whether the thread is on the CPU that runs this. A thread that never said where it is is
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

/// The CPU on which the thread of this process runs, or waits to run, or slept in.
fn cpu_of(thread: i32) -> Option<usize> {
    let stat = fs::read_to_string(format!("/proc/self/task/{thread}/stat")).ok()?;
    // The name may hold anything, parentheses included.
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
                    tell.send(()).expect("somebody listens");
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
            // What the note says, but not the host.
            place.cpu.store(first, Ordering::Relaxed);
            stay_on(first);
            assert_eq!(place.is_here(), first == last);
            assert_eq!(place.cpu.load(Ordering::Relaxed), last);
            drop(ask);
        });
    }
}
