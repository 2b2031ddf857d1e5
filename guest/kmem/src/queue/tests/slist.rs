//! [`SList`].

use super::*;
use crate::queue::SList;

proptest! {
    #[test]
    fn an_slist_is_a_deque_with_one_end(steps in history(9)) {
        let (arena, first) = (Arena::new(), Field::default());
        let list = SList::new(&arena, &first);
        let mut model = VecDeque::new();
        for (kind, which) in steps {
            match (kind, free_entry(&model, which), place(&model, which)) {
                (0 | 1, Some(entry), _) => {
                    list.insert_head(entry);
                    model.push_front(entry);
                }
                (5, Some(entry), _) => {
                    list.publish_head(entry);
                    model.push_front(entry);
                }
                (6, Some(entry), _) => {
                    list.publish_tail(entry);
                    model.push_back(entry);
                }
                (7, Some(entry), _) => {
                    list.insert_sorted(entry, |at| at > entry);
                    let place = model.iter().position(|&at| at > entry).unwrap_or(model.len());
                    model.insert(place, entry);
                }
                (8, _, Some(_)) => {
                    let unwanted = |entry: u32| entry % 5 == which % 5;
                    let chain = Field::default();
                    let gone = SList::new(&arena, &chain);
                    list.remove_all(unwanted, |entry| gone.insert_head(entry));
                    let expected: VecDeque<u32> =
                        model.iter().rev().copied().filter(|&entry| unwanted(entry)).collect();
                    prop_assert_eq!(&walk(&chain, |entry| &arena.node(entry).next), &expected);
                    model.retain(|&entry| !unwanted(entry));
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
            prop_assert_eq!(&list.iter().collect::<VecDeque<_>>(), &model);
            prop_assert_eq!(list.first(), model.front().copied());
            prop_assert_eq!(&walk(&first, |entry| &arena.node(entry).next), &model);
        }
    }
}
