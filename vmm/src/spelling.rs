//! Which name somebody meant who wrote another one.

/// Longest name that resembles anything, in bytes.
const LONGEST_NAME: usize = 64;
/// Most names that one is compared with.
const MOST_NAMES: usize = 10_000;

/// The candidate that looks most like `word`, if any looks like it at all: upper and lower case do
/// not matter. Never `word` itself, and in a time that neither its length nor the number of
/// candidates decides.
#[must_use]
pub fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > LONGEST_NAME {
        return None;
    }
    let small = word.to_lowercase();
    candidates
        .into_iter()
        .take(MOST_NAMES)
        .filter(|candidate| candidate.len() <= LONGEST_NAME && *candidate != word)
        .map(|candidate| (strsim::jaro_winkler(&small, &candidate.to_lowercase()), candidate))
        .filter(|&(likeness, _)| likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_never_suggested_for_itself_and_case_makes_no_difference() {
        assert_eq!(closest("read", ["read"]), None);
        assert_eq!(
            closest("kmem_free", ["kmem_free", "kmem_free_wakeup"]),
            Some("kmem_free_wakeup")
        );
        assert_eq!(closest("KMEM_FREE", ["kmem_free", "kmem_free_wakeup"]), Some("kmem_free"));
        assert_eq!(closest("nowait", ["WAITOK", "NOWAIT"]), Some("NOWAIT"));
    }

    #[test]
    fn what_is_too_long_to_be_a_name_is_compared_with_nothing() {
        let long = "kmem_free".repeat(10_000_000);
        assert_eq!(closest(&long, ["kmem_free"]), None);
        assert_eq!(closest("kmem_fre", [long.as_str()]), None);
        let names = vec!["kmem_free_wakeup"; MOST_NAMES];
        assert_eq!(
            closest("kmem_fre", names.into_iter().chain(["kmem_free"])),
            Some("kmem_free_wakeup")
        );
    }

    #[test]
    fn nothing_is_suggested_for_what_resembles_nothing() {
        assert_eq!(closest("frobnicate", ["kmem_free", "sleep"]), None);
    }
}
