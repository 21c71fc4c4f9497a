use std::path::PathBuf;

use clap::Args;

use super::global::Global;
use super::interval::{interval_ms, parse_interval};
use crate::error::CliError;
use crate::{demo, place};

/// Runs a stock guest, injects two faults into it, detects both, rolls the guest back and shows the likely causes.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  retrovisor demo --dir /tmp/demo --every 1s")]
pub(crate) struct DemoArgs {
    /// Folder for the demo's store, report and summary
    #[arg(long, default_value = "target/demo", value_name = "DIR")]
    dir: PathBuf,
    /// Linux kernel of the guest [default: the one that `make setup` fetched]
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Initial RAM file system of the guest [default: the one that `make setup` built]
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Disk of the guest; only read [default: the one that `make setup` built]
    #[arg(long, value_name = "FILE")]
    disk: Option<PathBuf>,
    /// Interval between checkpoints
    #[arg(long, default_value = "500ms", value_parser = parse_interval)]
    every: std::time::Duration,
}

pub(super) async fn run(args: DemoArgs, _global: &Global) -> Result<(), CliError> {
    if args.every.is_zero() {
        return Err(CliError::refused("the demo needs an interval", "Use --every 500ms."));
    }
    let file = |named: Option<PathBuf>, name: &str| match named {
        Some(file) => Ok(file),
        None => place::guest_cache().map(|cache| cache.join(name)),
    };
    let plan = demo::Plan {
        dir: args.dir,
        kernel: file(args.kernel, "vmlinuz")?,
        initrd: file(args.initrd, "initramfs.cpio.gz")?,
        disk: file(args.disk, "disk.raw")?,
        every_ms: interval_ms(args.every),
    };
    demo::run(&plan).await
}
