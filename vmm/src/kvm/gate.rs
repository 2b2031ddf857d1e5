//! The gate at which a vCPU's thread waits while its guest is inspected.
//!
//! The thread passes it each time it exits from the guest. The gate has three positions: open,
//! closed for a vCPU at a quiescent point ([`Standing::Quiescent`]), and closed for all. An open
//! gate costs one load.
//!
//! Repeated looks must not stop the vCPU forever: once released, it is held again only after it has
//! left the gate and has had [`SHARE`] to run.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::inspect::Standing;

/// The least time for which a vCPU runs between two holds: enough to enter the guest and to take an
/// interrupt there.
const SHARE: Duration = Duration::from_micros(100);

/// Which vCPUs the gate lets pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Position {
    /// All.
    Open = 0,
    /// All but a vCPU at a quiescent point.
    HoldsQuiescent = 1,
    /// None.
    Closed = 2,
}

/// The gate.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// A [`Position`].
    position: AtomicU8,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Where the vCPU stands, while it waits at the gate.
    parked: Option<Standing>,
    /// The number of [`Held`] values.
    holders: usize,
    /// When the vCPU last left the gate.
    left: Option<Instant>,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the position. A waiting vCPU that may now pass continues.
    pub(super) fn set(&self, position: Position) {
        let _state = self.lock();
        self.position.store(position as u8, Ordering::SeqCst);
        self.changed.notify_all();
    }

    fn holds(&self, standing: Standing) -> bool {
        match self.position.load(Ordering::SeqCst) {
            position if position == Position::Open as u8 => false,
            position if position == Position::HoldsQuiescent as u8 => {
                standing != Standing::Anywhere
            }
            _ => true,
        }
    }

    /// Waits until the vCPU's thread waits at the gate and will not pass. Returns where the vCPU
    /// stands, or `None` if `limit` has passed.
    pub(super) fn wait_parked(&self, limit: Duration) -> Option<Standing> {
        let is_away = |state: &mut State| state.parked.is_none_or(|standing| !self.holds(standing));
        let (state, waited) = self
            .changed
            .wait_timeout_while(self.lock(), limit, is_away)
            .unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() { None } else { state.parked }
    }

    /// Passes the gate, after a wait if its position does not let a vCPU with this standing pass.
    /// `standing` is called only if the gate is not open, and before the thread is reported to wait
    /// here.
    pub(super) fn pass(&self, standing: impl FnOnce() -> Standing) {
        if self.position.load(Ordering::SeqCst) == Position::Open as u8 {
            return;
        }
        let standing = standing();
        let mut state = self.lock();
        state.parked = Some(standing);
        self.changed.notify_all();
        while self.holds(standing) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.parked = None;
        state.left = Some(Instant::now());
        self.changed.notify_all();
    }

    /// Waits until a vCPU that was released has left the gate and has had its share.
    pub(super) fn wait_gone(&self) {
        let is_about_to_go = |state: &mut State| state.holders == 0 && state.parked.is_some();
        let state = self
            .changed
            .wait_while(self.lock(), is_about_to_go)
            .unwrap_or_else(PoisonError::into_inner);
        let owed = state.left.map_or(Duration::ZERO, |left| SHARE.saturating_sub(left.elapsed()));
        drop(state);
        if !owed.is_zero() {
            thread::sleep(owed);
        }
    }
}

/// Keeps a vCPU held. The gate opens when the last such value is dropped.
#[derive(Debug)]
#[must_use = "the vCPU continues when this is dropped"]
pub(crate) struct Held<'a> {
    gate: &'a Gate,
    /// Where the vCPU stands.
    pub(crate) standing: Standing,
}

impl<'a> Held<'a> {
    /// Another holder, and whether it is the first: the first must bring the vCPU to the gate.
    pub(super) fn new(gate: &'a Gate) -> (Self, bool) {
        let mut state = gate.lock();
        state.holders += 1;
        let standing = state.parked.unwrap_or(Standing::Anywhere);
        (Self { gate, standing }, state.holders == 1)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        state.holders -= 1;
        if state.holders == 0 {
            self.gate.position.store(Position::Open as u8, Ordering::SeqCst);
            self.gate.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use super::*;

    const FAR: Duration = Duration::from_secs(3600);

    #[test]
    fn an_open_gate_asks_nobody_where_he_stands() {
        Gate::default().pass(|| panic!("the gate is open"));
    }

    #[test]
    fn a_gate_for_quiescent_vcpus_lets_others_pass_and_holds_them_until_it_moves() {
        let gate = Arc::new(Gate::default());
        gate.set(Position::HoldsQuiescent);
        gate.pass(|| Standing::Anywhere);
        let vcpu = {
            let gate = Arc::clone(&gate);
            thread::spawn(move || gate.pass(|| Standing::Quiescent))
        };
        assert_eq!(gate.wait_parked(FAR), Some(Standing::Quiescent));
        gate.set(Position::Closed);
        assert_eq!(gate.wait_parked(FAR), Some(Standing::Quiescent));
        let ((first, is_first), (second, is_second)) = (Held::new(&gate), Held::new(&gate));
        assert_eq!((second.standing, is_first, is_second), (Standing::Quiescent, true, false));
        drop(first);
        assert_eq!(gate.wait_parked(FAR), Some(Standing::Quiescent), "it is still held");
        drop(second);
        vcpu.join().expect("it passed");
        assert_eq!(gate.wait_parked(Duration::ZERO), None);
    }

    #[test]
    fn looks_without_end_let_the_vcpu_pass_between_two_of_them() {
        const LOOKS: usize = 100;
        let (gate, is_over) = (Arc::new(Gate::default()), Arc::new(AtomicBool::new(false)));
        let vcpu = {
            let (gate, is_over) = (Arc::clone(&gate), Arc::clone(&is_over));
            thread::spawn(move || {
                let mut passed = 0;
                while !is_over.load(Ordering::SeqCst) {
                    gate.pass(|| {
                        passed += 1;
                        Standing::Anywhere
                    });
                    std::hint::spin_loop();
                }
                passed
            })
        };
        for look in 0..LOOKS {
            gate.wait_gone();
            let (held, _) = Held::new(&gate);
            gate.set(Position::Closed);
            assert_eq!(gate.wait_parked(FAR), Some(Standing::Anywhere), "look {look}");
            drop(held);
        }
        is_over.store(true, Ordering::SeqCst);
        assert_eq!(vcpu.join().expect("it passes"), LOOKS, "the vCPU goes between any two looks");
    }

    #[test]
    fn a_vcpu_that_may_pass_does_not_count_as_standing_there() {
        let gate = Gate::default();
        gate.lock().parked = Some(Standing::Anywhere);
        gate.set(Position::HoldsQuiescent);
        assert_eq!(gate.wait_parked(Duration::ZERO), None);
    }
}
