//! Page-table entries with bits that must be zero: the host's walk, the kernel's, KVM's own
//! (`KVM_TRANSLATE`) and the CPU's agree about them.
//!
//! The host and the kernel share a walker, so they cannot check each other. KVM has its own walker,
//! which follows the vCPU's CPUID, on hardware as well as on a software KVM. The CPU decides: a
//! read of the address, in a separate guest, because a successful read leaves a translation behind.

use std::ops::RangeInclusive;

use vmkern::abi::crash::CrashKind;
use vmkern::abi::kva::phys_to_dmap;
use vmkern::abi::pte::{Level, Pte, PteFlags};
use vmkern::testing::Calls as _;
use vmkern::{Guest, GuestError, GuestPhys, GuestVirt, MapId, Op, Outcome, ThreadId};
use vmkern_tests::kern::PAGE;
use vmkern_tests::{MEMORY, Run as _, launch_unchecked};

/// An address in an unused part of the address space; its index differs at each level.
const VA: GuestVirt = GuestVirt::new(5 << 39 | 6 << 30 | 7 << 21 | 8 << 12);

/// Flags of an entry that the test makes.
const FLAGS: PteFlags =
    PteFlags::V.union(PteFlags::RW).union(PteFlags::U).union(PteFlags::A).union(PteFlags::M);

/// Which entry is changed, on a path to a page of a certain size.
#[derive(Clone, Copy, Debug)]
struct Form {
    /// The level of the last entry.
    leaf: Level,
    /// The level of the entry whose bits are changed.
    level: Level,
}

/// Each level on the path to a small page, and the last entry for each kind of large page.
const FORMS: [Form; 6] = [
    Form { leaf: Level::Pt, level: Level::Pml4 },
    Form { leaf: Level::Pt, level: Level::Pdpt },
    Form { leaf: Level::Pt, level: Level::Pd },
    Form { leaf: Level::Pt, level: Level::Pt },
    Form { leaf: Level::Pd, level: Level::Pd },
    Form { leaf: Level::Pdpt, level: Level::Pdpt },
];

/// A guest with the test's own tables, which lead to [`VA`].
struct Way {
    guest: Guest,
    /// The root and the tables below it.
    tables: [GuestPhys; 4],
    /// A page that belongs to the test.
    page: GuestPhys,
}

impl Way {
    /// A path whose last entry is at level `leaf`.
    fn to(leaf: Level) -> Self {
        let mut guest = launch_unchecked(Guest::builder().memory(MEMORY));
        let block = guest.kmem_alloc(MapId::KERNEL, 4 * PAGE).expect("the guest lives");
        let block = block.expect("there is room");
        let mut frame = |number: u64| match guest.run(Op::Vtop { addr: block.add(number * PAGE) }) {
            Outcome::Value(phys) => GuestPhys::new(phys),
            other => panic!("wired memory is at {other:?}"),
        };
        let own = [frame(0), frame(1), frame(2)];
        let page = frame(3);
        let root = guest.look(|view| Ok(view.pml4())).expect("the kernel has page tables");
        let tables = [root, own[0], own[1], own[2]];
        let mut way = Self { guest, tables, page };
        for level in Level::TOP_DOWN {
            let bits = way.good(Form { leaf, level });
            way.put(level, bits);
            if level == leaf {
                break;
            }
        }
        way
    }

    /// The depth of the table of `level`, from the top.
    fn depth(level: Level) -> usize {
        Level::TOP_DOWN.iter().position(|&at| at == level).expect("there are four levels")
    }

    /// The unchanged entry.
    fn good(&self, Form { leaf, level }: Form) -> u64 {
        match (level == leaf, level) {
            (true, Level::Pt) => Pte::new(self.page, FLAGS).bits(),
            // The first large page of RAM, which is only read.
            (true, _) => Pte::new(GuestPhys::new(0), FLAGS | PteFlags::PS).bits(),
            (false, _) => Pte::new(self.tables[Self::depth(level) + 1], FLAGS).bits(),
        }
    }

    /// Stores an entry of the table of `level`, as the guest.
    fn put(&mut self, level: Level, bits: u64) {
        let at = self.tables[Self::depth(level)].add(level.index(VA) as u64 * 8);
        self.guest.ok(Op::Write { addr: phys_to_dmap(at), value: bits });
    }

    /// Where the host's walk leads, and the bits for which it refuses the entry. It also leads
    /// nowhere if a table is not RAM.
    fn by_host(&self) -> (Option<GuestPhys>, u64) {
        match self.guest.vtop(VA) {
            Ok(walk) => (walk.mapping.map(|mapping| mapping.phys), walk.reserved),
            Err(_) => (None, 0),
        }
    }

    /// Where the kernel's walk leads; its tables must be RAM.
    fn by_kernel(&mut self) -> Option<GuestPhys> {
        match self.guest.run(Op::Vtop { addr: VA }) {
            Outcome::Value(phys) => Some(GuestPhys::new(phys)),
            Outcome::Null => None,
            other => panic!("vtop gave {other:?}"),
        }
    }

    /// Where KVM's walk leads.
    fn by_kvm(&self) -> Option<GuestPhys> {
        let (_pause, answers) = self.guest.pause_and_translate(&[VA]).expect("KVM translates");
        answers[0]
    }

    /// Whether the CPU refuses the entry for its reserved bits, which ends the guest. Otherwise it
    /// must read the page's content.
    fn cpu_refuses(&mut self) -> bool {
        let refused = self.by_host().0.is_none();
        if !refused {
            assert!(matches!(self.guest.run(Op::Read { addr: VA }), Outcome::Value(_)));
            return false;
        }
        let answer = self.guest.call(ThreadId::MAIN, Op::Read { addr: VA });
        let Err(GuestError::Crashed(crash)) = answer else { panic!("the read gave {answer:?}") };
        assert_eq!((crash.kind, crash.cr2), (CrashKind::PageFault, VA), "{}", crash.message);
        assert!(
            crash.message.starts_with("page fault: read (reserved bit set)"),
            "{}",
            crash.message
        );
        true
    }
}

/// Whether no CPU refuses the entry, but it now leads elsewhere or nowhere.
fn leads_elsewhere(way: &Way, good: Option<GuestPhys>) -> bool {
    let (phys, reserved) = way.by_host();
    reserved == 0 && (phys.is_none() || phys != good)
}

#[test]
fn walks_refuse_each_bit_that_kvm_refuses_at_each_level_and_no_other() {
    for form in FORMS {
        let mut way = Way::to(form.leaf);
        let good = way.good(form);
        let mut refused = 0u64;
        for bit in 0..64 {
            way.put(form.level, good ^ 1 << bit);
            let (phys, reserved) = way.by_host();
            assert_eq!(phys, way.by_kvm(), "our walk and KVM's differ: {form:?}, bit {bit}");
            if way.guest.vtop(VA).is_ok() {
                assert_eq!(
                    phys,
                    way.by_kernel(),
                    "the host's walk and the kernel's differ: {form:?}, bit {bit}"
                );
            }
            assert!(phys.is_none() || reserved == 0, "{form:?}, bit {bit}");
            refused |= reserved;
        }
        let paging =
            way.guest.look(|view| Ok(view.source().paging())).expect("the kernel has page tables");
        // Above MAXPHYADDR every bit of an address is reserved.
        let above = |bits: u32| (bits..52).map(|bit| 1u64 << bit).sum::<u64>();
        assert_eq!(refused & above(paging.phys_bits()), above(paging.phys_bits()), "{form:?}");
        match (form.leaf, form.level) {
            (Level::Pt, Level::Pml4) => {
                assert_ne!(refused & PteFlags::PS.bits(), 0, "PS in the root")
            }
            (Level::Pd, _) => {
                assert_eq!(refused & span(13..=20), span(13..=20), "low bits of 2 MiB")
            }
            _ => {}
        }
    }
}

/// A mask of bits.
fn span(bits: RangeInclusive<u32>) -> u64 {
    bits.map(|bit| 1u64 << bit).sum()
}

#[test]
fn the_cpu_faults_where_walks_find_a_reserved_bit_and_reads_where_they_find_none() {
    for form in FORMS {
        let (mut refused, mut read) = (0, 0);
        // Bits 1 and 2 are permissions; without bit 0 there is no entry.
        for bit in 3..64 {
            let mut way = Way::to(form.leaf);
            let (good, bits) = (way.by_host().0, way.good(form) ^ 1 << bit);
            way.put(form.level, bits);
            if leads_elsewhere(&way, good) {
                continue;
            }
            let reserved = way.by_host().1;
            assert_eq!(way.cpu_refuses(), reserved != 0, "{form:?}, bit {bit}");
            refused += u32::from(reserved != 0);
            read += u32::from(reserved == 0);
        }
        // A CPU with 52-bit addresses refuses no bit of a table's address; one without 1 GiB pages
        // refuses every such page.
        assert!(refused >= 1 || form.leaf == Level::Pt, "{form:?}: nothing was refused");
        assert!(read >= 10 || form.leaf == Level::Pdpt, "{form:?}: {read} were read");
    }
}
