//! `/dev/kvm`: opens it, or reports what to do if that is not possible.

use std::fmt;
use std::path::Path;

use kvm_bindings::{
    KVM_API_VERSION, KVM_CAP_IMMEDIATE_EXIT, KVM_CAP_SIGNAL_MSI, KVM_CAP_SPLIT_IRQCHIP,
};
use kvm_ioctls::Kvm;
use thiserror::Error;

use super::KvmError;
use super::ioctl::{ioctl, number};
use super::node::NodeAccess;
use crate::system::limits::{is_shortage, remedy};

/// The device.
pub(crate) const DEVICE: &str = "/dev/kvm";

/// Capabilities that every guest needs, with their names in the KVM API.
pub(crate) const REQUIRED: [(u32, &str); 6] = [
    (kvm_bindings::KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY"),
    (kvm_bindings::KVM_CAP_EXT_CPUID, "KVM_CAP_EXT_CPUID"),
    (kvm_bindings::KVM_CAP_GET_TSC_KHZ, "KVM_CAP_GET_TSC_KHZ"),
    (KVM_CAP_SPLIT_IRQCHIP, "KVM_CAP_SPLIT_IRQCHIP"),
    (KVM_CAP_SIGNAL_MSI, "KVM_CAP_SIGNAL_MSI"),
    (KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// This host cannot run guests.
#[derive(Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub struct NoKvm {
    /// What is missing.
    pub missing: Missing,
}

vmkern_inspect::debug_as_printed!(NoKvm);

/// What a host that cannot run guests lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Missing {
    /// `/dev/kvm` does not exist.
    Device,
    /// This user may not open `/dev/kvm`; holds who may.
    Permission(NodeAccess),
    /// `/dev/kvm` exists but cannot be used; holds the system's error number.
    Unusable(i32),
    /// KVM has another version of its API.
    ApiVersion(i32),
    /// KVM lacks the capability of this name.
    Capability(&'static str),
}

impl NoKvm {
    /// What would help, as sentences with exact commands.
    #[must_use]
    pub fn remedy(&self) -> String {
        match &self.missing {
            Missing::Device => {
                let module = if cpu_vendor_is_amd() { "kvm_amd" } else { "kvm_intel" };
                format!(
                    "Load the module: `sudo modprobe {module}`. If that fails, enable {} in the \
                     firmware's setup; in a virtual machine, enable nested virtualization for it; \
                     in a container, pass the device in (`--device {DEVICE}`).",
                    if cpu_vendor_is_amd() {
                        "SVM (AMD-V)"
                    } else {
                        "VT-x (Intel Virtualization Technology)"
                    }
                )
            }
            Missing::Permission(access) => access.remedy(),
            Missing::Unusable(libc::EBUSY) => {
                "Another hypervisor holds the processor's virtualization; stop it (`lsmod | grep \
                 -e vbox -e vmmon`)."
                    .to_owned()
            }
            Missing::Unusable(errno) if is_shortage(*errno) => remedy(DEVICE, *errno),
            Missing::Unusable(_) => "See `dmesg | grep -i kvm` for the reason.".to_owned(),
            Missing::ApiVersion(_) | Missing::Capability(_) => {
                "Run a Linux kernel of version 4.13 or later with its own KVM modules (`uname -r` \
                 tells the version)."
                    .to_owned()
            }
        }
    }
}

impl NoKvm {
    /// What is wrong, as a sentence.
    #[must_use]
    pub fn problem(&self) -> String {
        match &self.missing {
            Missing::Device => format!("this host has no {DEVICE}, so it cannot run guests."),
            Missing::Permission(access) => {
                format!("{DEVICE} exists{access}, but this user may not open it.")
            }
            Missing::Unusable(errno) => {
                format!("{DEVICE} cannot be used: {}.", std::io::Error::from_raw_os_error(*errno))
            }
            Missing::ApiVersion(version) => {
                format!(
                    "{DEVICE} speaks version {version} of the KVM API, and version \
                     {KVM_API_VERSION} is needed."
                )
            }
            Missing::Capability(name) => format!("this host's KVM lacks {name}."),
        }
    }
}

impl fmt::Display for NoKvm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.problem(), self.remedy())
    }
}

fn cpu_vendor_is_amd() -> bool {
    let leaf = std::arch::x86_64::__cpuid(0);
    // "AuthenticAMD" and "HygonGenuine" begin with these four bytes, in EBX.
    leaf.ebx == u32::from_le_bytes(*b"Auth") || leaf.ebx == u32::from_le_bytes(*b"Hygo")
}

/// What is missing if opening `/dev/kvm` fails with `errno`.
fn obstacle(errno: i32) -> Missing {
    match errno {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => Missing::Device,
        libc::EACCES | libc::EPERM => Missing::Permission(NodeAccess::of(Path::new(DEVICE))),
        errno => Missing::Unusable(errno),
    }
}

/// Opens `/dev/kvm` without checking its capabilities.
///
/// # Errors
/// [`NoKvm`], with what would help.
pub(crate) fn open_device() -> Result<Kvm, NoKvm> {
    let unusable = |error: KvmError| NoKvm { missing: obstacle(error.errno) };
    let kvm = ioctl("opening the device", Kvm::new).map_err(unusable)?;
    match ioctl("KVM_GET_API_VERSION", || number(kvm.get_api_version())).map_err(unusable)? {
        version if version == KVM_API_VERSION.cast_signed() => Ok(kvm),
        version => Err(NoKvm { missing: Missing::ApiVersion(version) }),
    }
}

/// Whether KVM has `capability`.
///
/// # Errors
/// [`NoKvm`], when KVM does not answer.
pub(crate) fn offers(kvm: &Kvm, capability: u32) -> Result<bool, NoKvm> {
    let answer =
        ioctl("KVM_CHECK_EXTENSION", || number(kvm.check_extension_raw(capability.into())));
    let answer = answer.map_err(|error| NoKvm { missing: Missing::Unusable(error.errno) })?;
    Ok(answer > 0)
}

/// Opens `/dev/kvm` and checks that it has the capabilities that a guest needs.
///
/// # Errors
/// [`NoKvm`], with what would help.
pub(crate) fn open() -> Result<Kvm, NoKvm> {
    let kvm = open_device()?;
    for (capability, name) in REQUIRED {
        if !offers(&kvm, capability)? {
            return Err(NoKvm { missing: Missing::Capability(name) });
        }
    }
    Ok(kvm)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_obstacle_comes_with_what_would_help() {
        assert_eq!(obstacle(libc::ENOENT), Missing::Device);
        assert!(matches!(obstacle(libc::EACCES), Missing::Permission(_)));
        let text = |missing| NoKvm { missing }.to_string();
        assert!(text(Missing::Device).contains("sudo modprobe kvm_"));
        assert!(text(Missing::Unusable(libc::EMFILE)).contains("RLIMIT_NOFILE"));
        assert!(text(Missing::Unusable(libc::EBUSY)).contains("Another hypervisor"));
        assert!(text(Missing::ApiVersion(11)).contains("version 11"));
        assert!(
            text(Missing::Capability("KVM_CAP_SPLIT_IRQCHIP"))
                .contains("lacks KVM_CAP_SPLIT_IRQCHIP")
        );
    }
}
