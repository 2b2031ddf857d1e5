//! The result of a check: findings, and the report that holds them.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;

use serde::{Serialize, Serializer};
use vmkern_abi::addr::GuestVirt;

use super::rule::{Rule, rules};
use crate::InspectError;

rules! {
    None;
    Reading {
        UNREADABLE = "unreadable":
            "a structure lies in memory, is aligned, and is in the direct map where it must be";
    }
}

/// The most findings of one rule that are listed. The rest is only counted.
const FINDINGS_MAX: u64 = 50;

/// A rule that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The rule, in kebab-case. `docs/check.md` describes each.
    pub rule: &'static str,
    /// The structure.
    pub what: Cow<'static, str>,
    /// Where it is. For a translation, the address that it translates.
    #[serde(serialize_with = "hexadecimal")]
    pub at: GuestVirt,
    /// Both sides of the contradiction.
    pub detail: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} at {}: {}", self.rule, self.what, self.at, self.detail)
    }
}

/// A structure that was being changed when the guest was stopped. It is not checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Updating {
    /// The structure.
    pub what: Cow<'static, str>,
    /// Where it is.
    #[serde(serialize_with = "hexadecimal")]
    pub at: GuestVirt,
    /// Number of the thread that owns its lock.
    pub owner: u32,
}

/// Numbers of structures that the check examined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CheckStats {
    /// Maps.
    pub maps: u64,
    /// Entries of all maps.
    pub entries: u64,
    /// Objects.
    pub objects: u64,
    /// Pages of objects.
    pub resident: u64,
    /// Page tables.
    pub tables: u64,
    /// Translations of all sizes.
    pub translations: u64,
}

/// The result of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The findings, in the order of the rules; the first few of each rule.
    pub findings: Vec<Finding>,
    /// The number of further findings, by rule.
    pub more: BTreeMap<&'static str, u64>,
    /// The structures left out because they were being changed.
    pub updating: Vec<Updating>,
    /// What was examined.
    pub stats: CheckStats,
}

impl Report {
    /// The number of findings, including those that are only counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.findings.len() as u64 + self.more.values().sum::<u64>()
    }

    /// The number of findings in words: `1 finding`, `2 findings`.
    #[must_use]
    pub fn total(&self) -> String {
        let count = self.count();
        format!("{count} finding{}", if count == 1 { "" } else { "s" })
    }

    /// Whether every rule holds.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }
}

impl fmt::Display for Report {
    /// One finding per line, then what was left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            writeln!(f, "{finding}")?;
        }
        for (rule, count) in &self.more {
            writeln!(f, "{rule}: {count} more")?;
        }
        for Updating { what, at, owner } in &self.updating {
            writeln!(f, "left out: {what} at {at}, which thread {owner} is changing")?;
        }
        Ok(())
    }
}

/// Findings while they are collected.
#[derive(Debug, Default)]
pub(super) struct Findings {
    all: RefCell<Vec<Finding>>,
    counts: RefCell<BTreeMap<&'static str, u64>>,
    /// The rules to report, unless all are.
    only: Option<Vec<&'static Rule>>,
}

impl Findings {
    /// No findings yet. If `only` is given, only those rules are reported.
    pub(super) fn new(only: Option<Vec<&'static Rule>>) -> Self {
        Self { only, ..Self::default() }
    }

    /// Adds a finding, or only counts it once its rule has enough. `detail` is called only for a
    /// finding that is added.
    pub(super) fn add<D: Into<String>>(
        &self,
        rule: &'static Rule,
        what: impl Into<Cow<'static, str>>,
        at: GuestVirt,
        detail: impl FnOnce() -> D,
    ) {
        if self.only.as_ref().is_some_and(|only| rule != &UNREADABLE && !only.contains(&rule)) {
            return;
        }
        let mut counts = self.counts.borrow_mut();
        let count = counts.entry(rule.id).or_default();
        *count += 1;
        if *count <= FINDINGS_MAX {
            self.all.borrow_mut().push(Finding {
                rule: rule.id,
                what: what.into(),
                at,
                detail: detail().into(),
            });
        }
    }

    /// Adds a finding of the rule `unreadable`.
    pub(super) fn unreadable(&self, error: &InspectError) {
        let (what, at) = match error {
            InspectError::NotMapped { what, at, .. }
            | InspectError::Misaligned { what, at }
            | InspectError::Damaged { what, at, .. } => (*what, *at),
            InspectError::NotRam { what, source } => (*what, GuestVirt::new(source.start.get())),
            _ => ("guest", GuestVirt::new(0)),
        };
        self.add(&UNREADABLE, what, at, || error.problem());
    }

    pub(super) fn into_report(self, updating: Vec<Updating>, stats: CheckStats) -> Report {
        let counts = self.counts.into_inner().into_iter();
        let more = counts
            .filter_map(|(rule, n)| Some((rule, n.checked_sub(FINDINGS_MAX).filter(|&n| n > 0)?)));
        Report { findings: self.all.into_inner(), more: more.collect(), updating, stats }
    }
}

fn hexadecimal<S: Serializer>(at: &GuestVirt, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(at)
}

#[cfg(test)]
mod tests {
    use super::super::map_list::MAP_SIZE;
    use super::super::owners::PAGE_OWNER;
    use super::*;

    #[test]
    fn a_finding_says_rule_structure_address_and_contradiction() {
        let findings = Findings::default();
        findings.add(
            &MAP_SIZE,
            "kmem_map",
            GuestVirt::new(0x4000),
            || "size says 40960, its entries sum to 36864",
        );
        let report = findings.into_report(Vec::new(), CheckStats::default());
        assert_eq!(
            report.to_string(),
            "map-size: kmem_map at 0x4000: size says 40960, its entries sum to 36864\n"
        );
        let json = serde_json::to_value(&report.findings[0]).expect("a finding is JSON");
        assert_eq!(json["at"], "0x4000");
    }

    #[test]
    fn findings_of_a_rule_beyond_the_first_fifty_are_counted() {
        let findings = Findings::default();
        for n in 0..FINDINGS_MAX + 7 {
            findings.add(&PAGE_OWNER, "vm_page", GuestVirt::new(n), || "x");
        }
        findings.add(&MAP_SIZE, "kmem_map", GuestVirt::new(0), || "y");
        let report = findings.into_report(Vec::new(), CheckStats::default());
        assert_eq!(report.findings.len() as u64, FINDINGS_MAX + 1);
        assert_eq!(report.more, BTreeMap::from([("page-owner", 7)]));
        assert_eq!(report.count(), FINDINGS_MAX + 8);
        assert!(report.to_string().contains("page-owner: 7 more"));
    }

    #[test]
    fn rules_that_are_not_asked_for_say_nothing_but_what_is_unreadable_is_told() {
        let findings = Findings::new(Some(vec![&MAP_SIZE]));
        for rule in [&PAGE_OWNER, &MAP_SIZE, &UNREADABLE] {
            findings.add(rule, "x", GuestVirt::new(0), || "y");
        }
        let report = findings.into_report(Vec::new(), CheckStats::default());
        let told: Vec<_> = report.findings.iter().map(|finding| finding.rule).collect();
        assert_eq!(told, ["map-size", "unreadable"]);
    }
}
