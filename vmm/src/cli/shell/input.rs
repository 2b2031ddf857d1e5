//! The source of a shell's lines: an editor on a terminal, or standard input as it is.

use std::collections::VecDeque;
use std::env;
use std::fs;
use std::io::{self, BufRead as _, BufReader, IsTerminal as _, Read as _};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use rustyline::Editor;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use vmkern::input::LINE_MAX;

use super::words::Words;
use crate::cli::signals::Signals;

/// How often the wait for a line from a pipe looks for a signal.
const LOOK: Duration = Duration::from_millis(50);

/// Lines from a pipe that are read ahead.
const AHEAD: usize = 16;

/// The end of a wait for a line.
pub enum Read {
    /// A line, without its end.
    Line(Vec<u8>),
    /// There are no more.
    End,
    /// Ctrl-C was pressed at the prompt, in a line that looks so.
    Interrupted(Draft),
}

/// A line that was not entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Draft {
    /// Nothing was typed.
    Empty,
    /// Something was typed, although it may have been erased again.
    Begun,
}

/// The source of lines.
pub enum Input {
    /// A terminal.
    Typed(Box<Typed>),
    /// A pipe, a file, or anything else that standard input is.
    Piped(Receiver<io::Result<Vec<u8>>>),
}

/// A line editor with its history.
pub struct Typed {
    editor: Editor<Words, FileHistory>,
    /// The file of the history, if there is a place for one.
    history: Option<PathBuf>,
    /// Lines that were pasted behind the one that was returned last.
    pasted: VecDeque<Vec<u8>>,
}

impl Input {
    /// The editor on a terminal, and standard input otherwise.
    pub fn open() -> Self {
        let is_typed = io::stdin().is_terminal() && io::stdout().is_terminal();
        if is_typed && let Ok(editor) = Editor::new() {
            return Self::Typed(Box::new(Typed::new(editor)));
        }
        Self::Piped(piped())
    }

    /// Whether lines come from a terminal.
    pub fn is_typed(&self) -> bool {
        matches!(self, Self::Typed(_))
    }

    /// Drops the pasted lines that are left.
    pub fn forget_pasted(&mut self) {
        if let Self::Typed(typed) = self {
            typed.pasted.clear();
        }
    }

    /// The next line. At a terminal, `names` are completed.
    ///
    /// # Errors
    /// When the line cannot be read.
    pub fn read<'n>(
        &mut self,
        prompt: &str,
        names: impl Iterator<Item = &'n str>,
        signals: &Signals,
    ) -> anyhow::Result<Read> {
        match self {
            Self::Typed(typed) => typed.read(prompt, names.map(str::to_owned).collect(), signals),
            Self::Piped(lines) => loop {
                if signals.fired() {
                    return Ok(Read::End);
                }
                match lines.recv_timeout(LOOK) {
                    Ok(line) => return Ok(Read::Line(line?)),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return Ok(Read::End),
                }
            },
        }
    }
}

impl Typed {
    fn new(mut editor: Editor<Words, FileHistory>) -> Self {
        editor.set_helper(Some(Words::default()));
        let history = history();
        if let Some(path) = &history {
            // The file does not exist before the first line.
            let _ = editor.load_history(path);
        }
        Self { editor, history, pasted: VecDeque::new() }
    }

    fn read(
        &mut self,
        prompt: &str,
        names: Vec<String>,
        signals: &Signals,
    ) -> anyhow::Result<Read> {
        // 1. A pasted line.
        if let Some(line) = self.pasted.pop_front() {
            return Ok(Read::Line(line));
        }
        if let Some(words) = self.editor.helper_mut() {
            words.names = names;
            words.is_begun.set(false);
        }
        // 2. A line from the editor. A signal that comes while it waits ends the command.
        let read = {
            let _prompt = signals.prompt();
            self.editor.readline(prompt)
        };
        match read {
            Ok(line) => {
                // 3. Its place in the history.
                if self.editor.add_history_entry(line.as_str()).unwrap_or(false)
                    && let Some(path) = &self.history
                    && self.editor.append_history(path).is_err()
                {
                    // One warning at each line would be one too many.
                    self.history = None;
                }
                self.pasted.extend(line.lines().map(|line| line.as_bytes().to_vec()));
                Ok(Read::Line(self.pasted.pop_front().unwrap_or_default()))
            }
            Err(ReadlineError::Io(error)) if error.kind() == io::ErrorKind::InvalidData => {
                crate::cli::complain(&anyhow::anyhow!("what was typed is not UTF-8: line ignored"));
                Ok(Read::Line(Vec::new()))
            }
            Err(ReadlineError::Interrupted) => {
                let words = self.editor.helper();
                let is_begun = words.is_some_and(|words| words.is_begun.get());
                Ok(Read::Interrupted(if is_begun { Draft::Begun } else { Draft::Empty }))
            }
            Err(ReadlineError::Eof) => Ok(Read::End),
            // The window has another size.
            Err(ReadlineError::Signal(_)) => Ok(Read::Line(Vec::new())),
            Err(error) => Err(error.into()),
        }
    }
}

/// The file of the history, in the directory for state: `$XDG_STATE_HOME`, or `~/.local/state`.
fn history() -> Option<PathBuf> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))?;
    let directory = state.join("vmkern");
    fs::create_dir_all(&directory).ok()?;
    Some(directory.join("history"))
}

/// The lines of standard input, read by a thread that the command does not wait for when a signal
/// ends it. Their number has no limit, their length has.
fn piped() -> Receiver<io::Result<Vec<u8>>> {
    let (to, lines) = sync_channel(AHEAD);
    let read = move || {
        let mut input = BufReader::new(io::stdin());
        loop {
            let mut line = Vec::new();
            let read = input.by_ref().take(LINE_MAX + 1).read_until(b'\n', &mut line);
            let (is_last, line) = match read {
                Ok(0) => return,
                Ok(len) if len as u64 > LINE_MAX => {
                    (true, Err(io::Error::other(format!("a line has more than {LINE_MAX} bytes"))))
                }
                Ok(_) => (false, Ok(line)),
                Err(error) => (true, Err(error)),
            };
            // The shell may have left.
            if to.send(line).is_err() || is_last {
                return;
            }
        }
    };
    // Without a thread the channel is closed at once, and there are no lines.
    let _ = thread::Builder::new().name("input".to_owned()).spawn(read);
    lines
}
