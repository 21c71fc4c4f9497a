use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use retrovisor_proto::v1::{ExportRequest, FileFormat, ImportRequest};

use super::checkpoint_name::CheckpointName;
use super::global::{Global, print_json};
use crate::client;
use crate::error::CliError;
use crate::terminal::progress::Progress;
use crate::terminal::{paragraph, quantity};

/// The format of a file.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// The byte at offset N is the one at guest-physical address N
    Raw,
    /// For gdb, crash, drgn, Volatility
    ElfCore,
    /// The machine's whole history, for another store
    Archive,
}

impl Format {
    fn message(self) -> FileFormat {
        match self {
            Self::Raw => FileFormat::Raw,
            Self::ElfCore => FileFormat::ElfCore,
            Self::Archive => FileFormat::Archive,
        }
    }
}

/// Writes a checkpoint to a file for other tools, or a whole history for another store. Works without a daemon, too.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  retrovisor export web web.core                        the newest checkpoint as an ELF core
  retrovisor export web web.raw --at -5 --format raw
  retrovisor export web web.rv --format archive         then elsewhere: retrovisor import web web.rv
  gdb -ex 'info registers' vmlinux web.core")]
pub(crate) struct ExportArgs {
    /// The machine
    name: String,
    /// The file to write; it must not exist yet
    file: PathBuf,
    /// A name or its beginning, a label, @SEQUENCE, -N (N checkpoints back), latest, or last-good
    #[arg(long, default_value = "latest", allow_hyphen_values = true, value_name = "CHECKPOINT")]
    at: CheckpointName,
    /// The format
    #[arg(long, value_enum, default_value_t = Format::ElfCore)]
    format: Format,
}

/// Imports a dump of a machine's memory, as a machine with one checkpoint, and reads it; or an archive of a history.
/// Works without a daemon, too, and makes the store when there is none.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  retrovisor import crashed /var/crash/vmcore           then: retrovisor inspect crashed tasks
  retrovisor import old memory.raw --format raw")]
pub(crate) struct ImportArgs {
    /// Name for the machine
    name: String,
    /// An ELF core (of `export`, of QEMU's dump-guest-memory, of kdump), raw memory, or an archive
    file: PathBuf,
    /// The format [default: recognised from the first bytes]
    #[arg(long, value_enum)]
    format: Option<Format>,
}

pub(super) async fn export(args: ExportArgs, global: &Global) -> Result<(), CliError> {
    let request = ExportRequest {
        machine: args.name.clone(),
        checkpoint: args.at.0,
        format: args.format.message().into(),
        path: absolute(&args.file)?,
    };
    let client = client::reader(&global.store()?).await?;
    let mut stream = client.transfers().export(request).await?.into_inner();
    let progress = Progress::new(global.json);
    let mut report = None;
    while let Some(message) = stream.message().await? {
        progress.show(message.done, message.total, "pages");
        report = message.finished.then_some(message);
    }
    drop(progress);
    let report = report.ok_or_else(|| CliError::failed("the export was interrupted"))?;
    if global.json {
        return print_json(&report);
    }
    outln!(
        "Wrote {}: {}, {} on disk{}.",
        args.file.display(),
        quantity::bytes(report.length_bytes),
        quantity::bytes(report.disk_bytes),
        if report.vmcoreinfo { ", with the guest's VMCOREINFO" } else { "" }
    );
    Ok(())
}

pub(super) async fn import(args: ImportArgs, global: &Global) -> Result<(), CliError> {
    let request = ImportRequest {
        machine: args.name,
        format: args.format.map_or(FileFormat::Unspecified, Format::message).into(),
        path: absolute(&args.file)?,
    };
    // No store is made for a file that does not exist.
    std::fs::metadata(&args.file)
        .map_err(|error| CliError::not_found(format!("cannot read {}: {error}", args.file.display()), ""))?;
    let client = client::importer(&global.store()?).await?;
    let mut stream = client.transfers().import(request).await?.into_inner();
    let progress = Progress::new(global.json);
    let mut report = None;
    while let Some(message) = stream.message().await? {
        progress.show(message.done, message.total, "pages");
        report = message.finished.then_some(message);
    }
    drop(progress);
    let report = report.ok_or_else(|| CliError::failed("the import was interrupted"))?;
    if global.json {
        return print_json(&report);
    }
    outln!(
        "{} is in the store: {}, {} new.",
        report.machine,
        quantity::count(report.checkpoints, "checkpoint"),
        quantity::bytes(report.stored_bytes)
    );
    if report.reason.is_empty() {
        outln!("Look at it: retrovisor inspect {}", report.machine);
    } else {
        paragraph::print(&format!("Little could be read from its memory: {}", report.reason));
    }
    Ok(())
}

fn absolute(path: &Path) -> Result<String, CliError> {
    let failed = |why: String| CliError::failed(format!("{}: {why}", path.display()));
    let absolute = std::path::absolute(path).map_err(|error| failed(error.to_string()))?;
    absolute.into_os_string().into_string().map_err(|_| failed("the path is not UTF-8".into()))
}
