//! The styles of all output for people.

use anstyle::{AnsiColor, Style};

/// Something is wrong.
pub const BAD: Style = AnsiColor::Red.on_default().bold();
/// Something is right.
pub const GOOD: Style = AnsiColor::Green.on_default().bold();
/// A heading.
pub const STRONG: Style = Style::new().bold();
/// The frame around text.
pub const FAINT: Style = AnsiColor::Cyan.on_default();
