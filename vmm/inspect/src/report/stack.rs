//! Kernel stacks, by frame pointers.
//!
//! The kernel is built with frame pointers: a frame begins with the caller's frame pointer, and the
//! return address lies above it. A thread that is not running has its callee-saved registers on its
//! stack, RBP among them ([`vmkern_abi::layout::Thread::md`]). The kernel also makes such a frame
//! when it takes a trap, so the chain continues into the interrupted code. The content of a stack
//! is not trusted: each word is read through the page tables, and the number of frames is bounded.

use vmkern_abi::addr::GuestVirt;
use vmkern_abi::layout::{Thread, md};
use zerocopy::IntoBytes;

use super::survey::Survey;
use crate::cpu::Registers;
use crate::symbols::{AddressKind, Symbols};

const STACK: &str = "kernel stack";

/// The most frames of a backtrace.
const FRAMES_MAX: usize = 48;

/// The number of words at the stack pointer of a thread that is not running: R15 R14 R13 R12 RBP
/// RBX and the address at which the thread resumes.
const SAVED: usize = 7;
const RBP: usize = 4;
const RIP: usize = 6;

/// Number of RBP among the general registers.
const GPR_RBP: usize = 5;

/// The calls of a thread that is not running.
pub(super) fn of_sleeper(
    survey: &Survey<'_, '_>,
    symbols: &Symbols,
    thread: &Thread,
) -> Vec<String> {
    let rsp = GuestVirt::new(thread.md[md::RSP].get());
    let mut saved = [0_u64; SAVED];
    if rsp.get() == 0
        || survey.damage.ok(survey.view.read(STACK, rsp, saved.as_mut_bytes())).is_none()
    {
        return Vec::new();
    }
    let mut addresses = vec![GuestVirt::new(saved[RIP])];
    callers(survey, saved[RBP], &mut addresses);
    render(symbols, addresses, AddressKind::Called)
}

/// The calls on the CPU with these registers.
pub(super) fn of_cpu(
    survey: &Survey<'_, '_>,
    symbols: &Symbols,
    registers: &Registers,
) -> Vec<String> {
    let mut addresses = vec![registers.rip];
    callers(survey, registers.gpr[GPR_RBP], &mut addresses);
    render(symbols, addresses, AddressKind::Stopped)
}

/// Adds the return addresses of the frames, starting from `rbp`.
fn callers(survey: &Survey<'_, '_>, rbp: u64, into: &mut Vec<GuestVirt>) {
    let mut rbp = rbp;
    while rbp != 0 && into.len() < FRAMES_MAX {
        let mut frame = [0_u64; 2];
        if !rbp.is_multiple_of(8)
            || survey.view.read(STACK, GuestVirt::new(rbp), frame.as_mut_bytes()).is_err()
        {
            return;
        }
        let [caller, address] = frame;
        if address == 0 {
            return;
        }
        into.push(GuestVirt::new(address));
        if caller == rbp {
            return;
        }
        rbp = caller;
    }
}

/// A line for each call, those inlined included.
pub(super) fn render(
    symbols: &Symbols,
    addresses: Vec<GuestVirt>,
    innermost: AddressKind,
) -> Vec<String> {
    symbols.backtrace(addresses.into_iter(), innermost).iter().map(ToString::to_string).collect()
}
