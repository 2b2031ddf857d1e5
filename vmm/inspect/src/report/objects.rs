//! The objects that maps and pages refer to.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};
use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::layout::{EntryFlags, ObjectFlags, ObjectType, VmObject};

use super::census::{page_at, segments};
use super::entries::entries;
use super::hex::Hex;
use super::survey::{ObjectRef, Survey};

const OBJECT: &str = "vm_object";

/// The most objects that a report lists.
const OBJECTS_MAX: usize = 1 << 20;

/// An object, as read.
pub(super) struct ObjectAt {
    pub at: KPtr<VmObject>,
    pub object: VmObject,
    /// Entries that refer to it.
    pub entries: u64,
}

/// An object's own fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ObjectBrief {
    /// `kernel_object`, `kmem_object`, or the address.
    pub name: ObjectRef,
    /// The structure's address.
    pub at: Hex,
    /// `default`, `swap`, `phys`, `dead`, or the number.
    pub kind: String,
    /// References.
    pub references: u32,
    /// Pages that it holds, by its own count.
    pub resident: u64,
    /// Pages that it can hold.
    pub size: u64,
    /// Flags by their names.
    #[serde(serialize_with = "flag_names")]
    pub flags: ObjectFlags,
    /// Number of the thread that has locked it.
    pub locked_by: Option<u32>,
}

/// An object, and what refers to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ObjectReport {
    /// The object's own fields.
    #[serde(flatten)]
    pub object: ObjectBrief,
    /// Map entries that refer to it.
    pub entries: u64,
    /// Pages that refer to it.
    pub pages: u64,
}

/// `inspect objects`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ObjectsReport {
    /// The objects, by address, kernel_object and kmem_object first.
    pub objects: Vec<ObjectReport>,
}

fn flag_names<S: Serializer>(flags: &ObjectFlags, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(flags.iter_names().map(|(name, _)| name))
}

/// The objects that entries refer to, after kernel_object and kmem_object.
pub(super) fn objects(survey: &Survey<'_, '_>) -> Vec<ObjectAt> {
    // 1. The objects that entries refer to, and how often.
    let mut named: BTreeMap<u64, u64> = BTreeMap::new();
    for map in survey.maps() {
        for entry in entries(survey, &map).kept {
            let at = match entry.object {
                ObjectRef::Kernel => survey.kernel_object(),
                ObjectRef::Kmem => survey.kmem_object(),
                ObjectRef::Anonymous(at) => Some(KPtr::new(GuestVirt::new(at.0))),
                ObjectRef::None | ObjectRef::SubMap(_) => None,
            };
            if let Some(at) = at.filter(|_| !entry.flags.contains(EntryFlags::IS_SUB_MAP))
                && (named.len() < OBJECTS_MAX || named.contains_key(&at.addr().get()))
            {
                *named.entry(at.addr().get()).or_default() += 1;
            }
        }
    }
    // 2. The kernel's own objects come first, whether an entry refers to them or not.
    let first = [survey.kernel_object(), survey.kmem_object()];
    let first: Vec<_> = first
        .into_iter()
        .flatten()
        .map(|at| (at.addr().get(), named.remove(&at.addr().get()).unwrap_or(0)))
        .collect();
    let all = first
        .into_iter()
        .chain(named)
        .map(|(at, entries)| (KPtr::<VmObject>::new(GuestVirt::new(at)), entries));
    // 3. Keep the objects that can be read.
    all.filter_map(|(at, entries)| {
        survey.damage.ok(survey.view.copy(OBJECT, at)).map(|object| ObjectAt {
            at,
            object,
            entries,
        })
    })
    .collect()
}

pub(super) fn report(survey: &Survey<'_, '_>) -> ObjectsReport {
    let mut pages = owned(survey);
    let mut reports: Vec<_> = objects(survey)
        .into_iter()
        .map(|ObjectAt { at, object, entries }| {
            one(survey, at, &object, entries, pages.remove(&at.addr().get()))
        })
        .collect();
    // Objects that pages refer to, but no entry does.
    for (at, count) in pages {
        let at = KPtr::new(GuestVirt::new(at));
        survey.damage.say(OBJECT, at.addr(), || {
            format!("{count} pages belong to it, but no map entry names it")
        });
        if let Some(object) = survey.damage.ok(survey.view.copy(OBJECT, at)) {
            reports.push(one(survey, at, &object, 0, Some(count)));
        }
    }
    ObjectsReport { objects: reports }
}

/// The fields of the object called `name`.
pub(super) fn brief(survey: &Survey<'_, '_>, name: &ObjectRef) -> Option<ObjectBrief> {
    let at = match name {
        ObjectRef::Kernel => survey.kernel_object()?,
        ObjectRef::Kmem => survey.kmem_object()?,
        ObjectRef::Anonymous(at) => KPtr::new(GuestVirt::new(at.0)),
        ObjectRef::None | ObjectRef::SubMap(_) => return None,
    };
    let object: VmObject = survey.damage.ok(survey.view.copy(OBJECT, at))?;
    Some(ObjectBrief::of(survey, at, &object))
}

impl ObjectBrief {
    fn of(survey: &Survey<'_, '_>, at: KPtr<VmObject>, object: &VmObject) -> Self {
        let kind = match object.kind.known() {
            Some(ObjectType::Default) => "default".to_owned(),
            Some(ObjectType::Swap) => "swap".to_owned(),
            Some(ObjectType::Phys) => "phys".to_owned(),
            Some(ObjectType::Dead) => "dead".to_owned(),
            None => object.kind.get().to_string(),
        };
        Self {
            name: survey.object(at),
            at: at.into(),
            kind,
            references: object.ref_count.get(),
            resident: object.resident_page_count.get(),
            size: object.size.get(),
            flags: object.flags.get(),
            locked_by: (object.lock.owner.get() & 0xffff).checked_sub(1),
        }
    }
}

fn one(
    survey: &Survey<'_, '_>,
    at: KPtr<VmObject>,
    object: &VmObject,
    entries: u64,
    pages: Option<u64>,
) -> ObjectReport {
    let (resident, pages) = (object.resident_page_count.get(), pages.unwrap_or(0));
    if resident != pages {
        survey
            .damage
            .say(OBJECT, at.addr(), || format!("it counts {resident} pages, but {pages} name it"));
    }
    ObjectReport { object: ObjectBrief::of(survey, at, object), entries, pages }
}
/// How many pages refer to each object, by its address.
fn owned(survey: &Survey<'_, '_>) -> BTreeMap<u64, u64> {
    let mut owned = BTreeMap::new();
    for segment in segments(survey) {
        for pfn in segment.start..segment.fresh {
            let Some(page) = page_at(survey, pfn) else { continue };
            let Some(page) = survey.damage.ok(survey.view.copy("vm_page", page)) else { continue };
            if let Some(object) = page.object.get().non_null()
                && (owned.len() < OBJECTS_MAX || owned.contains_key(&object.addr().get()))
            {
                *owned.entry(object.addr().get()).or_default() += 1;
            }
        }
    }
    owned
}
