//! Scripts after a fire, on a target without a guest.

use std::time::Duration;

use vmkern_abi::control::{KernReturn, Op, Outcome, WaitMessage};
use vmkern_abi::fail::FailSite;

use super::watched::Watched;
use crate::script::tests::fake::{BASE, Fake, given, panic};
use crate::script::{Ending, Source, Step, Stop, parse, run};

/// What became of a script, and of what it held.
struct Swept {
    ending: Ending,
    /// Results that no row documents.
    odd: Vec<String>,
    /// The rule that the last unjudged end breaks.
    broken: Option<String>,
}

/// Runs `text` on `fake`, at which every site fires as it says, and brings it to its end.
fn swept(fake: &mut Fake, text: &str) -> Swept {
    let script = parse(&Source::new("test.kmem", text)).unwrap_or_else(|errors| {
        panic!("{}", errors.iter().map(|error| error.message.as_str()).collect::<String>())
    });
    let stop = Stop::after(Duration::from_secs(3600));
    let mut watched = Watched::new(fake, Some(FailSite::VmMapFindspace));
    let ending = run(&script, &mut watched, 0, &stop, &mut |_: &Step| {});
    let broken = watched.last.as_ref().and_then(|last| last.broken());
    if ending == Ending::Finished {
        watched.wind_up().expect("the fake answers");
    }
    let odd = watched.odd.iter().map(|odd| format!("{:?} {}", odd.line, odd.what)).collect();
    Swept { ending, odd, broken }
}

/// A fake whose site fires in its first operation, which gives `outcome`.
fn failing(outcome: Outcome) -> Fake {
    Fake { scripted: [given(outcome)].into(), fires_after: Some(1), ..Fake::default() }
}

/// The operations that the script and the end did, without the rest at the end.
fn done(fake: &Fake) -> Vec<Op> {
    let (last, done) = fake.ops.split_last().expect("there is an end");
    assert_eq!(*last, Op::Settle);
    done.to_vec()
}

#[test]
fn before_the_fire_everything_is_judged() {
    let mut fake = Fake::default();
    let ending = swept(&mut fake, "a = kmem_alloc kernel_map 4K\nexpect null\n").ending;
    assert!(matches!(ending, Ending::Failed(_)), "{ending:?}");
}

#[test]
fn after_the_fire_nothing_is_judged_and_what_needs_a_null_is_skipped() {
    let mut fake = failing(Outcome::Null);
    let text = "a = kmem_alloc kernel_map 4K\nfill $a 4K 7\nassert $a != 0\nlet b = $a + 1\n\
                read $b\nkmem_free kernel_map $a 4K\nnothing = settle\nexpect null\n";
    let swept = swept(&mut fake, text);
    assert_eq!((swept.ending, swept.odd), (Ending::Finished, Vec::new()));
    assert_eq!(done(&fake).len(), 2, "{:?}", fake.ops);
}

#[test]
fn a_value_of_an_earlier_round_is_not_used_again() {
    // The site fires in the second round's allocation.
    let value = || given(Outcome::Value(BASE));
    let scripted = [value(), given(Outcome::Ok), given(Outcome::Null)].into();
    let mut fake = Fake { scripted, fires_after: Some(3), ..Fake::default() };
    let text = "repeat 2\na = kmem_alloc kernel_map 4K\nkmem_free kernel_map $a 4K\nend\n";
    assert_eq!(swept(&mut fake, text).ending, Ending::Finished);
    let frees = fake.ops.iter().filter(|op| matches!(op, Op::KmemFree { .. })).count();
    assert_eq!(frees, 1, "{:?}", fake.ops);
}

#[test]
fn memory_that_the_script_does_not_hold_is_touched_only_by_a_statement_that_dies() {
    let mut fake = failing(Outcome::Null);
    let text = format!("a = kmem_alloc kernel_map 4K\nread {BASE}\n");
    assert_eq!(swept(&mut fake, &text).ending, Ending::Finished);
    assert!(!fake.ops.iter().any(|op| matches!(op, Op::Read { .. })), "{:?}", fake.ops);
    let mut fake = failing(Outcome::Null);
    fake.scripted.push_back(panic("page fault"));
    let text = format!("{text}expect panic \"page fault\"\n");
    assert!(matches!(swept(&mut fake, &text).ending, Ending::ExpectedPanic(_)));
}

#[test]
fn the_end_frees_what_the_script_still_holds_and_only_that() {
    let mut fake = Fake { fires_after: Some(2), ..Fake::default() };
    let text = "a = kmem_alloc kernel_map 12K\nb = kmem_alloc kernel_map 4K\n\
                kmem_free kernel_map $a 4K\n";
    assert_eq!(swept(&mut fake, text).ending, Ending::Finished);
    let freed: Vec<_> = fake
        .ops
        .iter()
        .filter_map(|op| match *op {
            Op::KmemFreeWakeup { addr, size, .. } => Some((addr.get() - BASE, size)),
            _ => None,
        })
        .collect();
    assert_eq!(freed, [(4096, 8192), (12288, 4096)]);
}

#[test]
fn an_allocation_that_may_not_wait_and_sleeps_is_reported_with_its_line() {
    let blocked = Outcome::Blocked { waits_for: WaitMessage::new("VMWait") };
    let mut fake = failing(blocked);
    let swept = swept(&mut fake, "\na = kmem_malloc kmem_map 4K NOWAIT\n");
    assert_eq!(swept.odd.len(), 1, "{:?}", swept.odd);
    assert!(swept.odd[0].starts_with("Some(2) "), "{:?}", swept.odd);
}

#[test]
fn a_free_that_fails_is_reported_and_one_that_the_script_expects_is_not() {
    let text = "kmem_free kmem_map $f 4K\n";
    let text = format!("f = kmem_alloc kmem_map 4K\n{text}");
    let failed = || given(Outcome::Error(KernReturn::InvalidArgument));
    let fake = || Fake {
        scripted: [given(Outcome::Value(BASE)), failed()].into(),
        fires_after: Some(1),
        ..Fake::default()
    };
    assert_eq!(swept(&mut fake(), &text).odd.len(), 1);
    let text = format!("{text}expect error KERN_INVALID_ARGUMENT\n");
    assert_eq!(swept(&mut fake(), &text).odd, [""; 0]);
}

#[test]
fn a_panic_is_judged_by_its_text() {
    let text = "a = kmem_malloc kmem_map 4K WAITOK\n";
    let dying = |message| Fake {
        scripted: [panic(message)].into(),
        fires_after: Some(1),
        ..Fake::default()
    };
    let swept_small = swept(&mut dying("kmem_malloc(4096): kmem_map too small: 0 total"), text);
    assert!(matches!(swept_small.ending, Ending::Panicked(..)));
    assert_eq!(swept_small.broken, None);
    let other = swept(&mut dying("vm_page_free: freeing free page"), text);
    assert!(other.broken.is_some());
}

#[test]
fn contents_that_the_script_has_written_are_still_judged() {
    let mismatch =
        Outcome::Mismatch { addr: vmkern_abi::addr::GuestVirt::new(BASE), got: 1, want: 2 };
    let value = || given(Outcome::Value(BASE));
    let mut fake = Fake {
        scripted: [value(), given(Outcome::Ok), given(mismatch)].into(),
        fires_after: Some(1),
        ..Fake::default()
    };
    let odd = swept(&mut fake, "a = kmem_alloc kernel_map 4K\nfill $a 4K 7\nverify $a 4K 7\n").odd;
    assert_eq!(odd.len(), 1, "{odd:?}");
}
