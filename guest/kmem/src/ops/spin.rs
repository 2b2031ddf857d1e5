//! A reader on one CPU, and a thread on another that frees the page under it: a test that a free
//! ends every translation.
//!
//! The two meet in the words of a page, the mailbox. In each round the freeing side allocates a
//! page, writes the round's number there, publishes its address, and waits until the reader has
//! read it. Then it frees the page, and publishes that the free has returned. The reader reads all
//! the time: every read that begins after it has seen that word must fault.

use vmkern_abi::addr::{GuestVirt, KPtr, PAGE_SIZE};
use vmkern_abi::atomic::{Ordering, fence};
use vmkern_abi::control::{KernReturn, MallocFlags, Outcome};
use vmkern_abi::field::Field;
use vmkern_abi::layout::VmMap;

use super::{Access, Intent};
use crate::kern::sleepq::WaitChannel;
use crate::kern::synch::Sleep;
use crate::vm::{Vm, VmMachine};

/// Spins of a wait for the other side before a sleep of a tick: longer than an allocation or a free
/// takes.
const SPINS_BEFORE_SLEEP: u64 = 1 << 18;

/// The mailbox.
struct Mailbox<'a> {
    /// Its address.
    place: GuestVirt,
    /// The address of the page of the round.
    addr: &'a Field<u64>,
    /// The round for which that address is valid.
    round: &'a Field<u64>,
    /// The round whose page has been read.
    seen: &'a Field<u64>,
    /// The round whose free has returned.
    returned: &'a Field<u64>,
    /// The round that the reader has finished.
    done: &'a Field<u64>,
    /// The CPU of the freeing side.
    cpu: &'a Field<u64>,
    /// Not 0 when a side has given up.
    over: &'a Field<u64>,
}

impl<'a> Mailbox<'a> {
    fn at<A: Access>(access: &'a A, va: GuestVirt) -> Self {
        let words = access.words(va, 7, Intent::Write);
        let [addr, round, seen, returned, done, cpu, over] =
            core::array::from_fn(|index| &words[index]);
        Self { place: va, addr, round, seen, returned, done, cpu, over }
    }

    /// Waits until `word` is `round`, or the other side has given up. Returns whether it is
    /// `round`.
    fn wait<M: VmMachine>(&self, vm: &Vm<M>, word: &Field<u64>, round: u64) -> bool {
        let mut spins = 0;
        while word.get() != round {
            if self.over.get() != 0 {
                return false;
            }
            spins += 1;
            if spins % SPINS_BEFORE_SLEEP == 0 {
                // The other side may not have begun, or wait for this CPU.
                let channel = WaitChannel::of(KPtr::<u64>::new(self.place));
                // Both sides use only the mailbox, which the loop reads again.
                let (Sleep::Woken | Sleep::TimedOut) = vm.tsleep(channel, 0, "spin", 1);
            }
            vm.machine().cpu_spinwait(spins);
        }
        fence(Ordering::SeqCst);
        true
    }
}

/// The CPU that runs the caller, or ran it a moment ago.
fn cpu<M: VmMachine>(vm: &Vm<M>) -> u64 {
    vm.pcpu().cpuid.get().into()
}

/// The outcome when the two cannot meet: on one CPU each would wait for the other for ever.
fn refuse<M: VmMachine>(vm: &Vm<M>, mailbox: GuestVirt) -> Option<Outcome> {
    let is_wrong = vm.cnt().ncpu.get() < 2 || !mailbox.is_page_aligned();
    is_wrong.then_some(Outcome::Error(KernReturn::InvalidArgument))
}

/// The reader's side: `rounds` rounds on another CPU than the other side's.
pub fn read<M: VmMachine, A: Access>(
    vm: &Vm<M>,
    access: &A,
    mailbox: GuestVirt,
    rounds: u64,
) -> Outcome {
    if let Some(refusal) = refuse(vm, mailbox) {
        return refusal;
    }
    let mailbox = Mailbox::at(access, mailbox);
    let (mut round, mut apart) = (0, 0);
    let outcome = loop {
        if apart == rounds {
            break Outcome::Value(round);
        }
        round += 1;
        if !mailbox.wait(vm, mailbox.round, round) {
            break Outcome::Error(KernReturn::Failure);
        }
        if let Err(wrong) = read_one(vm, access, &mailbox, round) {
            break wrong;
        }
        apart += u64::from(mailbox.cpu.get() != cpu(vm));
        mailbox.done.set(round);
    };
    mailbox.over.set(1);
    outcome
}

/// Reads the page of `round` until it has been freed.
fn read_one<M: VmMachine, A: Access>(
    vm: &Vm<M>,
    access: &A,
    mailbox: &Mailbox<'_>,
    round: u64,
) -> Result<(), Outcome> {
    let addr = GuestVirt::new(mailbox.addr.get());
    loop {
        let has_returned = mailbox.returned.get() == round;
        // What is read from here on is read after that.
        fence(Ordering::SeqCst);
        match access.probe(addr) {
            Some(got) if has_returned => return Err(Outcome::Mismatch { addr, got, want: 0 }),
            Some(got) if got != round => return Err(Outcome::Mismatch { addr, got, want: round }),
            Some(_) => mailbox.seen.set(round),
            None if has_returned => return Ok(()),
            // It is being freed. A fault now takes the locks that the free needs.
            None if mailbox.wait(vm, mailbox.returned, round) => {}
            None => return Err(Outcome::Error(KernReturn::Failure)),
        }
    }
}

/// The freeing side, until the reader ends the test.
pub fn free<M: VmMachine, A: Access>(
    vm: &Vm<M>,
    access: &A,
    mailbox: GuestVirt,
    map: KPtr<VmMap>,
) -> Outcome {
    if let Some(refusal) = refuse(vm, mailbox) {
        return refusal;
    }
    let mailbox = Mailbox::at(access, mailbox);
    let mut round = 0;
    loop {
        // 1. A page with the round's number in it, for the reader to look at.
        round += 1;
        let Some(addr) = vm.kmem_malloc(map, PAGE_SIZE, MallocFlags::NOWAIT) else {
            mailbox.over.set(1);
            break Outcome::Error(KernReturn::ResourceShortage);
        };
        access.words(addr, 1, Intent::Write)[0].set(round);
        mailbox.addr.set(addr.get());
        mailbox.cpu.set(cpu(vm));
        fence(Ordering::SeqCst);
        mailbox.round.set(round);
        // 2. The free, once the reader has seen the page.
        let is_read = mailbox.wait(vm, mailbox.seen, round);
        vm.kmem_free(map, addr, PAGE_SIZE);
        fence(Ordering::SeqCst);
        mailbox.returned.set(round);
        // 3. The reader ends the round when it has seen the free, or ends the test.
        if !is_read || !mailbox.wait(vm, mailbox.done, round) {
            break Outcome::Ok;
        }
    }
}
