//! `--color`: whether what is printed has styles.

use std::ffi::OsString;

use clap::ValueEnum;

/// When text has styles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless the environment says otherwise (NO_COLOR, CLICOLOR, CLICOLOR_FORCE).
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl Color {
    /// The colour that `arguments` ask for, found before they are parsed: errors of the parser are
    /// printed, too.
    pub fn of(arguments: &[OsString]) -> Self {
        let mut color = Self::Auto;
        let mut arguments = arguments.iter().take_while(|argument| *argument != "--").peekable();
        while let Some(argument) = arguments.next() {
            let value = match argument.to_str() {
                Some("--color") => arguments.peek().and_then(|value| value.to_str()),
                Some(argument) => argument.strip_prefix("--color="),
                None => None,
            };
            if let Some(Ok(asked)) = value.map(|value| Self::from_str(value, false)) {
                color = asked;
            }
        }
        color
    }

    /// Whether a stream has styles for which the environment makes this choice.
    pub fn is_styled(self, environment: anstream::ColorChoice) -> bool {
        match self {
            Self::Auto => environment != anstream::ColorChoice::Never,
            Self::Always => true,
            Self::Never => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_choice_counts_and_a_wrong_one_does_not() {
        for (arguments, color) in [
            (&[] as &[&str], Color::Auto),
            (&["run", "--color", "never"], Color::Never),
            (&["--color=always", "run"], Color::Always),
            (&["--color", "always", "--color=never"], Color::Never),
            (&["--color", "pink"], Color::Auto),
            (&["--", "--color=never"], Color::Auto),
        ] {
            let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
            assert_eq!(Color::of(&arguments), color, "{arguments:?}");
        }
    }
}
