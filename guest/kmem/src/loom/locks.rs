//! The word of a mutex, acquired and released by two CPUs like in [`crate::kern::Kern::mtx_lock`]
//! and `mtx_unlock`.

use std::sync::Arc;

use loom::thread;
use vmkern_abi::atomic::watched::Watched;
use vmkern_abi::field::Field;
use vmkern_abi::layout::Mtx;

/// A mutex, and two words under it that are always equal.
#[derive(Default)]
struct Guarded {
    mtx: Mtx,
    pair: [Field<u32>; 2],
}

impl Guarded {
    fn new() -> (Arc<Self>, [Watched; 3]) {
        let guarded = Arc::new(Self::default());
        let [a, b] = &guarded.pair;
        let watched = [guarded.mtx.owner.watch(), a.watch(), b.watch()];
        (guarded, watched)
    }

    /// Adds one to both words under the lock, as the owner `me`.
    fn add(&self, me: u32) {
        while let Err(owner) = self.mtx.owner.acquire(0, me) {
            assert_ne!(owner, me, "the lock is somebody else's");
            thread::yield_now();
        }
        let [a, b] = &self.pair;
        assert_eq!(a.get(), b.get(), "another owner is at work, or its work is not seen");
        a.inc();
        b.inc();
        assert_eq!(self.mtx.owner.get(), me);
        self.mtx.owner.set_release(0);
    }
}

#[test]
fn a_mutex_has_one_owner_who_sees_what_the_last_one_did() {
    loom::model(|| {
        let (guarded, _watched) = Guarded::new();
        let far = Arc::clone(&guarded);
        let other = thread::spawn(move || far.add(2));
        guarded.add(1);
        other.join().expect("it ends well");
        assert_eq!(guarded.pair.each_ref().map(Field::get), [2; 2], "an addition is lost");
        assert_eq!(guarded.mtx.owner.get(), 0);
    });
}
