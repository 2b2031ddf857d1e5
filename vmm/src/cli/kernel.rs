//! `vmkern kernel`: the embedded kernel as a file, for other loaders and for debuggers.

use std::path::PathBuf;

use clap::Args;
use vmkern::guest::KernelImage;
use vmkern::output::{Destination, Output, Readers};
use vmkern::script::Status;

const EXAMPLES: &str = "\
Example: the same kernel under QEMU's own CPU emulation, checking itself
  vmkern kernel --output vmkern.elf
  qemu-system-x86_64 -accel tcg -M microvm,x-option-roms=off,isa-serial=on \\
      -nodefaults -no-user-config -no-reboot -display none -serial stdio \\
      -device isa-debug-exit,iobase=0xf4,iosize=1 \\
      -kernel vmkern.elf -append 'privilege=supervisor selftest'";

/// Writes the embedded kernel image, an ELF file with entry notes for PVH and for vmkern, and
/// symbols.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct KernelArgs {
    /// The file to write; `-` is standard output.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

/// Runs the subcommand.
pub fn run(args: &KernelArgs) -> Status {
    let output = match Destination::of_bytes(&args.output).and_then(|to| to.whole(Readers::Umask)) {
        Ok(output) => output,
        Err(error) => {
            super::complain(&anyhow::Error::new(error).context("cannot write the kernel image"));
            return Status::Usage;
        }
    };
    match write(output) {
        Ok(()) => Status::Ok,
        Err(error) => {
            super::complain(&error.context(format!(
                "cannot write the kernel image to {}",
                vmkern::text::name(&args.output)
            )));
            Status::Unwritten
        }
    }
}

fn write(mut output: Output) -> anyhow::Result<()> {
    output.write(KernelImage::embedded().bytes(), &mut super::print::go_on)?;
    Ok(output.finish()?)
}
