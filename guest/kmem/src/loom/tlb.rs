//! TLB shootdowns between two CPUs: the words and the protocol of [`crate::kern::shootdown`]
//! itself, on a machine that has only translations, interrupts and a clock.
//!
//! Each CPU is a thread of loom, and caches translations that it has found in the page table. It
//! may use and find one whenever it waits or computes, but not while it is idle. When a shootdown
//! has returned, no CPU that is not idle caches the page, which is then freed; no CPU uses it
//! afterwards. A wait for another CPU ends within some spins, since loom switches threads at each:
//! a wait that takes longer never ends. After two of them a CPU is interrupted.
//!
//! loom watches all words by which CPUs ask and answer, the page table, and the interrupts; also
//! the cached translations and the freed pages, so it tries both orders of a flush and a check for
//! its completion. Those checks see the current values, by read-modify-writes, and order nothing.
//!
//! There are no models of three CPUs: in loom, two CPUs that wait switch to each other for ever,
//! while the third, for which they wait, does not run.

use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, PoisonError};

use loom::sync::atomic::AtomicU32;
use loom::thread;
use vmkern_abi::addr::{GuestVirt, PAGE_SIZE};
use vmkern_abi::atomic::watched::Watched;
use vmkern_abi::atomic::{self, Ordering};
use vmkern_abi::field::Field;
use vmkern_abi::layout::TlbStats;

use crate::kern::shootdown::{Cpus, PATIENCE, Shootdown, answer};

/// Pages, the first at address 0.
const PAGES: usize = 3;
/// Spins after which a wait never ends.
const LIMIT: u64 = 100;
/// [`Own::remembered`]: the CPU is idle, and uses none.
const RESTS: u32 = 1 << 31;

/// An interrupt that asks for a flush.
const SHOOTDOWN: u32 = 1 << 0;
/// An interrupt that only ends the halt of the CPU.
const WAKE: u32 = 1 << 1;

/// Whether a CPU makes the flush that was recorded for it while it was idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Note {
    Minded,
    Ignored,
}

/// The state of one CPU.
#[derive(Default)]
struct Own {
    shootdown: Shootdown,
    /// Pages whose translations it caches, a bit each, and [`RESTS`].
    remembered: AtomicU32,
    cycles: AtomicU64,
    /// Interrupts that have arrived and are not handled yet.
    raised: AtomicU32,
    /// The thread that waits for the next interrupt, while the CPU is halted.
    halted: Mutex<Option<thread::Thread>>,
}

/// The state that the CPUs share.
#[derive(Default)]
struct Board {
    cpus: [Own; 2],
    /// Whether each page is mapped.
    table: [atomic::AtomicU64; PAGES],
    /// Pages that were freed, a bit each.
    freed: AtomicU32,
    /// CPUs that have done their part.
    done: AtomicUsize,
    /// The owner of the lock, 0 for none.
    lock: atomic::AtomicU32,
}

/// The current value of `word`.
fn now(word: &AtomicU32) -> u32 {
    word.fetch_or(0, Ordering::Relaxed)
}

/// A CPU.
#[derive(Clone)]
struct Cpu {
    board: Arc<Board>,
    number: u32,
    note: Note,
}

impl Cpu {
    fn of(board: &Arc<Board>, number: u32) -> Self {
        Self { board: Arc::clone(board), number, note: Note::Minded }
    }

    fn own(&self) -> &Own {
        &self.board.cpus[self.number as usize]
    }

    /// Uses page `page` if this CPU sees it as mapped.
    fn access(&self, page: usize) {
        let (own, bit) = (self.own(), 1 << page);
        let remembered = own.remembered.load(Ordering::Relaxed);
        assert_eq!(remembered & RESTS, 0, "the CPU is idle");
        if remembered & bit == 0 {
            if self.board.table[page].load(Ordering::Relaxed) == 0 {
                return;
            }
            own.remembered.fetch_or(bit, Ordering::Relaxed);
        }
        assert_eq!(now(&self.board.freed) & bit, 0, "a page is used that was freed");
    }

    /// Uses all pages.
    fn access_all(&self) {
        (0..PAGES).for_each(|page| self.access(page));
    }

    /// Removes the mapping of page `page`, and frees the page once `shootdown` has ensured that no
    /// CPU uses it.
    fn take_away_by(&self, page: usize, shootdown: impl FnOnce(GuestVirt, GuestVirt)) {
        let va = |page: usize| GuestVirt::new(page as u64 * PAGE_SIZE);
        self.board.table[page].store(0, Ordering::Relaxed);
        shootdown(va(page), va(page + 1));
        for cpu in &self.board.cpus {
            let remembered = now(&cpu.remembered);
            let is_safe = remembered & RESTS != 0 || remembered & 1 << page == 0;
            assert!(is_safe, "a CPU can use a page that is about to be freed");
        }
        self.board.freed.fetch_or(1 << page, Ordering::Relaxed);
    }

    fn take_away(&self, page: usize) {
        self.take_away_by(page, |start, end| self.own().shootdown.invalidate(self, start, end));
    }

    /// A shootdown that serves no requests while it waits.
    fn take_away_without_serving(&self, page: usize) {
        let own = &self.own().shootdown;
        self.take_away_by(page, |start, end| {
            own.ask_others(self, start, end);
            let mut stale = self.nothing();
            self.add(&mut stale, start, end);
            self.flush(&stale);
            (0..).take_while(|_| !own.is_answered()).for_each(|spins| self.spin(spins));
        });
    }

    /// Answers first, and then flushes.
    fn serve_late(&self) {
        let mut stale = self.nothing();
        let requests = self.own().shootdown.take_requests(self, &mut stale);
        answer(self, requests);
        self.flush(&stale);
    }

    fn raise(&self, number: u32, interrupt: u32) {
        let other = &self.board.cpus[number as usize];
        other.raised.fetch_or(interrupt, Ordering::SeqCst);
        let halted = other.halted.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(halted) = halted {
            halted.unpark();
        }
    }

    /// A place where an interrupt may arrive.
    fn interrupt_point(&self) {
        self.handle(self.own().raised.swap(0, Ordering::SeqCst));
    }

    fn handle(&self, raised: u32) {
        if raised & SHOOTDOWN != 0 {
            self.own().shootdown.serve_others(self);
        }
    }

    /// Halts until an interrupt arrives.
    fn rest(&self) {
        let own = self.own();
        own.remembered.fetch_or(RESTS, Ordering::Relaxed);
        own.shootdown.go_idle();
        let raised = loop {
            match own.raised.swap(0, Ordering::SeqCst) {
                0 => {
                    // No other thread runs between the last read of `raised` and the park.
                    *own.halted.lock().unwrap_or_else(PoisonError::into_inner) =
                        Some(thread::current());
                    thread::park();
                }
                raised => break raised,
            }
        };
        own.shootdown.come_back(self);
        own.remembered.fetch_and(!RESTS, Ordering::Relaxed);
        self.handle(raised);
    }

    /// Acquires the lock, with interrupts deferred, and calls `wait` at each spin.
    fn lock(&self, wait: impl Fn()) {
        let acquire = || {
            self.board.lock.compare_exchange(
                0,
                self.number + 1,
                Ordering::Acquire,
                Ordering::Relaxed,
            )
        };
        (0..).take_while(|_| acquire().is_err()).for_each(|spins| {
            wait();
            self.spin(spins);
        });
    }

    fn unlock(&self) {
        self.board.lock.store(0, Ordering::Release);
    }

    /// Records that this CPU has done its part. Calls `other` until both have.
    fn until_both_are_done(&self, other: impl Fn()) {
        self.board.done.fetch_add(1, Ordering::Relaxed);
        while self.board.done.load(Ordering::Relaxed) < 2 {
            other();
            thread::yield_now();
        }
    }
}

impl Cpus for Cpu {
    /// Pages, a bit each.
    type Stale = u32;

    fn number(&self) -> u32 {
        self.number
    }

    fn get(&self, number: u32) -> Option<&Shootdown> {
        self.board.cpus.get(number as usize).map(|cpu| &cpu.shootdown)
    }

    fn others(&self) -> impl Iterator<Item = (u32, &Shootdown)> {
        (0..)
            .zip(&self.board.cpus)
            .filter(|&(number, _)| number != self.number)
            .map(|(n, cpu)| (n, &cpu.shootdown))
    }

    fn nothing(&self) -> u32 {
        0
    }

    fn add(&self, stale: &mut u32, start: GuestVirt, end: GuestVirt) {
        (start.get() / PAGE_SIZE..end.get() / PAGE_SIZE).for_each(|page| *stale |= 1 << page);
    }

    fn flush(&self, stale: &u32) {
        self.own().remembered.fetch_and(!stale, Ordering::Relaxed);
        self.own().cycles.fetch_add(PATIENCE, Ordering::Relaxed);
    }

    fn flush_all(&self) {
        if self.note == Note::Minded {
            self.own().remembered.fetch_and(RESTS, Ordering::Relaxed);
        }
    }

    fn cycles(&self) -> u64 {
        self.own().cycles.load(Ordering::Relaxed)
    }

    fn relax(&self) {
        // A flush costs `PATIENCE`: the wait for partners is one or two of these.
        self.own().cycles.fetch_add(PATIENCE / 50, Ordering::Relaxed);
        self.access_all();
        thread::yield_now();
    }

    fn spin(&self, spins: u64) {
        assert!(spins < LIMIT, "CPU {} waits for ever", self.number);
        self.own().cycles.fetch_add(PATIENCE / 2 + 1, Ordering::Relaxed);
        self.access_all();
        thread::yield_now();
    }

    fn interrupt(&self, number: u32) {
        self.raise(number, SHOOTDOWN);
    }

    fn count(&self, _which: fn(&TlbStats) -> &Field<u64>, _number: u64) {}
}

/// Runs `model` with as many steps as endless waits need.
fn model(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 10_000;
    builder.check(model);
}

/// Two CPUs, each of which does its part.
fn on_two_cpus(first: impl FnOnce(&Cpu), second: impl FnOnce(&Cpu) + 'static) {
    let board = Arc::new(Board::default());
    board.table.iter().for_each(|word| word.store(1, Ordering::Relaxed));
    let words = board.cpus.iter().flat_map(|cpu| cpu.shootdown.watch());
    let table = board.table.iter().map(atomic::AtomicU64::watch);
    let _watched: Vec<Watched> = words.chain(table).chain([board.lock.watch()]).collect();
    let other = Cpu::of(&board, 1);
    let other = thread::spawn(move || second(&other));
    first(&Cpu::of(&board, 0));
    other.join().expect("it ends well");
}

/// Frees page 0 while the other CPU, which uses it all the time, calls `meanwhile` from time to
/// time.
fn free_while_it_is_used(meanwhile: fn(&Cpu)) {
    let free = |cpu: &Cpu| {
        cpu.take_away(0);
        cpu.until_both_are_done(|| ());
    };
    let use_it = move |cpu: &Cpu| {
        cpu.access(0);
        cpu.until_both_are_done(|| {
            meanwhile(cpu);
            cpu.access(0);
        });
    };
    on_two_cpus(free, use_it);
}

#[test]
fn no_cpu_uses_a_translation_after_a_shootdown_that_interrupted_it() {
    model(|| free_while_it_is_used(Cpu::interrupt_point));
}

#[test]
fn no_cpu_uses_a_translation_after_a_shootdown_that_it_has_served_by_itself() {
    model(|| free_while_it_is_used(|cpu| cpu.own().shootdown.poll(cpu)));
}

#[test]
#[should_panic(expected = "a CPU can use a page that is about to be freed")]
fn a_cpu_that_answers_before_it_flushes_can_use_what_is_freed() {
    model(|| free_while_it_is_used(Cpu::serve_late));
}

/// Both CPUs use all pages, and each frees its own ones.
fn free_at_the_same_time(pages: [&'static [usize]; 2], take_away: fn(&Cpu, usize)) {
    let part = move |cpu: &Cpu| {
        cpu.access_all();
        pages[cpu.number as usize].iter().for_each(|&page| take_away(cpu, page));
        // A CPU that is done may still be asked.
        cpu.until_both_are_done(|| cpu.own().shootdown.poll(cpu));
    };
    on_two_cpus(part, part);
}

#[test]
fn two_cpus_that_free_at_the_same_time_flush_for_each_other_and_both_go_on() {
    model(|| free_at_the_same_time([&[0], &[1]], Cpu::take_away));
}

#[test]
fn a_cpu_that_waits_for_its_partner_goes_on_without_it() {
    model(|| free_at_the_same_time([&[0, 2], &[1]], Cpu::take_away));
}

#[test]
#[should_panic(expected = "waits for ever")]
fn two_cpus_that_free_at_the_same_time_and_serve_nobody_wait_for_ever() {
    model(|| free_at_the_same_time([&[0], &[1]], Cpu::take_away_without_serving));
}

/// Frees page 0 while the other CPU is about to halt, halted, or about to continue, and then ends
/// its halt.
fn free_while_it_rests(note: Note) {
    let free = |cpu: &Cpu| {
        cpu.take_away(0);
        cpu.raise(1, WAKE);
        cpu.until_both_are_done(|| ());
    };
    let rest = move |cpu: &Cpu| {
        let cpu = Cpu { note, ..cpu.clone() };
        cpu.access(0);
        cpu.rest();
        cpu.access(0);
        cpu.until_both_are_done(|| {
            cpu.interrupt_point();
            cpu.access(0);
        });
    };
    on_two_cpus(free, rest);
}

#[test]
fn a_cpu_that_goes_idle_during_a_shootdown_keeps_nobody_waiting_and_uses_nothing_old() {
    model(|| free_while_it_rests(Note::Minded));
}

#[test]
#[should_panic(expected = "a page is used that was freed")]
fn a_cpu_that_comes_back_without_a_look_at_the_note_uses_what_was_freed() {
    model(|| free_while_it_rests(Note::Ignored));
}

/// Frees page 0 under a lock that the other CPU, with interrupts deferred, spins for with `wait`.
fn free_under_a_lock(wait: fn(&Cpu)) {
    let free = |cpu: &Cpu| {
        cpu.lock(|| cpu.own().shootdown.poll(cpu));
        cpu.take_away(0);
        cpu.unlock();
        cpu.until_both_are_done(|| ());
    };
    let spin = move |cpu: &Cpu| {
        cpu.access(0);
        cpu.lock(|| wait(cpu));
        cpu.access(0);
        cpu.unlock();
        cpu.until_both_are_done(|| cpu.interrupt_point());
    };
    on_two_cpus(free, spin);
}

#[test]
fn a_cpu_that_spins_for_the_lock_of_one_that_waits_for_it_serves_and_both_go_on() {
    model(|| free_under_a_lock(|cpu| cpu.own().shootdown.poll(cpu)));
}

#[test]
#[should_panic(expected = "waits for ever")]
fn a_cpu_that_spins_for_that_lock_and_serves_nobody_waits_for_ever() {
    model(|| free_under_a_lock(|_| ()));
}
