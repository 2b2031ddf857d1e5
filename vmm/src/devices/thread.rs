//! The thread on which devices do what takes time.
//!
//! **Protocol.** A guest has one such thread at most, which begins when the first event is watched
//! and is joined when its owner, the [`DeviceThread`], is dropped. Before the first watch there is
//! no thread, no epoll and no eventfd. A device with a [`Watcher`] may watch and stop watching, on
//! any thread, from within the work of an event as well: work runs without the lock. A piece of
//! work does not wait for the guest or for another device, because all devices share the thread.
//!
//! A device holds its [`Watch`], and the thread's list holds the work, which holds the device. The
//! owner breaks that circle: it drops the list after the thread has ended. So a device has a
//! [`Watcher`] and never the owner.
//!
//! The thread goes on while the guest's CPUs are held: what looks at a held guest must not rely on
//! memory that a device writes.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::kvm::KvmError;

/// What is done when an event has come.
type Work = Arc<dyn Fn() + Send + Sync>;

/// Names an event to the epoll.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Token(u64);

/// That of the event that ends the thread.
const STOP: Token = Token(0);
/// Events that are fetched at a time.
const AT_A_TIME: usize = 16;

/// An event with its work.
struct Watched {
    event: Arc<EventFd>,
    work: Work,
}

/// The thread, with what it waits by.
struct Running {
    epoll: Arc<Epoll>,
    stop: EventFd,
    thread: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    watched: BTreeMap<Token, Watched>,
    /// The last token that was used.
    last: u64,
    running: Option<Running>,
    is_over: bool,
}

#[derive(Default)]
struct Shared(Mutex<State>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} events", self.lock().watched.len())
    }
}

/// The owner of the thread. Dropping it ends the thread and lets go of all work.
#[derive(Debug, Default)]
pub(crate) struct DeviceThread(Arc<Shared>);

impl DeviceThread {
    /// For a device.
    pub(crate) fn watcher(&self) -> Watcher {
        Watcher(Arc::downgrade(&self.0))
    }
}

impl Drop for DeviceThread {
    fn drop(&mut self) {
        // 1. No event is watched from here on, so no second thread begins.
        let mut state = self.0.lock();
        state.is_over = true;
        let (running, watched) = (state.running.take(), std::mem::take(&mut state.watched));
        // Work that runs just now may want the lock.
        drop(state);
        // 2. The thread ends after the work at hand.
        if let Some(Running { stop, thread, .. }) = running {
            // Fails only when the counter is full, and then the thread wakes all the same.
            let _ = stop.write(1);
            if thread.join().is_err() {
                log::error!("the device thread panicked");
            }
        }
        // 3. The devices that nobody else has are dropped here, with their watches.
        drop(watched);
    }
}

/// Watches events for devices. Does not keep the thread alive.
#[derive(Clone, Debug)]
pub(crate) struct Watcher(Weak<Shared>);

impl Watcher {
    /// Has `work` done on the device thread each time that `event` has been signalled; signals that
    /// come before it is done count as one. The first call starts the thread. When the owner is
    /// gone, nothing is watched.
    ///
    /// # Errors
    /// When there can be no thread, no epoll or no eventfd.
    pub(crate) fn watch(
        &self,
        event: Arc<EventFd>,
        work: impl Fn() + Send + Sync + 'static,
    ) -> Result<Watch, KvmError> {
        let inert = Watch { shared: Weak::new(), token: STOP };
        let Some(shared) = self.0.upgrade() else { return Ok(inert) };
        let mut state = shared.lock();
        if state.is_over {
            return Ok(inert);
        }
        if state.running.is_none() {
            state.running = Some(start(&shared)?);
        }
        let token = Token(state.last + 1);
        if let Some(running) = &state.running {
            control(&running.epoll, ControlOperation::Add, &event, token)?;
        }
        state.last = token.0;
        state.watched.insert(token, Watched { event, work: Arc::new(work) });
        Ok(Watch { shared: self.0.clone(), token })
    }
}

/// An event that is watched. After this is dropped its work does not begin any more; it may be
/// about to end.
#[derive(Debug)]
#[must_use = "the event is watched as long as this lives"]
pub(crate) struct Watch {
    shared: Weak<Shared>,
    token: Token,
}

impl Drop for Watch {
    fn drop(&mut self) {
        let Some(shared) = self.shared.upgrade() else { return };
        let mut state = shared.lock();
        let watched = state.watched.remove(&self.token);
        if let (Some(running), Some(watched)) = (&state.running, &watched)
            && let Err(error) =
                control(&running.epoll, ControlOperation::Delete, &watched.event, self.token)
        {
            log::warn!("a device's event: {error}");
        }
        // The work may own the last reference to a device that has a watch as well.
        drop(state);
        drop(watched);
    }
}

/// Has `epoll` wait for `event`, or not any more.
fn control(
    epoll: &Epoll,
    operation: ControlOperation,
    event: &EventFd,
    Token(token): Token,
) -> Result<(), KvmError> {
    epoll
        .ctl(operation, event.as_raw_fd(), EpollEvent::new(EventSet::IN, token))
        .map_err(|error| KvmError::io("epoll_ctl for a device's event", &error))
}

/// Starts the thread.
fn start(shared: &Arc<Shared>) -> Result<Running, KvmError> {
    let epoll = Epoll::new().map_err(|error| KvmError::io("epoll for the devices", &error))?;
    let stop = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)
        .map_err(|error| KvmError::io("eventfd for the device thread", &error))?;
    control(&epoll, ControlOperation::Add, &stop, STOP)?;
    let epoll = Arc::new(epoll);
    let (waits_by, shared) = (Arc::clone(&epoll), Arc::clone(shared));
    let thread = thread::Builder::new()
        .name("vmkern-devices".to_owned())
        .spawn(move || serve(&waits_by, &shared))
        .map_err(|error| KvmError::io("starting the device thread", &error))?;
    Ok(Running { epoll, stop, thread })
}

/// The thread: does the work of events as they come, until it is told to end.
fn serve(epoll: &Epoll, shared: &Shared) {
    let mut events = [EpollEvent::default(); AT_A_TIME];
    loop {
        let count = match epoll.wait(-1, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                log::error!("the device thread cannot wait: {error}");
                return;
            }
        };
        for event in &events[..count] {
            let token = Token(event.data());
            if token == STOP {
                return;
            }
            // Without the lock: the work may watch another event. Nobody may want this one any
            // more.
            let watched = shared.lock().watched.get(&token).map(|watched| {
                let signalled = watched.event.read().is_ok();
                (signalled, Arc::clone(&watched.work))
            });
            if let Some((true, work)) = watched {
                work();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};
    use std::time::Duration;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn event() -> Arc<EventFd> {
        Arc::new(EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).expect("an eventfd can be made"))
    }

    fn ring(event: &EventFd) {
        event.write(1).expect("there is room in the counter");
    }

    fn watch(watcher: &Watcher, event: &Arc<EventFd>, sender: &Sender<u32>, say: u32) -> Watch {
        let sender = sender.clone();
        let work = move || sender.send(say).expect("the test listens");
        watcher.watch(Arc::clone(event), work).expect("there can be a thread")
    }

    #[test]
    fn no_thread_begins_before_the_first_watch_and_none_is_left_behind() {
        let owner = DeviceThread::default();
        assert!(owner.0.lock().running.is_none());
        let (sender, receiver) = channel();
        let event = event();
        let _watch = watch(&owner.watcher(), &event, &sender, 1);
        assert!(owner.0.lock().running.is_some());
        ring(&event);
        assert_eq!(receiver.recv_timeout(LONG), Ok(1));
        let left = Arc::downgrade(&owner.0);
        drop((owner, sender));
        assert!(left.upgrade().is_none(), "the thread has ended, and holds nothing");
        assert_eq!(Arc::strong_count(&event), 1, "and so is the event");
        receiver.recv().expect_err("and so is the work");
    }

    #[test]
    fn each_event_has_its_own_work_and_an_event_that_is_not_watched_has_none() {
        let owner = DeviceThread::default();
        let (sender, receiver) = channel();
        let (first, second) = (event(), event());
        let one = watch(&owner.watcher(), &first, &sender, 1);
        let _two = watch(&owner.watcher(), &second, &sender, 2);
        for (event, said) in [(&first, 1), (&second, 2), (&first, 1)] {
            ring(event);
            assert_eq!(receiver.recv_timeout(LONG), Ok(said));
        }
        drop(one);
        ring(&first);
        ring(&second);
        assert_eq!(receiver.recv_timeout(LONG), Ok(2));
        drop(owner);
        assert!(receiver.try_recv().is_err(), "nobody watched the first event");
    }

    #[test]
    fn work_may_watch_and_stop_watching() {
        let owner = DeviceThread::default();
        let (sender, receiver) = channel();
        let (first, second) = (event(), event());
        let (watcher, other, later) = (owner.watcher(), Arc::clone(&second), Mutex::new(None));
        let _watch = owner.watcher().watch(Arc::clone(&first), move || {
            let mut later = later.lock().expect("no work panics");
            *later = match later.take() {
                None => Some(watch(&watcher, &other, &sender, 7)),
                Some(_) => None,
            };
            sender.send(1).expect("the test listens");
        });
        ring(&first);
        assert_eq!(receiver.recv_timeout(LONG), Ok(1));
        ring(&second);
        assert_eq!(receiver.recv_timeout(LONG), Ok(7));
        ring(&first);
        assert_eq!(receiver.recv_timeout(LONG), Ok(1));
        assert_eq!(owner.0.lock().watched.len(), 1);
    }

    /// Holds its watch, as devices do.
    struct Held(Mutex<Option<Watch>>);

    #[test]
    fn a_device_that_holds_its_watch_goes_with_the_thread() {
        let owner = DeviceThread::default();
        let device = Arc::new(Held(Mutex::new(None)));
        let (again, left) = (Arc::clone(&device), Arc::downgrade(&device));
        let watched = owner.watcher().watch(event(), move || drop(again.0.lock()));
        *device.0.lock().expect("nobody panicked") = Some(watched.expect("a thread can begin"));
        drop(device);
        assert!(left.upgrade().is_some(), "its work keeps it");
        drop(owner);
        assert!(left.upgrade().is_none());
    }

    #[test]
    fn nothing_is_watched_when_the_owner_is_gone() {
        let watcher = DeviceThread::default().watcher();
        let (sender, receiver) = channel();
        let event = event();
        let _watch = watch(&watcher, &event, &sender, 1);
        drop(sender);
        ring(&event);
        receiver.recv().expect_err("there is no thread, and the work is gone");
    }
}
