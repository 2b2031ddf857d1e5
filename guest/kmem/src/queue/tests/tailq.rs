//! [`TailQ`].

use super::*;
use crate::queue::TailQ;

proptest! {
    #[test]
    fn a_tailq_is_a_deque(steps in history(4)) {
        let (arena, first, last) = (Arena::new(), Field::default(), Field::default());
        let list = TailQ::new(&arena, &first, &last);
        let mut model = VecDeque::new();
        for (kind, which) in steps {
            match (kind, free_entry(&model, which), place(&model, which)) {
                (0, Some(entry), _) => {
                    list.insert_head(entry);
                    model.push_front(entry);
                }
                (1, Some(entry), _) => {
                    list.insert_tail(entry);
                    model.push_back(entry);
                }
                (2, _, Some(_)) => prop_assert_eq!(Some(list.remove_head()), model.pop_front()),
                (3, _, Some(place)) => {
                    let entry = model.remove(place).expect("the place is in the model");
                    list.remove(entry);
                }
                _ => {}
            }
            prop_assert_eq!(list.first(), model.front().copied());
            prop_assert_eq!(list.last(), model.back().copied());
            prop_assert_eq!(&list.iter().collect::<VecDeque<_>>(), &model);
            prop_assert_eq!(&walk(&first, |entry| &arena.node(entry).next), &model);
            let backwards: VecDeque<u32> = model.iter().rev().copied().collect();
            prop_assert_eq!(walk(&last, |entry| &arena.node(entry).prev), backwards);
        }
    }
}
