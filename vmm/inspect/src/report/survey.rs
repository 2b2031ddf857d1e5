//! The common start of every report: the view, the roots, the names of the maps, and a collector of
//! damage.

use std::collections::HashMap;
use std::mem::offset_of;
use std::sync::Arc;

use serde::{Serialize, Serializer};
use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::control::MapId;
use vmkern_abi::layout::{KernelRoots, VmMap, VmObject};

use super::damage::Damages;
use super::hex::Hex;
use crate::View;
use crate::read::clock;

/// The most maps that a report lists. A map takes a page and a range of its own, so no real kernel
/// comes close.
const MAPS_MAX: u64 = 1 << 16;

/// What an entry refers to, or what owns a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObjectRef {
    /// Nothing.
    None,
    /// kernel_object.
    Kernel,
    /// kmem_object.
    Kmem,
    /// Another object, by its address.
    Anonymous(Hex),
    /// A map, by its name.
    SubMap(Arc<str>),
}

impl std::fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.pad("none"),
            Self::Kernel => f.pad("kernel_object"),
            Self::Kmem => f.pad("kmem_object"),
            Self::Anonymous(at) => at.fmt(f),
            Self::SubMap(name) => f.pad(&format!("submap {name}")),
        }
    }
}

/// Null, or what [`ObjectRef`] shows.
impl Serialize for ObjectRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::None => serializer.serialize_none(),
            other => serializer.collect_str(other),
        }
    }
}

/// A map that the kernel knows.
pub(super) struct MapAt {
    pub at: KPtr<VmMap>,
    pub map: VmMap,
    pub name: Arc<str>,
}

/// The common start of a report.
pub(super) struct Survey<'v, 'a> {
    pub view: &'v View<'a>,
    pub damage: Damages,
    roots: Option<(KPtr<KernelRoots>, KernelRoots)>,
    names: HashMap<u64, Arc<str>>,
}

impl<'v, 'a> Survey<'v, 'a> {
    pub fn new(view: &'v View<'a>) -> Self {
        let damage = Damages::default();
        let roots = damage.ok(crate::read::roots(view));
        if let Some((_, roots)) = &roots {
            clock::set_ticks(view, &roots.meter);
        }
        let names = roots.as_ref().map(|(_, roots)| names(roots)).unwrap_or_default();
        Self { view, damage, roots, names }
    }

    /// The roots; `None` if they cannot be read, which has been noted as damage.
    pub fn roots(&self) -> Option<&KernelRoots> {
        self.roots.as_ref().map(|(_, roots)| roots)
    }

    /// The address of the roots' field at `offset`.
    fn root_field<T>(&self, offset: usize) -> Option<KPtr<T>> {
        self.roots.as_ref().and_then(|(at, _)| at.addr().checked_add(offset as u64)).map(KPtr::new)
    }

    /// kernel_object.
    pub fn kernel_object(&self) -> Option<KPtr<VmObject>> {
        self.root_field(offset_of!(KernelRoots, kernel_object))
    }

    /// kmem_object.
    pub fn kmem_object(&self) -> Option<KPtr<VmObject>> {
        self.root_field(offset_of!(KernelRoots, kmem_object))
    }

    /// The object at `at`, in words.
    pub fn object(&self, at: KPtr<VmObject>) -> ObjectRef {
        match at.non_null() {
            None => ObjectRef::None,
            some if some == self.kernel_object() => ObjectRef::Kernel,
            some if some == self.kmem_object() => ObjectRef::Kmem,
            Some(at) => ObjectRef::Anonymous(at.into()),
        }
    }

    /// The name of the map at `at`: the kernel's, or its address.
    pub fn map_name(&self, at: GuestVirt) -> Arc<str> {
        self.names.get(&at.get()).cloned().unwrap_or_else(|| Hex::from(at).to_string().into())
    }

    /// All maps that can be read: those on the kernel's list, the oldest first, then those that
    /// only the table of roots names.
    pub fn maps(&self) -> Vec<MapAt> {
        let Some(roots) = self.roots() else { return Vec::new() };
        let mut maps: Vec<MapAt> = Vec::new();
        let take = |at: KPtr<VmMap>, map| MapAt { at, map, name: self.map_name(at.addr()) };
        for item in self
            .view
            .list("vm_map", roots.map_list.get(), |map| map.next_map.get())
            .at_most(MAPS_MAX)
        {
            match item {
                Ok((at, map)) => maps.push(take(at, map)),
                Err(error) => self.damage.note(error),
            }
        }
        maps.reverse();
        for at in roots.named_maps().filter_map(|(_, _, map)| map.get().non_null()) {
            if !maps.iter().any(|known| known.at == at) {
                self.damage.say("vm_map", at.addr(), || "it is not on the list of maps".to_owned());
                maps.extend(self.damage.ok(self.view.copy("vm_map", at)).map(|map| take(at, map)));
            }
        }
        maps
    }

    /// The map called `name`, or at the address that `name` is.
    pub fn map(&self, name: &MapName) -> Option<MapAt> {
        self.maps().into_iter().find(|map| match name {
            MapName::Named(name) => *map.name == **name,
            MapName::At(at) => map.at.addr() == *at,
        })
    }
}

/// A map in a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MapName {
    /// By the kernel's name.
    Named(String),
    /// By its address.
    At(GuestVirt),
}

impl From<MapId> for MapName {
    fn from(id: MapId) -> Self {
        match MapId::NAMED.iter().find(|&&(_, named)| named == id) {
            Some(&(name, _)) => Self::Named(name.to_owned()),
            None => Self::At(GuestVirt::new(id.0)),
        }
    }
}

impl std::fmt::Display for MapName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Named(name) => f.write_str(name),
            Self::At(at) => at.fmt(f),
        }
    }
}

/// The names of the maps that have one, by address.
fn names(roots: &KernelRoots) -> HashMap<u64, Arc<str>> {
    let all = roots.named_maps().filter(|(_, _, map)| !map.get().is_null());
    all.map(|(name, _, map)| (map.get().addr().get(), Arc::from(name))).collect()
}

/// The valid names in [`MapName::Named`].
pub const MAP_NAMES: [&str; 7] =
    ["kernel_map", "kmem_map", "exec_map", "pipe_map", "buffer_map", "clean_map", "pager_map"];
