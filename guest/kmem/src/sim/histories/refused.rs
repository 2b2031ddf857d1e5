//! Each allocation that an operation makes fails once, in turn.

use super::Telling;
use super::step::{History, On, STEPS, Step, history};
use super::world::World;
use proptest::prelude::*;
use vmkern_abi::fail::FailSite;

/// The sites at which a failure makes an operation wait, or fail with nothing changed.
pub const SITES: [FailSite; 11] = [
    FailSite::VmPageAlloc,
    FailSite::VmPageAllocNormal,
    FailSite::VmPageAllocSystem,
    FailSite::VmPageAllocInterrupt,
    FailSite::PmapPtAlloc,
    FailSite::VmMapEntryAlloc,
    FailSite::SlabZalloc,
    FailSite::VmObjectReserve,
    FailSite::VmFaultAlloc,
    FailSite::VmMapWire,
    FailSite::KmemSuballocMap,
];

/// A history whose last step fails at a site.
#[derive(Clone, Debug)]
pub struct Refused {
    before: History,
    last: Step,
    site: FailSite,
}

/// Such histories.
pub fn refused() -> impl Strategy<Value = Refused> {
    let last = any::<prop::sample::Index>();
    // Half of them fail at any page, which the other sites are about, too.
    let site = prop_oneof![Just(FailSite::VmPageAlloc), prop::sample::select(SITES.to_vec())];
    (history(0..1, &[24, 256, 1000], STEPS), last, site).prop_filter_map(
        "a step is needed",
        |(mut before, last, site)| {
            before
                .steps
                .retain(|(_, step)| !matches!(step, Step::Panic { .. } | Step::Drain { .. }));
            let (_, last) = (!before.steps.is_empty())
                .then(|| before.steps.remove(last.index(before.steps.len())))?;
            Some(Refused { before, last, site })
        },
    )
}

/// Performs `refused` once for each hit of its site in the last step, and returns their number.
fn each(refused: &Refused, telling: &Telling) -> u64 {
    for nth in 1.. {
        telling.take();
        let mut world = World::new(refused.before.shape, telling);
        for (on, step) in &refused.before.steps {
            world.step(*on, step);
        }
        if world.over {
            return 0;
        }
        world.arm(refused.site, nth);
        world.step(On::Driver, &refused.last);
        let reached = world.has_refused() || world.over;
        world.check_unless_over();
        world.finish();
        if !reached {
            return nth - 1;
        }
    }
    unreachable!("no operation allocates for ever")
}

/// Performs `history`, one operation at a time. In its second half the first operation that comes
/// to hit number `nth` of `site` fails there. Returns whether one did.
pub fn failing_once(history: &History, site: FailSite, nth: u64, telling: &Telling) -> bool {
    let mut world = World::new(history.shape, telling);
    let mut failed = false;
    for (number, (on, step)) in history.steps.iter().enumerate() {
        if number >= history.steps.len() / 2 && !failed && !world.over {
            world.arm(site, nth);
        }
        world.step(*on, step);
        failed |= world.has_refused();
    }
    world.finish();
    failed
}

/// Fails each hit of the site once.
pub fn everything(refused: &Refused, telling: &Telling) {
    each(refused, telling);
}

#[cfg(test)]
mod tests {
    use vmkern_abi::addr::{GuestVirt, PAGE_SIZE};
    use vmkern_abi::control::{MallocFlags, MapId, MapKind, Op, Outcome};

    use super::super::step::{FreeBy, How, Part, Shape, Size, memory};
    use super::*;
    use crate::sim::Sim;

    fn shape() -> Shape {
        Shape { memory: memory(), kmem: 256, workers: 0 }
    }

    /// Allocates the addresses of kernel_map for which the boot has made page tables.
    fn boot_tables() -> Step {
        let sim = Sim::boot(shape().memory, shape().tunables());
        let first = Op::KmemAllocNofault { map: MapId::KERNEL, size: PAGE_SIZE };
        let Outcome::Value(first) = sim.execute(&first) else { panic!("there is room") };
        let size = sim.vm().state().kernel_vm_end.get().since(GuestVirt::new(first));
        Step::Allocate { map: 0, size: Size::Bytes(size), how: How::Nofault }
    }

    /// A step after some preparation, with the kinds of which it must need at least one.
    fn cases() -> Vec<(&'static str, Vec<Step>, Step, Vec<FailSite>)> {
        let alloc = |map, pages: u64, how| Step::Allocate {
            map,
            size: Size::Bytes(pages * PAGE_SIZE),
            how,
        };
        let nowait = How::Malloc(MallocFlags::NOWAIT);
        let waitok = How::Malloc(MallocFlags::WAITOK);
        let [normal, system, interrupt] = [
            FailSite::VmPageAllocNormal,
            FailSite::VmPageAllocSystem,
            FailSite::VmPageAllocInterrupt,
        ];
        // Memory and windows in turn, each an entry of its own, up to the edge of the home of
        // kmem_map.
        let crowd = |map: u8, how: How| -> Vec<Step> {
            let other = if matches!(how, How::Nofault) { How::Alloc } else { How::Nofault };
            (0..14).flat_map(|_| [alloc(map, 1, how), alloc(map, 1, other)]).collect()
        };
        let boots = || vec![boot_tables()];
        let (table, far) = (FailSite::PmapPtAlloc, alloc(0, 3000, How::Nofault));
        let part = Part::Bytes(PAGE_SIZE, PAGE_SIZE);
        let enter = Step::Enter { pick: 0, from: 0, count: 5 };
        let suballoc = |pages: u64| Step::Suballoc {
            map: 0,
            size: Size::Bytes(pages * PAGE_SIZE),
            kind: MapKind::User,
        };
        vec![
            ("nofault past the page tables", boots(), far, vec![table, interrupt]),
            ("kmem_alloc", vec![], alloc(0, 20, How::Alloc), vec![normal]),
            ("kmem_malloc", vec![], alloc(1, 20, nowait), vec![interrupt]),
            ("kmem_malloc that may sleep", vec![], alloc(1, 20, waitok), vec![system]),
            ("kmem_malloc in kernel_map", vec![], alloc(0, 20, nowait), vec![interrupt]),
            ("a sleeper in kernel_map", vec![], alloc(0, 20, waitok), vec![system]),
            (
                "a map that outgrows its home",
                crowd(1, nowait),
                alloc(1, 2, nowait),
                vec![FailSite::VmMapEntryAlloc],
            ),
            (
                "a sleeper in such a map",
                crowd(1, nowait),
                alloc(1, 2, waitok),
                vec![FailSite::VmMapEntryAlloc],
            ),
            (
                "kmem_alloc in such a map",
                crowd(0, How::Alloc),
                alloc(0, 2, How::Alloc),
                vec![normal],
            ),
            ("kmem_suballoc", vec![], suballoc(8), vec![FailSite::VmMapEntryAlloc]),
            ("kmem_suballoc past the page tables", boots(), suballoc(3000), vec![table]),
            ("kmem_alloc_wait", vec![], alloc(2, 8, How::Wait), vec![]),
            (
                "the first touch",
                vec![alloc(2, 8, How::Wait)],
                Step::Touch { pick: 0, part: Part::Whole },
                vec![FailSite::SlabZalloc, normal],
            ),
            (
                "a cut of what was never touched",
                vec![alloc(2, 8, How::Wait)],
                Step::Free { pick: 0, part, by: FreeBy::Wakeup },
                vec![FailSite::SlabZalloc],
            ),
            (
                "a cut in a full map",
                crowd(0, How::Alloc),
                Step::Free { pick: 3, part: Part::Whole, by: FreeBy::Free },
                vec![],
            ),
            ("pmap_qenter", vec![alloc(0, 8, How::Nofault)], enter, vec![system]),
            (
                "on_lowmem",
                vec![alloc(1, 8, nowait)],
                Step::Lowmem { pick: 0 },
                vec![FailSite::SlabZalloc],
            ),
            ("uma_reclaim", vec![], Step::Reclaim, vec![]),
        ]
    }

    #[test]
    fn every_allocation_of_every_function_can_fail_and_leaves_all_as_it_was_or_ends_in_freebsds_panic()
     {
        for (name, before, last, needed) in cases() {
            let steps = before.into_iter().map(|step| (On::Driver, step)).collect();
            let shape = shape();
            let before = History { shape, steps };
            let reached = SITES.map(|site| {
                let refused = Refused { before: before.clone(), last, site };
                each(&refused, &Telling::default())
            });
            println!("{name}: {reached:?} allocations by kind");
            for (kind, count) in SITES.iter().zip(reached) {
                assert!(count > 0 || !needed.contains(kind), "{name} asks for no {kind:?}");
            }
        }
    }
}
