//! [`List`].

use super::*;
use crate::queue::List;

proptest! {
    #[test]
    fn a_list_is_a_deque_with_one_end(steps in history(3)) {
        let (arena, first) = (Arena::new(), Field::default());
        let list = List::new(&arena, &first);
        let mut model = VecDeque::new();
        for (kind, which) in steps {
            match (kind, free_entry(&model, which), place(&model, which)) {
                (0 | 1, Some(entry), _) => {
                    list.insert_head(entry);
                    model.push_front(entry);
                }
                (2, _, Some(place)) => {
                    let entry = model.remove(place).expect("the place is in the model");
                    list.remove(entry);
                }
                _ => {}
            }
            if let Some(other) = free_entry(&model, which) {
                prop_assert_eq!(list.find(|entry| entry == other), None);
            }
            let high = |entry: u32| entry > ENTRIES / 2;
            prop_assert_eq!(list.find(high), model.iter().copied().find(|&entry| high(entry)));
            prop_assert_eq!(list.first(), model.front().copied());
            prop_assert_eq!(&walk(&first, |entry| &arena.node(entry).next), &model);
            for (place, &entry) in model.iter().enumerate() {
                let before = place.checked_sub(1).and_then(|place| model.get(place)).copied();
                prop_assert_eq!(arena.node(entry).prev.get().entry(), before);
            }
        }
    }
}
