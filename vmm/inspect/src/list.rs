//! Follows a list that a guest has linked.

use vmkern_abi::addr::KPtr;
use zerocopy::{FromBytes, IntoBytes};

use crate::InspectError;
use crate::view::View;

/// The structures of a list, copied one by one, each with its address. The iterator ends after the
/// last, or after an error: a structure that cannot be read, a cycle, or too many structures.
#[must_use = "it reads nothing until it is iterated over"]
pub struct List<'v, 'a, T, F> {
    view: &'v View<'a>,
    what: &'static str,
    at: KPtr<T>,
    next: F,
    end: KPtr<T>,
    most: u64,
    seen: u64,
    /// A structure that was passed. It is replaced by the newest each time the number of structures
    /// seen has doubled: a list with a cycle meets it again (Brent's algorithm).
    mark: KPtr<T>,
}

impl<'v, 'a, T, F> List<'v, 'a, T, F> {
    pub(super) fn new(view: &'v View<'a>, what: &'static str, head: KPtr<T>, next: F) -> Self {
        Self {
            view,
            what,
            at: head,
            next,
            end: KPtr::NULL,
            most: view.most::<T>(),
            seen: 0,
            mark: KPtr::NULL,
        }
    }

    /// Also ends the list at `end`, which is not read: the head of a circular list.
    pub fn until(self, end: KPtr<T>) -> Self {
        Self { end, ..self }
    }

    /// Makes more than `most` structures an error. The default is what fits into memory.
    pub fn at_most(self, most: u64) -> Self {
        Self { most: most.min(self.most), ..self }
    }
}

impl<T, F> Iterator for List<'_, '_, T, F>
where
    T: FromBytes + IntoBytes,
    F: Fn(&T) -> KPtr<T>,
{
    type Item = Result<(KPtr<T>, T), InspectError>;

    fn next(&mut self) -> Option<Self::Item> {
        let at = self.at.non_null().filter(|at| *at != self.end)?;
        self.at = KPtr::NULL;
        let broken =
            |problem: String| Some(Err(InspectError::damaged(self.what, at.addr(), problem)));
        if at == self.mark {
            return broken("the list comes back to it".to_owned());
        }
        if self.seen == self.most {
            return broken(format!("the list continues after {} elements, the maximum", self.most));
        }
        let value = match self.view.copy(self.what, at) {
            Ok(value) => value,
            Err(error) => return Some(Err(error)),
        };
        self.seen += 1;
        if self.seen.is_power_of_two() {
            self.mark = at;
        }
        self.at = (self.next)(&value);
        Some(Ok((at, value)))
    }
}

#[cfg(test)]
mod tests {
    use vmkern_abi::addr::{GuestPhys, GuestVirt};
    use vmkern_abi::layout::SlabItem;

    use super::*;
    use crate::testing::{TestRam, mapped_ram, view};

    fn at(index: u64) -> KPtr<SlabItem> {
        KPtr::new(GuestVirt::new(0x4000_0000 + index * 8))
    }

    /// Items `0..next.len()`, each with the next one.
    fn put(next: &[KPtr<SlabItem>]) -> TestRam {
        let ram = mapped_ram();
        for (index, next) in (0..).zip(next) {
            ram.write(GuestPhys::from_pfn(32).add(index * 8), &next.addr().get().to_le_bytes())
                .expect("it is RAM");
        }
        ram
    }

    fn follow(ram: &TestRam, end: KPtr<SlabItem>, most: u64) -> (usize, Option<InspectError>) {
        let view = view(ram);
        let list = view.list("item", at(0), |item| item.next.get()).until(end).at_most(most);
        let (good, bad): (Vec<_>, Vec<_>) = list.partition(Result::is_ok);
        assert!(bad.len() <= 1);
        (good.len(), bad.into_iter().find_map(Result::err))
    }

    #[test]
    fn a_list_ends_at_null_or_at_its_head() {
        let ram = put(&[at(1), at(2), at(3), KPtr::NULL]);
        assert_eq!(follow(&ram, KPtr::NULL, 100), (4, None));
        assert_eq!(follow(&ram, at(3), 100), (3, None));
        assert_eq!(follow(&ram, at(0), 100), (0, None));
        assert_eq!(follow(&ram, KPtr::NULL, 4), (4, None));
    }

    #[test]
    fn a_list_that_does_not_end_is_an_error_whatever_its_shape() {
        for (length, back) in (1..40).flat_map(|length| (0..length).map(move |back| (length, back)))
        {
            let mut next: Vec<_> = (1..=length).map(at).collect();
            *next.last_mut().expect("it has an item") = at(back);
            let (seen, error) = follow(&put(&next), KPtr::NULL, u64::MAX);
            assert!(
                matches!(error, Some(InspectError::Damaged { what: "item", .. })),
                "{length} back to {back}"
            );
            assert!(seen as u64 <= 4 * length, "{length} back to {back}: {seen}");
        }
        let ram = put(&[at(1), at(2), at(3), KPtr::NULL]);
        assert!(matches!(follow(&ram, KPtr::NULL, 3), (3, Some(InspectError::Damaged { .. }))));
    }

    #[test]
    fn a_link_that_leads_nowhere_ends_the_list_with_an_error() {
        let ram = put(&[at(1), KPtr::new(GuestVirt::new(0xdead_0000))]);
        assert!(matches!(follow(&ram, KPtr::NULL, 9), (2, Some(InspectError::NotMapped { .. }))));
        let ram = put(&[at(1), KPtr::new(GuestVirt::new(0x4000_0004))]);
        assert!(matches!(follow(&ram, KPtr::NULL, 9), (2, Some(InspectError::Misaligned { .. }))));
    }
}
