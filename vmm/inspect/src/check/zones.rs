//! Zones: slabs, their free lists, and the users of all allocated items.
//!
//! A zone links only its slabs with free items; the others are found through the items in them. An
//! item that neither the kernel's structures nor a thread's stack leads to is lost.

use std::collections::{BTreeMap, HashSet};

use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::layout::{SlabHeader, SlabItem, SlabZone, Thread, Zone};

use super::context::Context;
use super::handlers::stored_op;
use super::in_flight::InFlight;
use super::owners::Owner;
use super::rule::Rule;
use super::rule::rules;
use super::sched::Item;

rules! {
    Some(check);
    Zones {
        ZONE_ITEM_SIZE = "zone-item-size":
            "the size of an item is that of its type";
        ZONE_COUNTS = "zone-count":
            "the counts of slabs, free items and used items are right";
        ZONE_ITEM = "zone-item":
            "an item in use lies where the zone has one, and is not free";
        ZONE_LOST = "zone-lost":
            "something leads to every allocated item";
        SLAB_LIST = "slab-list":
            "the list of slabs is linked both ways and has the slabs with free and with used \
             items; any other slab has no links";
        SLAB_FREE = "slab-free":
            "the free items of a slab are its own items, each once";
        SLAB_FREE_COUNT = "slab-free-count":
            "`free_count` is their number";
        SLAB_ZONE = "slab-zone":
            "a slab names its zone";
    }
}

/// The zone of the item at `at`, according to the header of its slab.
pub(super) fn zone_of_item(ctx: &Context<'_>, at: GuestVirt) -> Option<Zone> {
    if !ctx.is_managed(at) {
        return None;
    }
    let header: SlabHeader = ctx.memory.get("slab", KPtr::new(at.page())).ok()?;
    header.zone.known().filter(|zone| zone.fits(at))
}

/// Bytes of a slab's header.
const HEADER: u64 = size_of::<SlabHeader>() as u64;

/// Checks all zones.
fn check(ctx: &Context<'_>) {
    let mut in_flight = InFlight::new(ctx);
    for (number, (kind, zone)) in Zone::ALL.into_iter().zip(&ctx.roots.zones).enumerate() {
        if zone.lock.owner.get() == 0
            && let Some(used) = used_items(ctx, kind)
        {
            Slabs::read(ctx, number, kind, zone).check(used, &mut in_flight);
        }
    }
}

/// The items of a zone that the kernel's structures lead to; `None` while these are being changed.
fn used_items(ctx: &Context<'_>, zone: Zone) -> Option<Vec<GuestVirt>> {
    fn addresses<'a, T: 'a>(items: impl Iterator<Item = &'a Item<T>>) -> Vec<GuestVirt> {
        items.map(Item::addr).collect()
    }
    // 1. Lists that are being changed cannot be used.
    let handlers = || ctx.sched.events.iter().flat_map(|event| &event.handlers);
    let is_free = match zone {
        Zone::Object => ctx.maps.all.iter().all(|map| !map.is_updating()) && !ctx.is_locked(),
        Zone::EventList | Zone::EventHandler | Zone::StoredOp => {
            ctx.roots.eventhandler_mtx.owner.get() == 0
        }
        Zone::Thread | Zone::SleepQueue | Zone::Cpu => ctx.roots.sched.lock.owner.get() == 0,
    };
    // 2. The items, by zone.
    is_free.then(|| match zone {
        Zone::Object => anonymous_objects(ctx),
        Zone::EventList => addresses(ctx.sched.events.iter().map(|event| &event.list)),
        Zone::EventHandler => addresses(handlers()),
        Zone::StoredOp => {
            handlers().filter_map(|handler| Some(stored_op(ctx, handler)?.addr())).collect()
        }
        Zone::Thread => addresses(ctx.sched.threads.iter().chain(&ctx.sched.zombies)),
        // The boot CPU's structure is not in a zone.
        Zone::Cpu => addresses(
            ctx.sched.cpus.iter().filter(|cpu| cpu.addr() != ctx.roots.cpuhead.get().addr()),
        ),
        Zone::SleepQueue => {
            let queues = ctx.sched.queues.iter();
            let mut used = addresses(
                queues.flat_map(|queue| std::iter::once(&queue.queue).chain(&queue.spares)),
            );
            let owned =
                |thread: &Item<Thread>| Some(thread.value.sleepqueue.get().non_null()?.addr());
            used.extend(ctx.sched.threads.iter().chain(&ctx.sched.zombies).filter_map(owned));
            used
        }
    })
}

fn anonymous_objects(ctx: &Context<'_>) -> Vec<GuestVirt> {
    let kernels = [ctx.root_of(&ctx.roots.kernel_object), ctx.root_of(&ctx.roots.kmem_object)];
    let entries = ctx.maps.all.iter().flat_map(|map| &map.entries);
    let objects: HashSet<GuestVirt> = entries.filter_map(|entry| entry.object()).collect();
    objects.into_iter().filter(|object| !kernels.contains(object)).collect()
}

/// A zone's slabs, by the address of the header: the free items and the number of used items of
/// each.
struct Slabs<'a, 'b> {
    ctx: &'a Context<'b>,
    number: usize,
    kind: Zone,
    zone: &'a SlabZone,
    slabs: BTreeMap<GuestVirt, Slab>,
}

#[derive(Default)]
struct Slab {
    free: HashSet<GuestVirt>,
    used: HashSet<GuestVirt>,
    /// Whether the zone's list leads to it.
    is_partial: bool,
}

impl<'a, 'b> Slabs<'a, 'b> {
    /// Reads the zone's list of slabs with free items.
    fn read(ctx: &'a Context<'b>, number: usize, kind: Zone, zone: &'a SlabZone) -> Self {
        let mut slabs = Self { ctx, number, kind, zone, slabs: BTreeMap::new() };
        if u64::from(zone.item_size.get()) != kind.item_size() {
            ctx.finding(&ZONE_ITEM_SIZE, "zone", ctx.root_of(zone), || {
                let (is, item, expected) = (zone.item_size.get(), kind.name(), kind.item_size());
                format!("item_size of zone {number} ({item}) is {is}, expected {expected}")
            });
        }
        let next = |slab: &SlabHeader| slab.next.get();
        let mut before = KPtr::NULL;
        for slab in
            super::sched::chain(&ctx.memory, ctx.findings(), "slab", zone.partial.get(), next)
        {
            if slab.value.prev.get() != before {
                let prev = slab.value.prev.get().addr();
                slabs.finding(&SLAB_LIST, slab.addr(), || {
                    format!(
                        "its prev is {prev}, but the list of its zone comes from {}",
                        before.addr()
                    )
                });
            }
            before = slab.at;
            slabs.read_free(&slab);
        }
        slabs
    }

    fn finding(&self, rule: &'static Rule, at: GuestVirt, detail: impl FnOnce() -> String) {
        self.ctx.finding(rule, "slab", at, || format!("zone {}: {}", self.number, detail()));
    }

    /// Reads the free items of a slab.
    fn read_free(&mut self, slab: &Item<SlabHeader>) {
        // 1. A slab is a managed page.
        let at = slab.addr();
        if !at.is_page_aligned() || !self.ctx.is_managed(at) {
            return self.finding(&SLAB_LIST, at, || {
                "it is on the list of slabs, but is not a managed page".to_owned()
            });
        }
        // 2. Its list of free items, which may lead anywhere.
        let mut free = HashSet::new();
        let mut item = slab.value.free.get();
        while let Some(pointer) = item.non_null() {
            let addr = pointer.addr();
            if addr.page() != at || !self.kind.fits(addr) {
                self.finding(&SLAB_FREE, at, || {
                    format!("its list of free items leads to {addr}, which is not one of its items")
                });
                break;
            }
            if !free.insert(addr) {
                self.finding(&SLAB_FREE, at, || {
                    format!("its list of free items leads to {addr} twice")
                });
                break;
            }
            match self.ctx.memory.get::<SlabItem>("slab", pointer) {
                Ok(value) => item = value.next.get(),
                Err(error) => {
                    self.ctx.unreadable(&error);
                    break;
                }
            }
        }
        // 3. Its count, and its being on the list of slabs, which has neither full nor empty slabs.
        self.check_free(slab, free.len() as u64);
        self.slabs.insert(at, Slab { free, used: HashSet::new(), is_partial: true });
    }

    /// Checks the count of a slab with `found` free items, and that it may be on the list of slabs.
    fn check_free(&self, slab: &Item<SlabHeader>, found: u64) {
        let at = slab.addr();
        let (counted, items) = (u64::from(slab.value.free_count.get()), self.kind.items_per_slab());
        if counted != found {
            self.finding(&SLAB_FREE_COUNT, at, || {
                format!("free_count is {counted}, but its list has {found} free items")
            });
        }
        if found == 0 || found == items {
            self.finding(&SLAB_LIST, at, || {
                format!(
                    "{found} of its {items} items are free, but only slabs with free and used ones \
                     are listed"
                )
            });
        }
    }

    /// Assigns the used items to their slabs, and compares them with the slabs' own counts.
    fn check(mut self, used: Vec<GuestVirt>, in_flight: &mut InFlight<'_, '_>) {
        for at in used {
            if !self.kind.fits(at) || !self.ctx.is_managed(at) {
                self.ctx.finding(&ZONE_ITEM, self.kind.name(), at, || {
                    format!("it is in use, but zone {} has no item there", self.number)
                });
                continue;
            }
            let slab = self.slabs.entry(at.page()).or_default();
            if slab.free.contains(&at) {
                self.ctx.finding(&ZONE_ITEM, self.kind.name(), at, || {
                    format!("it is in use, and also a free item of zone {}", self.number)
                });
            }
            slab.used.insert(at);
        }
        if self.zone.slabs.get() > self.slabs.len() as u64 {
            self.add_slabs_in_flight(in_flight);
        }
        for (&at, slab) in &self.slabs {
            self.check_slab(at, slab, in_flight);
        }
        self.check_counts();
    }

    /// Adds slabs of which only threads' stacks refer to the items.
    fn add_slabs_in_flight(&mut self, in_flight: &mut InFlight<'_, '_>) {
        for &word in in_flight.words() {
            let at = self.kind.item_around(GuestVirt::new(word));
            if zone_of_item(self.ctx, at) == Some(self.kind) {
                self.slabs.entry(at.page()).or_default();
            }
        }
    }

    fn check_slab(&self, at: GuestVirt, slab: &Slab, in_flight: &mut InFlight<'_, '_>) {
        self.ctx.claim_at(at, Owner::Slab);
        match self.ctx.memory.get::<SlabHeader>("slab", KPtr::new(at)) {
            Ok(header) => {
                if !header.zone.is(self.kind) {
                    self.finding(&SLAB_ZONE, at, || {
                        format!("its header says zone {}", header.zone.get())
                    });
                }
                if !slab.is_partial {
                    self.check_full(at, &header);
                }
            }
            Err(error) => self.ctx.unreadable(&error),
        }
        for number in 0..self.kind.items_per_slab() {
            let item = at.add(HEADER + number * self.kind.item_size());
            if !slab.free.contains(&item)
                && !slab.used.contains(&item)
                && !in_flight.has(item, self.kind.item_size())
            {
                self.ctx.finding(&ZONE_LOST, self.kind.name(), item, || {
                    format!("it is handed out by zone {}, but nothing leads to it", self.number)
                });
            }
        }
    }

    /// Checks a slab that is not on the list: it has no free items and no links.
    fn check_full(&self, at: GuestVirt, header: &SlabHeader) {
        let (free, count) = (header.free.get(), header.free_count.get());
        if !free.is_null() || count != 0 {
            self.finding(&SLAB_LIST, at, || {
                format!(
                    "it has {count} free items from {} on, but is not on the list of slabs",
                    free.addr()
                )
            });
        }
        let (next, prev) = (header.next.get(), header.prev.get());
        if !next.is_null() || !prev.is_null() {
            self.finding(&SLAB_LIST, at, || {
                format!(
                    "it is not on the list of slabs, but has next {} and prev {}",
                    next.addr(),
                    prev.addr()
                )
            });
        }
    }

    fn check_counts(&self) {
        let slabs = self.slabs.len() as u64;
        let free: u64 = self.slabs.values().map(|slab| slab.free.len() as u64).sum();
        let used = slabs * self.kind.items_per_slab() - free;
        let counts = [
            ("slabs", &self.zone.slabs, slabs),
            ("free", &self.zone.free, free),
            ("used", &self.zone.used, used),
        ];
        for (name, counter, found) in counts {
            if counter.get() != found {
                self.ctx.finding(&ZONE_COUNTS, "zone", self.ctx.root_of(counter), || {
                    format!(
                        "{name} of zone {} says {}, but its slabs sum to {found}",
                        self.number,
                        counter.get()
                    )
                });
            }
        }
    }
}
