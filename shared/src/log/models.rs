//! A reader that is overtaken, under every interleaving, by loom: `scripts/loom.sh` runs this.

extern crate std;

use std::sync::Arc;
use std::vec::Vec;

use loom::thread;
use zerocopy::FromZeros;

use super::LogRing;

#[test]
fn a_byte_that_was_overwritten_while_it_was_read_is_never_taken_for_another() {
    loom::model(|| {
        let ring: Arc<LogRing<3>> = Arc::new(LogRing::new_zeroed());
        let _watched: Vec<_> = ring.watch().collect();
        ring.write(&[1, 2]);
        let far = Arc::clone(&ring);
        let writer = thread::spawn(move || far.write(&[3, 4, 5]));
        let mut piece = [0; 3];
        let read = ring.read(0, &mut piece);
        for (at, found) in read.zip(piece) {
            assert_eq!(u64::from(found), at + 1);
        }
        writer.join().expect("the writer has not failed");
    });
}
