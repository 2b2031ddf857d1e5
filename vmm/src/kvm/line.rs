//! Lines on which devices interrupt the guest.
//!
//! **Protocol.** The split interrupt controller has no I/O APIC, so a line is an eventfd
//! (`KVM_IRQFD`) and a message to a CPU's local APIC (`KVM_SET_GSI_ROUTING`). KVM joins the two by
//! a number, the line's GSI. The GSIs of the pins that an I/O APIC would have stay free.
//!
//! `KVM_SET_GSI_ROUTING` replaces the whole table of the VM. So [`Routes`] keeps the table, and its
//! lock is held while KVM takes it: of two threads that change it, the later one's table has both
//! changes. A line is routed before its eventfd is bound, and unbound before its route goes, so an
//! event always finds its own message. A VM whose devices never asked for a line has no route.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_msi,
};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::KvmError;
use super::ioctl::ioctl;
use super::vm::{IOAPIC_PINS, KvmVm, MSI_ADDRESS};

/// A number by which KVM knows a source of interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Gsi(u32);

/// The first that is not the number of a pin.
const FIRST: Gsi = Gsi(IOAPIC_PINS);

/// An interrupt: fixed delivery, physical destination, edge-triggered (SDM volume 3, section
/// 11.11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Msi {
    /// The ID of the local APIC, at most 255.
    pub(crate) apic: u32,
    /// The vector, 16 or above.
    pub(crate) vector: u8,
}

impl Msi {
    /// The low half of the address to which the message goes.
    pub(super) fn address(self) -> u32 {
        MSI_ADDRESS | self.apic << 12
    }

    /// What is written there.
    pub(super) fn data(self) -> u32 {
        self.vector.into()
    }
}

/// A VM's table of routes.
#[derive(Debug, Default)]
pub(super) struct Routes(Mutex<BTreeMap<Gsi, Msi>>);

impl Routes {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Gsi, Msi>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The lowest number that no line has.
fn lowest_free(table: &BTreeMap<Gsi, Msi>) -> Gsi {
    let taken = table.keys().zip(FIRST.0..).take_while(|(gsi, number)| gsi.0 == *number);
    Gsi(FIRST.0 + u32::try_from(taken.count()).unwrap_or(u32::MAX - FIRST.0))
}

/// Has KVM replace the routes of `vm` by `table`.
fn set(vm: &KvmVm, table: &BTreeMap<Gsi, Msi>) -> Result<(), KvmError> {
    let entry = |(&gsi, &msi): (&Gsi, &Msi)| kvm_irq_routing_entry {
        gsi: gsi.0,
        type_: KVM_IRQ_ROUTING_MSI,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            msi: kvm_irq_routing_msi {
                address_lo: msi.address(),
                data: msi.data(),
                ..Default::default()
            },
        },
        ..Default::default()
    };
    let entries: Vec<_> = table.iter().map(entry).collect();
    let operation = || format!("KVM_SET_GSI_ROUTING of {} routes", entries.len());
    // The structure has room for 4096 entries, as KVM has.
    let routing = KvmIrqRouting::from_entries(&entries)
        .map_err(|_| KvmError { operation: operation(), errno: libc::E2BIG })?;
    ioctl(operation(), || vm.fd().set_gsi_routing(&routing))
}

/// A row of the table. Dropping it takes the row out.
#[derive(Debug)]
struct Route {
    vm: Arc<KvmVm>,
    gsi: Gsi,
}

impl Route {
    fn new(vm: &Arc<KvmVm>, msi: Msi) -> Result<Self, KvmError> {
        let mut table = vm.routes().lock();
        let gsi = lowest_free(&table);
        table.insert(gsi, msi);
        if let Err(error) = set(vm, &table) {
            table.remove(&gsi);
            return Err(error);
        }
        Ok(Self { vm: Arc::clone(vm), gsi })
    }
}

impl Drop for Route {
    fn drop(&mut self) {
        let mut table = self.vm.routes().lock();
        table.remove(&self.gsi);
        if let Err(error) = set(&self.vm, &table) {
            // KVM keeps a route to which no event leads; the next table replaces it.
            log::warn!("a device's interrupt line: {error}");
        }
    }
}

/// A line. Dropping it unbinds its eventfd and takes its route out of the table.
#[derive(Debug)]
pub(crate) struct IrqLine {
    event: EventFd,
    // Dropped after `drop` has unbound the event.
    route: Route,
}

impl IrqLine {
    /// A line of `vm` that raises `msi`. Does not wait for the guest.
    ///
    /// # Errors
    /// What `KVM_SET_GSI_ROUTING`, `eventfd` or `KVM_IRQFD` says; nothing is left of the line then.
    pub(crate) fn new(vm: &Arc<KvmVm>, msi: Msi) -> Result<Self, KvmError> {
        let route = Route::new(vm, msi)?;
        let event = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)
            .map_err(|error| KvmError::io("eventfd of an interrupt line", &error))?;
        ioctl(format!("KVM_IRQFD of GSI {}", route.gsi.0), || {
            vm.fd().register_irqfd(&event, route.gsi.0)
        })?;
        Ok(Self { event, route })
    }

    /// Raises the interrupt: one `write` system call. Any thread may. An interrupt that is still
    /// pending in the APIC swallows this one.
    pub(crate) fn trigger(&self) {
        // Fails only when the counter is full, and KVM takes every event at once.
        let _ = self.event.write(1);
    }
}

impl Drop for IrqLine {
    fn drop(&mut self) {
        let (vm, gsi) = (&self.route.vm, self.route.gsi.0);
        let unbound = ioctl(format!("KVM_IRQFD that unbinds GSI {gsi}"), || {
            vm.fd().unregister_irqfd(&self.event, gsi)
        });
        if let Err(error) = unbound {
            log::warn!("a device's interrupt line: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvm::host;

    fn vm() -> Arc<KvmVm> {
        let kvm = host::open().expect("this host can run guests");
        let vm = KvmVm::create(&kvm).expect("a VM can be made");
        vm.enable_split_irqchip().expect("it was announced");
        Arc::new(vm)
    }

    fn numbers(vm: &KvmVm) -> Vec<u32> {
        vm.routes().lock().keys().map(|gsi| gsi.0).collect()
    }

    #[test]
    fn lines_are_numbered_behind_the_pins_and_a_number_is_used_again() {
        let vm = vm();
        assert!(numbers(&vm).is_empty());
        let line = |vector| IrqLine::new(&vm, Msi { apic: 0, vector }).expect("there is room");
        let (first, second, third) = (line(0x60), line(0x61), line(0x62));
        assert_eq!(numbers(&vm), [24, 25, 26]);
        drop(second);
        assert_eq!(numbers(&vm), [24, 26]);
        let fourth = line(0x63);
        assert_eq!(numbers(&vm), [24, 25, 26]);
        assert_eq!(vm.routes().lock()[&Gsi(25)], Msi { apic: 0, vector: 0x63 });
        drop((first, third, fourth));
        assert!(numbers(&vm).is_empty());
        assert_eq!(Arc::strong_count(&vm), 1, "a line that is gone does not keep its VM");
    }

    #[test]
    fn a_line_that_kvm_refuses_leaves_no_route() {
        let kvm = host::open().expect("this host can run guests");
        // Without an interrupt controller there is nothing that a route could lead to.
        let bare = Arc::new(KvmVm::create(&kvm).expect("a VM can be made"));
        IrqLine::new(&bare, Msi { apic: 0, vector: 0x60 }).expect_err("it has no APIC");
        assert!(numbers(&bare).is_empty());
    }

    #[test]
    fn a_message_names_its_apic_and_its_vector() {
        let msi = Msi { apic: 3, vector: 0x51 };
        assert_eq!((msi.address(), msi.data()), (0xfee0_3000, 0x51));
    }
}
