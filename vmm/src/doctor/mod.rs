//! Whether this host can run guests, found out by trying.
//!
//! Every KVM operation that a guest needs is carried out once, on a guest of a few instructions, in
//! the order of a launch. A failure is reported with its remedy, and everything that depends on it
//! is left out.
//!
//! ```
//! use vmkern::doctor::DoctorReport;
//!
//! let report = DoctorReport::examine();
//! assert!(report.can_run, "{report}");
//! ```

mod probe;

use std::fmt;

use kvm_bindings::KVM_API_VERSION;
use serde::Serialize;
use vmkern_abi::boot::Privilege;

use crate::guest::KvmKind;
use crate::kvm::host::{self, REQUIRED};
use crate::kvm::{KvmError, Missing, NoKvm};

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum CheckStatus {
    /// It works.
    Ok,
    /// This host does not offer it.
    Missing,
    /// This host offers it, but it did not work.
    Failed,
}

/// Whether guests run without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Need {
    /// No guest runs without it.
    Required,
    /// Guests run without it, but some commands do not.
    Optional,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Check {
    /// What was tried.
    pub name: &'static str,
    /// Whether guests run without it.
    pub need: Need,
    /// How it came out.
    pub status: CheckStatus,
    /// What was seen.
    pub detail: String,
    /// What would help, if it failed.
    pub remedy: Option<String>,
}

impl Check {
    fn ok(name: &'static str, need: Need, detail: impl Into<String>) -> Self {
        Self { name, need, status: CheckStatus::Ok, detail: detail.into(), remedy: None }
    }

    fn failed(name: &'static str, need: Need, trouble: Trouble) -> Self {
        let Trouble { detail, remedy } = trouble;
        Self { name, need, status: CheckStatus::Failed, detail, remedy: Some(remedy) }
    }

    fn missing(name: &'static str, obstacle: &NoKvm) -> Self {
        let (detail, remedy) = (obstacle.problem(), Some(obstacle.remedy()));
        Self { name, need: Need::Required, status: CheckStatus::Missing, detail, remedy }
    }
}

/// Why something did not work.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Trouble {
    /// What was seen.
    detail: String,
    /// What would help.
    remedy: String,
}

impl From<KvmError> for Trouble {
    fn from(error: KvmError) -> Self {
        Self { detail: error.to_string(), remedy: error.remedy() }
    }
}

impl From<String> for Trouble {
    fn from(detail: String) -> Self {
        Self { detail, remedy: NoKvm { missing: Missing::Unusable(0) }.remedy() }
    }
}

/// What `vmkern doctor` reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DoctorReport {
    /// Whether guests can run: every required check succeeded.
    pub can_run: bool,
    /// The kind of KVM, if it could be measured.
    pub kvm: Option<KvmKind>,
    /// Measured time of one instruction at CPL0, in nanoseconds.
    pub instruction_ns: Option<u64>,
    /// The privilege that `auto` will choose.
    pub privilege: Option<&'static str>,
    /// Why.
    pub reason: Option<String>,
    /// All checks, in order.
    pub checks: Vec<Check>,
}

impl DoctorReport {
    /// Examines this host.
    #[must_use]
    pub fn examine() -> Self {
        // 1. Check everything that guests need. The last checks run a guest.
        let mut checks = Vec::new();
        let instruction_ns = match host::open_device() {
            Err(obstacle) => {
                checks.push(Check::missing("open /dev/kvm", &obstacle));
                None
            }
            Ok(kvm) => {
                checks.push(Check::ok(
                    "open /dev/kvm",
                    Need::Required,
                    format!("API version {KVM_API_VERSION}"),
                ));
                for (capability, name) in REQUIRED {
                    checks.push(match host::offers(&kvm, capability) {
                        Ok(true) => Check::ok(name, Need::Required, "offered"),
                        Ok(false) => {
                            Check::missing(name, &NoKvm { missing: Missing::Capability(name) })
                        }
                        Err(obstacle) => Check::missing(name, &obstacle),
                    });
                }
                probe::run(&kvm, &mut checks)
            }
        };
        // 2. The kind of KVM, from the time of an instruction at CPL0.
        let kvm = instruction_ns.map(KvmKind::from_instruction_time);
        Self {
            can_run: checks
                .iter()
                .all(|check| check.need == Need::Optional || check.status == CheckStatus::Ok),
            kvm,
            instruction_ns,
            privilege: kvm.map(|kvm| kvm.best_privilege().name()),
            reason: kvm.zip(instruction_ns).map(|(kvm, ns)| reason(kvm, ns)),
            checks,
        }
    }
}

fn reason(kvm: KvmKind, ns: u64) -> String {
    let (user, supervisor) = (Privilege::User.name(), Privilege::Supervisor.name());
    match kvm {
        KvmKind::Hardware => format!(
            "an instruction at CPL0 takes {ns} ns, so the processor itself runs it: `auto` chooses \
             {supervisor}, the kernel at CPL0"
        ),
        KvmKind::Software => format!(
            "an instruction at CPL0 takes {ns} ns, so KVM emulates it, while CPL3 runs natively: \
             `auto` chooses {user}, the kernel at CPL3 on a small nucleus at CPL0"
        ),
    }
}

impl fmt::Display for DoctorReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for check in &self.checks {
            let mark = match (check.status, check.need) {
                (CheckStatus::Ok, _) => "ok     ",
                (CheckStatus::Missing, _) => "MISSING",
                (CheckStatus::Failed, Need::Required) => "FAILED ",
                (CheckStatus::Failed, Need::Optional) => "failed ",
            };
            writeln!(f, "{mark}  {}: {}", check.name, check.detail)?;
            if let Some(remedy) = &check.remedy {
                writeln!(f, "         {remedy}")?;
            }
        }
        if let (Some(kvm), Some(reason)) = (self.kvm, &self.reason) {
            writeln!(f, "\nThis is {} KVM: {reason}.", kvm.name())?;
        }
        f.write_str(if self.can_run {
            "This host can run guests."
        } else {
            "This host cannot run guests."
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_can_run_guests() {
        let report = DoctorReport::examine();
        assert!(report.can_run, "{report}");
        assert_eq!(report.privilege, report.kvm.map(|kvm| kvm.best_privilege().name()));
        let required =
            |name: &str| report.checks.iter().any(|c| c.name == name && c.need == Need::Required);
        assert!(
            required("run a guest") && required("interrupt a guest") && required("stop a guest"),
            "{report}"
        );
    }

    #[test]
    fn what_is_missing_is_reported_with_the_command_that_helps() {
        let obstacle = NoKvm { missing: Missing::Capability("KVM_CAP_SPLIT_IRQCHIP") };
        let check = Check::missing("KVM_CAP_SPLIT_IRQCHIP", &obstacle);
        let report = DoctorReport {
            can_run: false,
            kvm: None,
            instruction_ns: None,
            privilege: None,
            reason: None,
            checks: vec![check],
        };
        assert!(report.to_string().contains("uname -r"));
        let json = serde_json::to_value(&report).expect("a report is JSON");
        assert_eq!(json["can_run"], false);
        assert_eq!(json["checks"][0]["status"], "missing");
    }
}
