//! [`Circular`].

use super::*;
use crate::queue::Circular;

/// The entry that is the header.
const HEADER: u32 = 1;

proptest! {
    #[test]
    fn a_circular_list_is_a_deque_that_ends_in_its_header(steps in history(4)) {
        let arena = Arena::new();
        let list = Circular::new(&arena);
        list.init(HEADER);
        // The header is its first entry.
        let mut model = VecDeque::from([HEADER]);
        for (kind, which) in steps {
            match (kind, free_entry(&model, which), which as usize % model.len()) {
                (0 | 1, Some(entry), place) => {
                    list.insert_after(model[place], entry);
                    model.insert(place + 1, entry);
                }
                (2, _, place @ 1..) => {
                    let entry = model.remove(place).expect("the place is in the model");
                    list.remove(entry);
                }
                (3, Some(to), place @ 1..) => {
                    let from = std::mem::replace(&mut model[place], to);
                    arena.node(to).next.set(arena.node(from).next.get());
                    arena.node(to).prev.set(arena.node(from).prev.get());
                    list.moved(to);
                }
                _ => {}
            }
            for (place, &entry) in model.iter().enumerate() {
                let next = model[(place + 1) % model.len()];
                prop_assert_eq!(arena.node(entry).next.get(), next);
                prop_assert_eq!(arena.node(next).prev.get(), entry);
            }
        }
    }
}
