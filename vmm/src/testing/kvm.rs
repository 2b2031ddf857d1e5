//! What a test does on a host that cannot run guests: `VMKERN_KVM` says it.
//!
//! A test that does nothing and passes proves nothing, so the default is to fail. A skip is printed
//! past the test runner's capture, straight to standard error, so it is seen although the test
//! passes.

use std::env;
use std::ffi::OsStr;
use std::io::Write as _;
use std::panic::Location;

use crate::kvm::NoKvm;

/// The variable.
pub(super) const VARIABLE: &str = "VMKERN_KVM";

/// What its values mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Policy {
    /// A test that cannot run fails.
    Require,
    /// It says so and ends.
    Skip,
}

impl Policy {
    fn parse(value: Option<&OsStr>) -> Result<Self, String> {
        match value.map(|value| value.to_str()) {
            None | Some(Some("require")) => Ok(Self::Require),
            Some(Some("skip")) => Ok(Self::Skip),
            Some(_) => {
                let value = value.unwrap_or_default();
                Err(format!("{VARIABLE} must be `require` (the default) or `skip`, got {value:?}"))
            }
        }
    }

    /// What the environment asks for. Looked at before each launch, so that a misspelt value fails
    /// where KVM is there, too.
    ///
    /// # Panics
    /// When it asks for something else.
    #[track_caller]
    pub(super) fn of_environment() -> Self {
        let value = env::var_os(VARIABLE);
        Self::parse(value.as_deref()).unwrap_or_else(|wrong| panic!("{wrong}"))
    }
}

/// Says that the test at `place` ends, as this host cannot run guests.
pub(super) fn say_skipped(place: &Location<'_>, missing: &NoKvm) {
    let line = format!("{place}: skipped, as {VARIABLE}=skip: {missing}\n");
    // `eprintln` would be captured. Without a standard error there is nobody to tell.
    let _ = std::io::stderr().lock().write_all(line.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn require_is_the_default_and_every_other_word_is_an_error() {
        let parse = |value: &str| Policy::parse(Some(OsStr::new(value)));
        assert_eq!(Policy::parse(None), Ok(Policy::Require));
        assert_eq!(parse("require"), Ok(Policy::Require));
        assert_eq!(parse("skip"), Ok(Policy::Skip));
        for wrong in ["", "Skip", "1", "no", "skip "] {
            let error = parse(wrong).expect_err("it is neither");
            assert!(
                error.contains("`require`") && error.contains(&format!("{wrong:?}")),
                "{error}"
            );
        }
    }
}
