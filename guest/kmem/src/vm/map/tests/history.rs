//! Random histories: every invariant after each step.

use proptest::prelude::*;
use vmkern_abi::addr::PAGE_SIZE;
use vmkern_abi::control::MallocFlags;

use super::{Fixture, PAGES};

#[derive(Clone, Copy, Debug)]
enum Step {
    Malloc { pages: u64 },
    Alloc { pages: u64 },
    Nofault { pages: u64 },
    Free { start: u64, pages: u64 },
    Wire { start: u64, pages: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1u64..12).prop_map(|pages| Step::Malloc { pages }),
        2 => (1u64..12).prop_map(|pages| Step::Alloc { pages }),
        2 => (1u64..12).prop_map(|pages| Step::Nofault { pages }),
        5 => (0..PAGES, 0u64..24).prop_map(|(start, pages)| Step::Free { start, pages }),
        1 => (0..PAGES, 1u64..8).prop_map(|(start, pages)| Step::Wire { start, pages }),
    ]
}

/// Which pages are taken.
struct Bitmap(Vec<bool>);

impl Bitmap {
    fn at(&self, page: u64) -> bool {
        self.0[usize::try_from(page).expect("a page of a small map")]
    }

    fn set(&mut self, start: u64, end: u64, taken: bool) {
        for page in start..end {
            self.0[usize::try_from(page).expect("a page of a small map")] = taken;
        }
    }

    /// The lowest room.
    fn first_fit(&self, pages: u64) -> Option<u64> {
        (0..=PAGES - pages).find(|&start| (start..start + pages).all(|page| !self.at(page)))
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn maps_agree_with_a_bitmap_and_every_page_and_reference_is_accounted_for(
        steps in proptest::collection::vec(step(), 1..80),
    ) {
        let f = Fixture::new();
        let vm = f.vm();
        let mut taken = Bitmap((0..PAGES).map(|_| false).collect());
        let refs = f.kmem_refs();
        for step in steps {
            let (pages, got) = match step {
                Step::Malloc { pages } => {
                    (pages, vm.kmem_malloc(f.map, pages * PAGE_SIZE, MallocFlags::NOWAIT))
                }
                Step::Alloc { pages } => (pages, vm.kmem_alloc(f.map, pages * PAGE_SIZE)),
                Step::Nofault { pages } => (pages, vm.kmem_alloc_nofault(f.map, pages * PAGE_SIZE)),
                Step::Free { start, pages } => {
                    vm.kmem_free(f.map, f.at(start), pages * PAGE_SIZE);
                    taken.set(start, (start + pages).min(PAGES), false);
                    (0, None)
                }
                Step::Wire { start, pages } => {
                    let has_object = |page| taken.at(page) && !f.entry(page).object.get().is_null();
                    let end = (start + pages).min(PAGES);
                    if (start..end).all(has_object) {
                        prop_assert_eq!(vm.vm_map_wire(f.map, f.at(start), f.at(end)), Ok(()));
                    }
                    (0, None)
                }
            };
            if pages != 0 {
                let want = taken.first_fit(pages);
                prop_assert_eq!(got.map(|va| f.page(va)), want);
                if let Some(start) = want {
                    taken.set(start, start + pages, true);
                }
            }
            let ranges = f.ranges();
            let covered =
                |page: u64| ranges.iter().any(|&(start, end)| start <= page && page < end);
            prop_assert!((0..PAGES).all(|page| covered(page) == taken.at(page)));
            let kmem_object = vm.kmem_object();
            let entries = || vm.vm_map_entries(f.map).map(|entry| vm.get(entry));
            let held = || entries().filter(|e| e.object.get() == kmem_object);
            prop_assert_eq!(f.kmem_refs() as usize, refs as usize + held().count());
            let bytes = held().map(|e| e.len()).sum::<u64>();
            prop_assert_eq!(vm.get(kmem_object).resident_page_count.get() * PAGE_SIZE, bytes);
        }
        vm.kmem_free(f.map, f.min, PAGES * PAGE_SIZE);
        prop_assert_eq!(f.ranges(), []);
        prop_assert_eq!(f.kmem_refs(), refs);
    }
}
