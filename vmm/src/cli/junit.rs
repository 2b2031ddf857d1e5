//! The JUnit file of a suite.

use std::time::Duration;

use anyhow::Context as _;
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};
use vmkern::output::{Destination, Readers};
use vmkern::script::Status;

/// One script of the suite.
#[derive(Debug)]
pub struct Case {
    /// Its path below the directory.
    pub name: String,
    /// How it ended; nothing when it did not run.
    pub status: Option<Status>,
    /// The explanation of a failure, in plain text.
    pub message: String,
    /// Its output.
    pub output: String,
    /// How long it took.
    pub took: Duration,
}

/// Writes the file.
///
/// # Errors
/// When it cannot be written.
pub fn write(to: Destination, suite: &str, cases: &[Case]) -> anyhow::Result<()> {
    // 1. A test case for each script.
    let mut report = Report::new("vmkern");
    let mut tests = TestSuite::new(suite);
    for case in cases {
        let status = match case.status {
            Some(Status::Ok) => TestCaseStatus::success(),
            None => TestCaseStatus::skipped(),
            Some(status) => {
                let kind = if status == Status::Failed {
                    NonSuccessKind::Failure
                } else {
                    NonSuccessKind::Error
                };
                let mut bad = TestCaseStatus::non_success(kind);
                let first = case.message.lines().next().unwrap_or_default().to_owned();
                bad.set_message(first)
                    .set_type(format!("status {}", status as u8))
                    .set_description(case.message.clone());
                bad
            }
        };
        let mut test = TestCase::new(case.name.clone(), status);
        test.set_classname(suite).set_time(case.took);
        if !case.output.is_empty() {
            test.set_system_out(case.output.clone());
        }
        tests.add_test_case(test);
    }
    // 2. The file, which appears whole or not at all.
    report.add_test_suite(tests);
    let name = vmkern::text::name(to.path());
    let fail = || format!("cannot write the JUnit report to {name}");
    let text = report.to_string().with_context(fail)?;
    let mut output = to.whole(Readers::Umask)?;
    output.write(text.as_bytes(), &mut super::print::go_on).with_context(fail)?;
    output.finish().with_context(fail)
}
