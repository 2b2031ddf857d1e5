//! The guest of a test, which is looked over when the test is done with it.

use std::ops::{Deref, DerefMut};
use std::panic::Location;

use vmkern_abi::control::{Answer, Calls, Context, Op, Outcome, Response, WaitMessage};

use super::call::{ExpectPanic, Lowmem, On, Start};
use super::error::{CallError, CallFailure, CallResult, Called, answer, shown};
use super::kvm::{Policy, VARIABLE, say_skipped};
use super::watch::Watch;
use super::whole::whole;
use crate::guest::{Guest, GuestBuilder, GuestError, LaunchError, ThreadId};
use crate::inspect::Crash;

/// Why a guest that must be there is not.
const UNTIL_GIVEN_AWAY: &str = "the guest is there until `into_unchecked` takes it";

/// A guest for one test. It is a [`Guest`] by `Deref`, and takes typed calls ([`Calls`]) on thread
/// t0; [`TestGuest::on`], [`TestGuest::start`], [`TestGuest::in_interrupt`] and
/// [`TestGuest::on_lowmem`] take them elsewhere.
///
/// Dropping it checks the guest, and panics in three cases: the guest died of something that
/// neither [`TestGuest::expect_panic`] nor [`TestGuest::expect_dead`] expected; a thread is blocked
/// that [`TestGuest::expect_blocked`] did not name last; `vmkern check` finds something in its
/// memory. It says nothing while a test is panicking already, and [`TestGuest::into_unchecked`]
/// ends the supervision.
///
/// ```
/// use vmkern::testing::{Calls as _, TestGuest};
/// use vmkern::{MallocFlags, MapId};
///
/// let mut guest = TestGuest::new();
/// let flags = MallocFlags::NOWAIT | MallocFlags::ZERO;
/// let addr = guest.kmem_malloc(MapId::KMEM, 12 << 10, flags)?.expect("kmem_map is empty");
/// guest.verify_zero(addr, 12 << 10)?;
/// guest.kmem_free(MapId::KMEM, addr, 12 << 10)?;
/// # Ok::<(), vmkern::testing::CallError>(())
/// ```
#[derive(Debug)]
pub struct TestGuest {
    /// Nothing once it has been given away.
    guest: Option<Guest>,
    watch: Watch,
}

impl Default for TestGuest {
    #[track_caller]
    fn default() -> Self {
        Self::new()
    }
}

impl TestGuest {
    /// A guest of 64 MiB and one CPU, with every setting at its default.
    ///
    /// # Panics
    /// As [`TestGuest::launch`] does.
    #[track_caller]
    #[must_use]
    pub fn new() -> Self {
        Self::launch(Guest::builder())
    }

    /// Launches a guest of `builder`'s.
    ///
    /// # Panics
    /// When it cannot be launched, whatever `VMKERN_KVM` says: [`testing::launch`] is for tests
    /// that may be skipped. The message says what is wrong, or what this host lacks. A wrong value
    /// of that variable is a panic, too.
    ///
    /// [`testing::launch`]: crate::testing::launch
    #[track_caller]
    #[must_use]
    pub fn launch(builder: GuestBuilder) -> Self {
        // Only for its panic: this test may not be skipped.
        let _ = Policy::of_environment();
        let place = Location::caller();
        match builder.launch() {
            Ok(guest) => Self::of(guest, place),
            Err(error @ LaunchError::NoKvm(_)) => panic!(
                "cannot launch a guest: {error} With {VARIABLE}=skip, tests that begin with \
                 `testing::guest()` or `testing::launch(builder)` are skipped."
            ),
            Err(error) => panic!("cannot launch a guest: {error}"),
        }
    }

    /// Launches a guest of `builder`'s; nothing where KVM is missing and a test may be skipped.
    #[track_caller]
    pub(super) fn launch_or_skip(builder: GuestBuilder) -> Option<Self> {
        let (policy, place) = (Policy::of_environment(), Location::caller());
        if policy == Policy::Require {
            return Some(Self::launch(builder));
        }
        match builder.launch() {
            Ok(guest) => Some(Self::of(guest, place)),
            Err(LaunchError::NoKvm(missing)) => {
                say_skipped(place, &missing);
                None
            }
            Err(error) => panic!("cannot launch a guest: {error}"),
        }
    }

    fn of(guest: Guest, place: &'static Location<'static>) -> Self {
        Self { guest: Some(guest), watch: Watch::new(place) }
    }

    /// Gives the guest away, to be dropped as it is: for a test that damages it on purpose, or
    /// kills it by something else than an operation.
    #[must_use]
    pub fn into_unchecked(mut self) -> Guest {
        self.guest.take().expect(UNTIL_GIVEN_AWAY)
    }

    /// Takes calls on kernel thread `thread`. A call whose thread falls asleep with nothing left to
    /// run is an error; [`TestGuest::start`] is for those.
    pub fn on(&mut self, thread: ThreadId) -> On<'_> {
        On { guest: self, context: thread.into() }
    }

    /// Takes calls in an interrupt handler, where sleeping is a panic of the kernel.
    pub fn in_interrupt(&mut self) -> On<'_> {
        On { guest: self, context: Context::Interrupt }
    }

    /// Takes calls that a handler of the next vm_lowmem event does, once each: they return at once,
    /// and what the operations themselves answer is lost.
    pub fn on_lowmem(&mut self) -> Lowmem<'_> {
        Lowmem { guest: self }
    }

    /// Takes calls that are started on kernel thread `thread` and not waited for: each returns a
    /// [`Started`](super::Started), whose `join` waits for the answer. The script language has the
    /// same as `start` and `join`. In virtual time, the default, the operation begins with the next
    /// call of another kind, in real time at once.
    ///
    /// ```
    /// use vmkern::testing::{Calls as _, TestGuest};
    /// use vmkern::{MapId, MapKind, ThreadId};
    ///
    /// const T1: ThreadId = ThreadId::nth::<1>();
    ///
    /// let mut guest = TestGuest::new();
    /// let map = guest.kmem_suballoc(MapId::KERNEL, 8192, MapKind::User)?;
    /// let all = guest.kmem_alloc_wait(map, 8192)?.expect("the map is empty");
    /// // There is no room for this one.
    /// let waits = guest.start(T1).kmem_alloc_wait(map, 4096)?;
    /// guest.expect_blocked(T1, "vmmaps");
    /// guest.kmem_free_wakeup(map, all, 8192)?;
    /// assert_eq!(waits.join(&mut guest)?, Some(all));
    /// # Ok::<(), vmkern::testing::CallError>(())
    /// ```
    pub fn start(&mut self, thread: ThreadId) -> Start<'_> {
        Start { guest: self, thread }
    }

    /// Takes a call on t0 of which the kernel must panic, with `text` in its message. The call
    /// returns the [`Crash`], and the guest, which is dead then, is in order.
    /// [`On::expect_panic`] does the same elsewhere.
    ///
    /// ```
    /// use vmkern::testing::{Calls as _, TestGuest};
    /// use vmkern::MapId;
    ///
    /// let mut guest = TestGuest::new();
    /// let addr = guest.kmem_alloc_nofault(MapId::KERNEL, 4096)?.expect("there is room");
    /// let crash = guest.expect_panic("fault on nofault entry").read(addr);
    /// assert!(crash.message.ends_with(&format!("{:x}", addr.get())));
    /// # Ok::<(), vmkern::testing::CallError>(())
    /// ```
    pub fn expect_panic(&mut self, text: &str) -> ExpectPanic<'_> {
        self.on(ThreadId::MAIN).expect_panic(text)
    }

    /// Checks that `thread` sleeps in an operation with the wait message `wmesg`, and nothing can
    /// run that would wake it. From then on the thread may still be blocked when the guest is
    /// dropped.
    ///
    /// # Panics
    /// When it is not blocked, or waits for something else; the message says what it does instead,
    /// and which threads are blocked.
    #[track_caller]
    pub fn expect_blocked(&mut self, thread: ThreadId, wmesg: &str) {
        let join = Op::Join { thread: thread.number() };
        let was = self.watch.operation_of(thread);
        let its = was.map_or("its operation".to_owned(), |op| op.to_string());
        let told = match self.guest_mut().call(ThreadId::MAIN, join) {
            Ok(response) => match response.outcome {
                Outcome::Blocked { waits_for } if waits_for.to_string() == wmesg => {
                    self.watch.expect_blocked(thread, waits_for);
                    return;
                }
                Outcome::Blocked { waits_for } => format!("{its} sleeps in \"{waits_for}\""),
                outcome => {
                    self.watch.is_over(thread);
                    format!("{its} returned {}", shown(outcome))
                }
            },
            Err(GuestError::BadRequest(_)) => "it does nothing".to_owned(),
            Err(error) => error.to_string(),
        };
        panic!(
            "{thread} is not blocked in \"{wmesg}\": {told}; blocked are: {}",
            sleepers(self.blocked())
        );
    }

    /// Checks that the kernel has panicked with `text` in its message, however the test learned of
    /// it: from an answer to [`Guest::submit`], or from a join. For a call that is waited for, use
    /// [`TestGuest::expect_panic`].
    ///
    /// # Panics
    /// When the guest lives, or died of something else; the message says of what.
    #[track_caller]
    pub fn expect_dead(&mut self, text: &str) -> Crash {
        let told = match self.death() {
            Some(GuestError::Crashed(crash)) if crash.message.contains(text) => {
                let crash = (**crash).clone();
                self.watch.expect_death();
                return crash;
            }
            Some(error) => format!("died: {error}"),
            None => "lives".to_owned(),
        };
        panic!("the guest was expected to have panicked with {text:?}, and it {told}");
    }

    /// Checks that the guest's memory is in order now, as [`Guest::check`] does, and that its pages
    /// add up. Threads that sleep in the middle of an operation are no disorder.
    ///
    /// # Panics
    /// With what was found.
    #[track_caller]
    pub fn assert_whole(&self) {
        whole(self).unwrap_or_else(|broken| panic!("{broken}"));
    }

    fn guest_mut(&mut self) -> &mut Guest {
        self.guest.as_mut().expect(UNTIL_GIVEN_AWAY)
    }

    /// Performs `op` in `context`, and remembers it.
    #[track_caller]
    pub(super) fn answer_in<A: Answer>(&mut self, context: Context, op: Op) -> CallResult<A> {
        let response = self.guest_mut().call_in(context, op);
        self.heard(context, op, response)
    }

    /// What `response` says of `op` in `context`, which is remembered.
    #[track_caller]
    fn heard<A: Answer>(
        &mut self,
        context: Context,
        op: Op,
        response: Result<Response, GuestError>,
    ) -> CallResult<A> {
        let result = match response {
            Ok(response) => answer(context, op, response.outcome),
            Err(error) => Err(CallError::new(context, op, CallFailure::Guest(error))),
        };
        self.watch.saw(Called(context, op), Location::caller(), result.as_ref().err());
        result
    }

    /// Starts `op` on `thread`.
    #[track_caller]
    pub(super) fn start_on(&mut self, thread: ThreadId, op: Op) -> CallResult<()> {
        let context = Context::Start(thread.number());
        self.answer_in::<()>(context, op)?;
        self.watch.started(thread, op);
        Ok(())
    }

    /// The answer to what was started on `thread`, which was `op`.
    #[track_caller]
    pub(super) fn join_on<A: Answer>(&mut self, thread: ThreadId, op: Op) -> CallResult<A> {
        let join = Op::Join { thread: thread.number() };
        let response = self.guest_mut().call(ThreadId::MAIN, join);
        let is_blocked = |response: &Response| matches!(response.outcome, Outcome::Blocked { .. });
        if response.as_ref().is_ok_and(|response| !is_blocked(response)) {
            self.watch.is_over(thread);
        }
        self.heard(thread.into(), op, response)
    }

    /// Performs `op` in `context`, of which the guest must die with `text`.
    #[track_caller]
    pub(super) fn die_in(&mut self, context: Context, op: Op, text: &str) -> Crash {
        let called = Called(context, op);
        let told = match self.guest_mut().call_in(context, op) {
            Err(GuestError::Crashed(crash)) if crash.message.contains(text) => {
                self.watch.expect_death();
                return *crash;
            }
            Err(GuestError::Crashed(crash)) => format!("it said {:?}\n{crash}", crash.message),
            Err(error) => error.to_string(),
            Ok(response) => format!("it answered {}", shown(response.outcome)),
        };
        panic!("{called} was expected to panic with {text:?}, and {told}");
    }
}

/// Threads that are blocked, in words.
fn sleepers(blocked: impl Iterator<Item = (ThreadId, WaitMessage)>) -> String {
    let words: Vec<_> =
        blocked.map(|(thread, waits_for)| format!("{thread} in \"{waits_for}\"")).collect();
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}

impl Deref for TestGuest {
    type Target = Guest;

    fn deref(&self) -> &Guest {
        self.guest.as_ref().expect(UNTIL_GIVEN_AWAY)
    }
}

impl DerefMut for TestGuest {
    fn deref_mut(&mut self) -> &mut Guest {
        self.guest_mut()
    }
}

/// On t0.
impl Calls for TestGuest {
    type Returned<A: Answer> = CallResult<A>;

    #[track_caller]
    fn perform<A: Answer>(&mut self, op: Op) -> CallResult<A> {
        self.answer_in(ThreadId::MAIN.into(), op)
    }
}

/// On t0, for a guest that nobody looks over.
impl Calls for Guest {
    type Returned<A: Answer> = CallResult<A>;

    fn perform<A: Answer>(&mut self, op: Op) -> CallResult<A> {
        let context = ThreadId::MAIN.into();
        match self.call_in(context, op) {
            Ok(response) => answer(context, op, response.outcome),
            Err(error) => Err(CallError::new(context, op, CallFailure::Guest(error))),
        }
    }
}

impl Drop for TestGuest {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        if let Some(mut guest) = self.guest.take()
            && let Err(found) = self.watch.look_over(&mut guest)
        {
            panic!("{found}");
        }
    }
}
