//! [`SList`].

use super::*;
use crate::queue::SList;

proptest! {
    #[test]
    fn an_slist_is_a_deque_with_one_end(steps in history(5)) {
        let (arena, first) = (Arena::new(), Field::default());
        let list = SList::new(&arena, &first);
        let mut model = VecDeque::new();
        for (kind, which) in steps {
            match (kind, free_entry(&model, which), place(&model, which)) {
                (0 | 1, Some(entry), _) => {
                    list.insert_head(entry);
                    model.push_front(entry);
                }
                (2, _, Some(_)) => prop_assert_eq!(Some(list.remove_head()), model.pop_front()),
                (3, _, Some(place)) => {
                    let entry = model.remove(place).expect("the place is in the model");
                    list.remove(entry);
                }
                (4, _, Some(place)) => {
                    let entry = model.remove(place).expect("the place is in the model");
                    prop_assert!(list.remove_if_there(entry));
                }
                _ => {}
            }
            if let Some(other) = free_entry(&model, which) {
                prop_assert_eq!(list.find(|entry| entry == other), None);
                prop_assert!(!list.remove_if_there(other));
            }
            let high = |entry: u32| entry > ENTRIES / 2;
            prop_assert_eq!(list.find(high), model.iter().copied().find(|&entry| high(entry)));
            prop_assert_eq!(list.first(), model.front().copied());
            prop_assert_eq!(&walk(&first, |entry| &arena.node(entry).next), &model);
        }
    }
}
