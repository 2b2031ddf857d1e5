//! `vmkern man`: manual pages.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Command, CommandFactory as _};
use clap_mangen::Man;
use vmkern::output::{Destination, Readers};
use vmkern::script::Status;

const EXAMPLES: &str = "\
Examples:
  vmkern man | man -l -
  vmkern man ~/.local/share/man/man1";

/// Prints the manual page of the command, or writes one for each subcommand too.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ManArgs {
    /// Writes all pages to this directory, which is made if there is none.
    #[arg(value_name = "DIR")]
    directory: Option<PathBuf>,
}

/// Runs the subcommand.
pub fn run(args: &ManArgs) -> Status {
    let mut root = super::Cli::command();
    root.build();
    let Some(directory) = &args.directory else {
        return match page(&root) {
            Ok(text) => {
                super::print(&String::from_utf8_lossy(&text));
                Status::Ok
            }
            Err(error) => {
                super::complain(&anyhow::Error::new(error).context("cannot make the page"));
                Status::Broken
            }
        };
    };
    match write_all(&root, directory) {
        Ok(()) => Status::Ok,
        Err(error) => {
            super::complain(&error);
            Status::Unwritten
        }
    }
}

fn write_all(root: &Command, directory: &Path) -> anyhow::Result<()> {
    let shown = vmkern::text::name(directory);
    std::fs::create_dir_all(directory)
        .with_context(|| format!("cannot make the directory {shown}"))?;
    let mut commands = vec![root];
    while let Some(command) = commands.pop() {
        let name = command.get_display_name().unwrap_or_else(|| command.get_name());
        let path = directory.join(format!("{name}.1"));
        let mut output = Destination::of(&path).and_then(|to| to.whole(Readers::Umask))?;
        output.write(&page(command)?, &mut super::print::go_on)?;
        output.finish().with_context(|| format!("cannot write {}", vmkern::text::name(&path)))?;
        commands.extend(super::help::visible(command));
    }
    Ok(())
}

fn page(command: &Command) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    Man::new(command.clone()).render(&mut text)?;
    Ok(text)
}
