//! `fail SITE SPEC`: a fail point and its programme, taken from the rest of the line as it is; and
//! `SITE=SPEC` of `--fail`.

use std::fmt;

use super::diagnostic::Diagnostic;
use super::lexer::Lexer;
use super::source::Span;
use crate::guest::{FailAction, FailSite, FailSpec, SpecRule};
use crate::spelling::closest;

/// What a `fail` does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FailRequest {
    /// Makes this the programme of a site.
    Arm(FailSite, Box<FailSpec>),
    /// Disarms every site.
    Off,
    /// Lists the sites.
    List,
}

impl fmt::Display for FailRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Arm(site, spec) => write!(f, "{} {spec}", site.name()),
            Self::Off => f.write_str("off"),
            Self::List => f.write_str("list"),
        }
    }
}

/// Words that can stand in place of a site.
pub(super) const WORDS: [&str; 2] = ["off", "list"];
/// What can stand behind `fail`.
pub(super) const EXPECTED: &str = "SITE SPEC, `off` or `list`";
/// The grammar of a programme.
const GRAMMAR: &str = "[N%][M*]action[(argument)][->...]";

/// The names of the actions that `site` takes.
pub(super) fn actions(site: FailSite) -> impl Iterator<Item = &'static str> {
    FailAction::ALL.into_iter().filter(move |&action| site.takes(action)).map(FailAction::name)
}

/// Every site with what it takes, and below it what failing there means.
#[must_use]
pub fn fail_sites() -> String {
    let names = FailSite::ALL.map(FailSite::name);
    let width = names.iter().map(|name| name.len()).max().unwrap_or(0);
    let lines = FailSite::ALL.map(|site| {
        let takes: Vec<_> = actions(site).collect();
        format!("{:width$}  {}\n    {}", site.name(), takes.join(" "), site.effect())
    });
    lines.join("\n")
}

/// Parses what follows `fail`, up to a comment.
pub(super) fn parse(lexer: &mut Lexer<'_>) -> Result<FailRequest, Diagnostic> {
    // 1. A word that is not a site stands alone.
    let (text, whole) = lexer.tail();
    let (name, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let spec = rest.trim_start();
    let at = whole.end - spec.len();
    let behind = Span { start: at, ..whole };
    let request = match name {
        "off" => Some(FailRequest::Off),
        "list" => Some(FailRequest::List),
        _ => None,
    };
    if let Some(request) = request {
        if spec.is_empty() {
            return Ok(request);
        }
        let message = format!("`fail {name}` takes no more arguments");
        return Err(Diagnostic::new(behind, message, "the end of the line", format!("`{spec}`")));
    }
    // 2. A site, and a programme that it takes.
    let span = Span { end: whole.start + name.len(), ..whole };
    let site = FailSite::from_name(name).ok_or_else(|| unknown(span, name, &WORDS))?;
    if spec.is_empty() {
        let message = format!("`fail {name}` lacks its programme");
        return Err(Diagnostic::new(behind, message, GRAMMAR, "the end of the line"));
    }
    let programme = programme(site, spec, behind)?;
    Ok(FailRequest::Arm(site, Box::new(programme)))
}

/// Parses `SITE=SPEC`, the value of an option.
///
/// # Errors
/// The rule that it breaks, and the place, with a caret under it.
pub(super) fn option(text: &str) -> Result<(FailSite, FailSpec), String> {
    let span = |start, end| Span { line: 1, start, end };
    let parsed = match text.split_once('=') {
        None => {
            let message = format!("`{text}` lacks its programme");
            let end = span(text.len(), text.len());
            Err(Diagnostic::new(end, message, "`=` and a programme", "the end"))
        }
        Some((name, spec)) => {
            let behind = name.len() + 1;
            match FailSite::from_name(name) {
                None => Err(unknown(span(0, name.len()), name, &[]).expecting("a site")),
                Some(site) => programme(site, spec, span(behind, text.len()))
                    .map(|programme| (site, programme)),
            }
        }
    };
    parsed.map_err(|error| error.render_option(text))
}

/// Parses `spec`, which stands at `whole`.
fn programme(site: FailSite, spec: &str, whole: Span) -> Result<FailSpec, Diagnostic> {
    let error = match FailSpec::parse(site, spec) {
        Ok(programme) => return Ok(programme),
        Err(error) => error,
    };
    let name = site.name();
    let place = Span { start: whole.start + error.at, ..whole };
    let rest = spec.get(error.at..).unwrap_or_default();
    let message = match error.rule {
        SpecRule::Refused(..) | SpecRule::Value(_) => error.to_string(),
        _ => format!("bad programme for {name}: {error}"),
    };
    let wrong = Diagnostic::new(place, message, GRAMMAR, format!("`{rest}`"));
    Err(match error.rule {
        SpecRule::Action => {
            let end = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
            wrong.suggest(closest(&rest[..end], actions(site)))
        }
        SpecRule::Refused(..) => {
            let takes: Vec<_> = actions(site).collect();
            wrong.help(format!("{name} takes {}", takes.join(" ")))
        }
        _ => wrong,
    })
}

/// The error for a site that does not exist, where one of `words` can stand, too.
fn unknown(span: Span, name: &str, words: &[&'static str]) -> Diagnostic {
    let names = FailSite::ALL.map(FailSite::name);
    let error = Diagnostic::new(
        span,
        format!("unknown fail site `{name}`"),
        "a site, `off` or `list`",
        format!("`{name}`"),
    );
    let meant = closest(name, names.into_iter().chain(words.iter().copied()));
    let meant = meant.map_or(String::new(), |near| format!("did you mean `{near}`? "));
    error.help(format!("{meant}the sites are {}", names.join(" ")))
}
