//! A long life of one guest: allocated memory keeps its content, and freed memory can be allocated
//! again.

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use vmkern::testing::Balance;
use vmkern::{Guest, GuestVirt, MallocFlags, MapId, Op, Outcome};
use vmkern_tests::{Run, guest};

/// The most bytes that may be live at a time.
const LIVE_MAX: u64 = 20 << 20;

struct Block {
    addr: GuestVirt,
    size: u64,
    seed: u64,
}

/// Checks that the kernel's translation agrees with the hardware's: the host walks the guest's page
/// tables itself.
fn same_translation(guest: &mut Guest, addr: GuestVirt) {
    let walk = guest.vtop(addr).expect("the page tables can be read");
    let host = walk.mapping.expect("allocated memory is mapped").phys;
    assert_eq!(guest.run(Op::Vtop { addr }), Outcome::Value(host.get()), "translation of {addr}");
}

fn round(guest: &mut Guest, rng: &mut Xoshiro256PlusPlus, blocks: u64) {
    let mut live: Vec<Block> = Vec::new();
    let mut bytes = 0;
    for seed in 0..blocks {
        let size = 1 + rng.next_u64() % (64 << 10);
        while bytes + size > LIVE_MAX {
            let victim = usize::try_from(rng.next_u64() % live.len() as u64).expect("an index");
            let block = live.swap_remove(victim);
            bytes -= block.size;
            release(guest, &block);
        }
        let zero = seed % 4 == 0;
        let flags =
            if zero { MallocFlags::NOWAIT | MallocFlags::ZERO } else { MallocFlags::NOWAIT };
        let addr = guest.address(Op::KmemMalloc { map: MapId::KMEM, size, flags });
        if zero {
            guest.ok(Op::VerifyZero { addr, size });
        }
        guest.ok(Op::Fill { addr, size, seed });
        same_translation(guest, addr.add(rng.next_u64() % size));
        bytes += size;
        live.push(Block { addr, size, seed });
    }
    for block in live {
        release(guest, &block);
    }
}

fn release(guest: &mut Guest, block: &Block) {
    guest.ok(Op::Verify { addr: block.addr, size: block.size, seed: block.seed });
    guest.free(block.addr, block.size);
    assert!(
        guest.vtop(block.addr).expect("the page tables can be read").mapping.is_none(),
        "freed and still mapped"
    );
}

#[test]
fn ten_thousand_random_blocks_keep_their_contents_and_give_back_every_page() {
    let mut guest = guest();
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(7);
    round(&mut guest, &mut rng, 500);
    let before = Balance::of(&guest);
    round(&mut guest, &mut rng, 10_000);
    assert_eq!(Balance::of(&guest), before);
}
