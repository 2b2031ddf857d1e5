//! Where a shell's lines come from: an editor on a terminal, or standard input as it is.

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
use vmkern::input::SCRIPT_MAX;

use super::words::Words;
use crate::cli::signals::Signals;

/// How often the wait for a line from a pipe looks for a signal.
const LOOK: Duration = Duration::from_millis(50);

/// What came of the wait for a line.
pub enum Read {
    /// A line, without its end.
    Line(Vec<u8>),
    /// There are no more.
    End,
    /// Somebody pressed Ctrl-C at the prompt.
    Interrupted,
}

/// Where lines come from.
pub enum Input {
    /// Somebody types.
    Typed(Box<Typed>),
    /// A pipe, a file, or whatever else standard input is.
    Piped(Receiver<io::Result<Vec<u8>>>),
}

/// A line editor with its history.
pub struct Typed {
    editor: Editor<Words, FileHistory>,
    /// Where the history lies, if it can lie anywhere.
    history: Option<PathBuf>,
    /// Lines that were pasted together with one that was given out, and have not been yet.
    pasted: VecDeque<Vec<u8>>,
}

impl Input {
    /// The editor where somebody types, and standard input otherwise.
    pub fn open() -> Self {
        let is_typed = io::stdin().is_terminal() && io::stdout().is_terminal();
        if is_typed && let Ok(editor) = Editor::new() {
            return Self::Typed(Box::new(Typed::new(editor)));
        }
        Self::Piped(piped())
    }

    /// Whether somebody types.
    pub fn is_typed(&self) -> bool {
        matches!(self, Self::Typed(_))
    }

    /// Forgets the rest of what was pasted.
    pub fn forget_pasted(&mut self) {
        if let Self::Typed(typed) = self {
            typed.pasted.clear();
        }
    }

    /// The next line; `names` are bound.
    ///
    /// # Errors
    /// When there is none to be read.
    pub fn read(
        &mut self,
        prompt: &str,
        names: Vec<String>,
        signals: &Signals,
    ) -> anyhow::Result<Read> {
        match self {
            Self::Typed(typed) => typed.read(prompt, names),
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
            // There is none before the first line.
            let _ = editor.load_history(path);
        }
        Self { editor, history, pasted: VecDeque::new() }
    }

    fn read(&mut self, prompt: &str, names: Vec<String>) -> anyhow::Result<Read> {
        if let Some(line) = self.pasted.pop_front() {
            return Ok(Read::Line(line));
        }
        if let Some(words) = self.editor.helper_mut() {
            words.names = names;
        }
        match self.editor.readline(prompt) {
            Ok(line) => {
                if self.editor.add_history_entry(line.as_str()).unwrap_or(false)
                    && let Some(path) = &self.history
                    && self.editor.append_history(path).is_err()
                {
                    // It cannot be written: nobody wants to read that at each line.
                    self.history = None;
                }
                self.pasted.extend(line.lines().map(|line| line.as_bytes().to_vec()));
                Ok(Read::Line(self.pasted.pop_front().unwrap_or_default()))
            }
            Err(ReadlineError::Io(error)) if error.kind() == io::ErrorKind::InvalidData => {
                crate::cli::complain(&anyhow::anyhow!("what was typed is not UTF-8: line ignored"));
                Ok(Read::Line(Vec::new()))
            }
            Err(ReadlineError::Interrupted) => Ok(Read::Interrupted),
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

/// The lines of standard input, read by a thread that nobody waits for: a signal can end the
/// command while it reads.
fn piped() -> Receiver<io::Result<Vec<u8>>> {
    let (to, lines) = sync_channel(64);
    let read = move || {
        let mut input = BufReader::new(io::stdin().take(SCRIPT_MAX + 1));
        let mut total = 0;
        loop {
            let mut line = Vec::new();
            let read = input.read_until(b'\n', &mut line).and_then(|len| {
                total += len as u64;
                let too_long = || io::Error::other(format!("more than {SCRIPT_MAX} bytes"));
                if total > SCRIPT_MAX { Err(too_long()) } else { Ok(len) }
            });
            let (is_last, line) = match read {
                Ok(0) => return,
                Ok(_) => (false, Ok(line)),
                Err(error) => (true, Err(error)),
            };
            // Nobody listens when the shell has left.
            if to.send(line).is_err() || is_last {
                return;
            }
        }
    };
    // Without a thread the channel is closed at once, and there are no lines.
    let _ = thread::Builder::new().name("input".to_owned()).spawn(read);
    lines
}
