//! Fail points: what is armed, how often it fired, and where it fired last.
//!
//! They lie in the control region, which is read by physical address: they can be seen before the
//! kernel has page tables.

use core::mem::offset_of;

use serde::Serialize;
use vmkern_abi::addr::{GuestPhys, GuestVirt};
use vmkern_abi::control::ControlRegion;
use vmkern_abi::fail::{CHANCE_MAX, FailPoint, FailPoints, FailSite, FailSpec, FireRecord};
use vmkern_abi::kva::phys_to_dmap;
use zerocopy::FromBytes;

use super::stack;
use super::survey::Survey;
use crate::InspectError;
use crate::symbols::{AddressKind, Symbols};

const POINT: &str = "fail_point";
const RECORD: &str = "fire_record";
const REGION: &str = "control region";

/// A fail point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct FailPointReport {
    /// Its name.
    pub site: &'static str,
    /// Whether it is armed.
    pub armed: bool,
    /// The programme of an armed site, with the counts that remain; null if it is not armed, or if
    /// what lies in memory is not a programme.
    pub programme: Option<String>,
    /// How often the kernel came to it while it was armed.
    pub hits: u64,
    /// How often it executed a term other than `off`.
    pub fires: u64,
    /// What failing there means.
    pub effect: &'static str,
}

/// The last execution of a term other than `off` or `print`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct FireReport {
    /// The site.
    pub site: &'static str,
    /// Which hit of the site it was, counted from 1.
    pub hit: u64,
    /// The thread's number; null if there were no threads yet.
    pub thread: Option<u32>,
    /// Calls, innermost first.
    pub backtrace: Vec<String>,
}

/// `inspect fail`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct FailReport {
    /// The sites, by number.
    pub sites: Vec<FailPointReport>,
    /// The last execution; null if there was none.
    pub last: Option<FireReport>,
}

pub(super) fn fail(survey: &Survey<'_, '_>, symbols: &Symbols) -> FailReport {
    // 1. Which sites are armed. A bit of no site is damage.
    let armed: u64 = copy(survey, REGION, offset_of!(ControlRegion, fail_armed)).unwrap_or(0);
    let known = FailSite::ALL.into_iter().fold(0, |bits, site| bits | site.bit());
    if armed & !known != 0 {
        let at = place(survey, offset_of!(ControlRegion, fail_armed));
        survey.damage.say(REGION, at, || format!("fail_armed is {armed:#x}, with bits of no site"));
    }
    // 2. The sites. One that cannot be read has no counts.
    let points = offset_of!(ControlRegion, fail) + offset_of!(FailPoints, points);
    let report = |site: FailSite| {
        let offset = points + site.index() * size_of::<FailPoint>();
        let point = copy::<FailPoint>(survey, POINT, offset).unwrap_or_default();
        let armed = armed & site.bit() != 0;
        let programme = if armed { programme(survey, site, offset, &point) } else { None };
        let (hits, fires, effect) = (point.hits.get(), point.fires.get(), site.effect());
        FailPointReport { site: site.name(), armed, programme, hits, fires, effect }
    };
    // 3. The last execution.
    FailReport { sites: FailSite::ALL.map(report).to_vec(), last: last(survey, symbols) }
}

/// The programme of a site that is armed.
fn programme(
    survey: &Survey<'_, '_>,
    site: FailSite,
    offset: usize,
    point: &FailPoint,
) -> Option<String> {
    let is_sound = |spec: &FailSpec| {
        spec.terms()
            .iter()
            .all(|term| site.takes(term.action) && (1..=CHANCE_MAX).contains(&term.chance))
    };
    let spec = FailSpec::of(point).filter(is_sound);
    if spec.is_none() {
        survey.damage.say(POINT, place(survey, offset), || {
            format!("{} is armed with something that is not a programme", site.name())
        });
    }
    spec.map(|spec| spec.to_string())
}

/// The last execution, if there was one.
fn last(survey: &Survey<'_, '_>, symbols: &Symbols) -> Option<FireReport> {
    let offset = offset_of!(ControlRegion, fail) + offset_of!(FailPoints, last);
    let last: FireRecord = copy(survey, RECORD, offset)?;
    if last.hit.get() == 0 {
        return None;
    }
    let Some(site) = last.site.known() else {
        survey.damage.say(RECORD, place(survey, offset), || "it names no site".to_owned());
        return None;
    };
    let frames = last.frames().iter().map(|frame| frame.get()).collect();
    Some(FireReport {
        site: site.name(),
        hit: last.hit.get(),
        thread: Some(last.thread.get()).filter(|&thread| thread != u32::MAX),
        backtrace: stack::render(symbols, frames, AddressKind::Called),
    })
}

/// The physical address of what lies `offset` bytes behind the start of the control region.
fn physical(survey: &Survey<'_, '_>, offset: usize) -> GuestPhys {
    let control = survey.view.source().anchors().control;
    control.checked_add(offset as u64).unwrap_or(GuestPhys::new(u64::MAX))
}

/// The same as reports name it: its address in the direct map.
fn place(survey: &Survey<'_, '_>, offset: usize) -> GuestVirt {
    phys_to_dmap(physical(survey, offset))
}

/// A copy of the `T` that lies `offset` bytes behind the start of the control region.
fn copy<T: FromBytes>(survey: &Survey<'_, '_>, what: &'static str, offset: usize) -> Option<T> {
    let mut bytes = vec![0; size_of::<T>()];
    let read = survey.view.source().read(physical(survey, offset), &mut bytes);
    survey.damage.ok(read.map_err(|source| InspectError::NotRam { what, source }))?;
    T::read_from_bytes(&bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Damage;
    use crate::testing::{TestRam, mapped_ram, view};

    /// What is told of a guest whose control region, at 0, is made of `words` by offset.
    fn told(words: &[(usize, u64)]) -> (FailReport, Vec<String>) {
        let ram: TestRam = mapped_ram();
        for &(offset, word) in words {
            ram.write(GuestPhys::new(offset as u64), &word.to_le_bytes()).expect("it is RAM");
        }
        let view = view(&ram);
        let survey = Survey::new(&view);
        let report = fail(&survey, &Symbols::none());
        // There are no roots either, which is not told here.
        let ours = |damage: &Damage| [POINT, RECORD, REGION].contains(&damage.structure.as_str());
        let damage = survey.damage.into_parts().0.into_iter().filter(ours);
        (report, damage.map(|damage| damage.problem).collect())
    }

    /// Where a word of the site's structure lies.
    fn at(site: FailSite, field: usize) -> usize {
        let points = offset_of!(ControlRegion, fail) + offset_of!(FailPoints, points);
        points + site.index() * size_of::<FailPoint>() + field
    }

    const ARMED: usize = offset_of!(ControlRegion, fail_armed);
    const LENGTH: usize = offset_of!(FailPoint, length);
    const TERMS: usize = offset_of!(FailPoint, terms);

    #[test]
    fn a_site_is_told_with_the_counts_that_remain() {
        let site = FailSite::Tsleep;
        let (report, damage) = told(&[
            (ARMED, site.bit()),
            // The generation and a length of 1.
            (at(site, LENGTH) - 4, 1 << 32),
            (at(site, offset_of!(FailPoint, hits)), 9),
            (at(site, TERMS), 3),
            // Half of the time, `return`.
            (at(site, TERMS + 16), 500_000 | 2 << 32),
        ]);
        assert_eq!(damage, [""; 0]);
        let told = &report.sites[site.index()];
        assert_eq!((told.site, told.hits, told.fires, told.armed), ("tsleep", 9, 0, true));
        assert_eq!(told.programme.as_deref(), Some("50%3*return"));
        let others = report.sites.iter().filter(|other| other.site != "tsleep");
        assert!(others.clone().all(|other| !other.armed && other.programme.is_none()));
        assert_eq!((others.count(), report.last), (FailSite::COUNT - 1, None));
    }

    #[test]
    fn what_is_not_a_programme_or_a_site_is_damage() {
        let site = FailSite::IntrWindow;
        for length in [0, 9, u32::MAX] {
            let (report, damage) =
                told(&[(ARMED, site.bit()), (at(site, LENGTH) - 4, u64::from(length) << 32)]);
            assert!(report.sites[site.index()].armed, "{length}");
            assert_eq!(report.sites[site.index()].programme, None, "{length}");
            assert_eq!(damage, ["intr_window is armed with something that is not a programme"]);
        }
        // An action that the site does not take.
        let (report, damage) = told(&[
            (ARMED, site.bit()),
            (at(site, LENGTH) - 4, 1 << 32),
            (at(site, TERMS), u64::MAX),
            (at(site, TERMS + 16), 1_000_000 | 2 << 32),
        ]);
        assert_eq!((&report.sites[site.index()].programme, damage.len()), (&None, 1));
        let record = offset_of!(ControlRegion, fail) + offset_of!(FailPoints, last);
        let (report, damage) = told(&[
            (ARMED, 1 << 63),
            (record, 99),
            (record + offset_of!(FireRecord, hit), 1),
            (record + offset_of!(FireRecord, frames_len), u64::from(u32::MAX)),
        ]);
        assert_eq!(report.last, None);
        assert_eq!(damage.len(), 2, "{damage:?}");
        assert!(damage[0].contains("bits of no site") && damage[1].contains("names no site"));
    }
}
