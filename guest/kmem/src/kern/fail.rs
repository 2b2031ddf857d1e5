//! Fail points (`kern_fail.c`): the kernel's side of [`vmkern_abi::fail`].
//!
//! A site is a call of [`Globals::fail_point`], [`Globals::fails`], [`Globals::intr_window`], or
//! where the thread may sleep, of [`Kern::fail_point_sleepable`]. While a site is not armed, the
//! call is a test of a bit and a branch that is not taken; nothing is stored. The rest is out of
//! line.

use vmkern_abi::addr::GuestVirt;
use vmkern_abi::fail::{FailAction, FailPoints, FailSite, Fire};
use vmkern_abi::layout::HeldLocks;

use super::sleepq::WaitChannel;
use super::synch::Sleep;
use super::{Globals, Kern};
use crate::machine::{Cpu, PhysMem};

impl<M: PhysMem + Cpu> Kern<M> {
    /// The value with which the function must fail at `site`, if it must, where the thread may
    /// sleep. Locks: none may be held. Sleeps if the programme of the site says so.
    #[inline(always)]
    pub(crate) fn fail_point_sleepable(&self, site: FailSite) -> Option<u64> {
        let fire = self.fail_point_fire(site)?;
        match fire.action {
            FailAction::Return => Some(fire.argument),
            _ => {
                sleep(self, site, fire.argument);
                None
            }
        }
    }
}

/// Sleeps for `milliseconds`, and at least one tick. No mutex is owned.
#[cold]
fn sleep<M: PhysMem + Cpu>(kern: &Kern<M>, site: FailSite, milliseconds: u64) {
    if kern.is_cold() {
        return;
    }
    let Some(points) = kern.machine().fail_points() else { return };
    let hz = kern.cnt().hz.get();
    let timo = milliseconds.saturating_mul(hz).div_ceil(1000).max(1);
    // The address is the site's, and no thread wakes it.
    let address = core::ptr::from_ref(points.point(site)).addr() as u64;
    let channel = WaitChannel::from(GuestVirt::new(address));
    kern.assert_may_sleep("failpt", HeldLocks::empty());
    kern.sched_lock();
    // Anything may change: the site is at a place where its function has not begun.
    let (Sleep::Woken | Sleep::TimedOut) = kern.sleep_locked(channel, 0, "failpt", timo, None);
}

impl<M: PhysMem + Cpu> Globals<M> {
    /// The value with which the function must fail at `site`, if it must. Locks: any. Never sleeps.
    #[inline(always)]
    pub(crate) fn fail_point(&self, site: FailSite) -> Option<u64> {
        let fire = self.fail_point_fire(site)?;
        // No other action is left: `sleep` is refused for the site.
        (fire.action == FailAction::Return).then_some(fire.argument)
    }

    /// Whether the function must fail at `site`, for functions that fail in one way only. Locks:
    /// any. Never sleeps.
    #[inline(always)]
    pub(crate) fn fails(&self, site: FailSite) -> bool {
        self.fail_point(site).is_some()
    }

    /// A place between two steps, each of which leaves the structures as others may see them. A
    /// delay here makes it more likely that others do. Locks: any except the scheduler's.
    #[inline(always)]
    pub(crate) fn intr_window(&self) {
        let _ = self.fail_point_fire(FailSite::IntrWindow);
    }

    /// Whether a site of `bits` is armed.
    #[inline(always)]
    pub(crate) fn is_armed(&self, bits: u64) -> bool {
        self.machine().fail_armed() & bits != 0
    }

    /// What is left to do at `site`, if it is armed and its programme says so.
    #[inline(always)]
    fn fail_point_fire(&self, site: FailSite) -> Option<Fire> {
        if self.is_armed(site.bit()) { self.fail_point_eval(site) } else { None }
    }

    /// Executes the programme of `site`, which is armed (`fail_point_eval`), but for a `return` or
    /// `sleep`, which is the caller's to do.
    #[cold]
    #[inline(never)]
    fn fail_point_eval(&self, site: FailSite) -> Option<Fire> {
        // 1. The hit counts, whatever the programme says.
        let points = self.machine().fail_points()?;
        let point = points.point(site);
        point.hits.fetch_add(1);
        let hit = point.hits.get();
        // 2. A stack that has failed before does not fail again.
        let stack = points.stacks.on.is_set().then(|| self.stack_hash(site));
        if stack.is_some_and(|hash| points.stacks.knows(hash)) {
            return None;
        }
        // 3. The terms, up to the first that executes. Only a `print` may go on to the next.
        let mut fire = points.first(site)?;
        loop {
            if fire.action == FailAction::Off {
                return None;
            }
            point.fires.fetch_add(1);
            stack.inspect(|&hash| points.stacks.add(hash));
            if fire.action != FailAction::Print {
                self.fail_record(points, site, hit);
                return self.fail_execute(site, fire);
            }
            self.machine().log(format_args!("fail point {} executing", site.name()));
            if fire.argument == 0 {
                return None;
            }
            fire = points.after(site, fire)?;
        }
    }

    /// Executes a term that ends the evaluation, unless it is the caller's to do.
    fn fail_execute(&self, site: FailSite, fire: Fire) -> Option<Fire> {
        match fire.action {
            FailAction::Return | FailAction::Sleep => return Some(fire),
            FailAction::Panic => self.panic(format_args!("fail point {} panicking", site.name())),
            FailAction::Delay => self.machine().delay(fire.argument),
            FailAction::Off | FailAction::Print => {}
        }
        None
    }

    /// Records where a term executes, for reports.
    fn fail_record(&self, points: &FailPoints, site: FailSite, hit: u64) {
        let thread =
            self.machine().current_thread().non_null().map(|thread| self.get(thread).tid.get());
        points.last.site.put(site);
        points.last.thread.set(thread.unwrap_or(u32::MAX));
        points.last.hit.set(hit);
        points.last.keep(self.machine().call_stack());
    }

    /// A hash of `site` and the return addresses of the callers (FNV-1a, by words).
    fn stack_hash(&self, site: FailSite) -> u64 {
        const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
        const PRIME: u64 = 0x0100_0000_01b3;
        let words = self.machine().call_stack().map(|frame| frame.get());
        words.chain([site.bit()]).fold(BASIS, |hash, word| (hash ^ word).wrapping_mul(PRIME))
    }
}
