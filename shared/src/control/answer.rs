//! What an operation answers when it does what its row says: the type that the row names.

use super::outcome::Outcome;
use crate::addr::{GuestPhys, GuestVirt};
use crate::kmem::MapId;

/// A type that an operation can answer.
pub trait Answer: Sized {
    /// What it is, for a message about an outcome that is something else.
    const SAYS: &'static str;

    /// The answer that `outcome` is, or `None` when it is something else: an error, a mismatch, a
    /// thread that sleeps.
    fn from_outcome(outcome: Outcome) -> Option<Self>;
}

macro_rules! answers {
    ($($type:ty: $says:literal, $($outcome:pat => $answer:expr),+;)+) => {$(
        impl Answer for $type {
            const SAYS: &'static str = $says;

            fn from_outcome(outcome: Outcome) -> Option<Self> {
                match outcome {
                    $($outcome => Some($answer),)+
                    _ => None,
                }
            }
        }
    )+};
}

answers! {
    (): "ok", Outcome::Ok => ();
    u64: "a number", Outcome::Value(value) => value;
    GuestVirt: "an address", Outcome::Value(value) => Self::new(value);
    Option<GuestVirt>: "an address or null",
        Outcome::Value(value) => Some(GuestVirt::new(value)), Outcome::Null => None;
    Option<GuestPhys>: "an address or null",
        Outcome::Value(value) => Some(GuestPhys::new(value)), Outcome::Null => None;
    MapId: "a map", Outcome::Value(value) => Self(value);
}

/// Whatever it is.
impl Answer for Outcome {
    const SAYS: &'static str = "an outcome";

    fn from_outcome(outcome: Outcome) -> Option<Self> {
        Some(outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Calls, Op};
    use super::*;
    use crate::kmem::{MallocFlags, WaitMessage};

    /// Keeps the operation, and answers each with one outcome.
    struct Fake(Option<Op>, Outcome);

    impl Calls for Fake {
        type Returned<A: Answer> = Option<A>;

        fn perform<A: Answer>(&mut self, op: Op) -> Option<A> {
            self.0 = Some(op);
            A::from_outcome(self.1)
        }
    }

    #[test]
    fn a_call_is_the_operation_of_its_row_with_the_answer_of_its_row() {
        let mut fake = Fake(None, Outcome::Value(0x1000));
        let (map, addr, flags) = (MapId::KMEM, GuestVirt::new(0x1000), MallocFlags::NOWAIT);
        assert_eq!(fake.kmem_malloc(map, 5, flags), Some(Some(addr)));
        assert_eq!(fake.0, Some(Op::KmemMalloc { map, size: 5, flags }));
        assert_eq!(fake.kernel_vtop(addr), Some(Some(GuestPhys::new(0x1000))));
        assert_eq!(fake.read(addr), Some(0x1000));
        assert_eq!(fake.kmem_free(map, addr, 5), None, "a number is not ok");
        assert_eq!(fake.0, Some(Op::KmemFree { map, addr, size: 5 }));
        fake.1 = Outcome::Null;
        assert_eq!(fake.kmem_alloc(map, 5), Some(None));
        assert_eq!(fake.read(addr), None);
        fake.1 = Outcome::Ok;
        assert_eq!((fake.settle(), fake.0), (Some(()), Some(Op::Settle)));
    }

    #[test]
    fn only_an_outcome_takes_a_thread_that_sleeps() {
        let blocked = Outcome::Blocked { waits_for: WaitMessage::new("vmmaps") };
        assert_eq!(Option::<GuestVirt>::from_outcome(blocked), None);
        assert_eq!(MapId::from_outcome(blocked), None);
        assert_eq!(Outcome::from_outcome(blocked), Some(blocked));
    }
}
