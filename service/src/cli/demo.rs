use std::path::PathBuf;

use clap::Args;

use super::global::Global;
use super::run::{interval_ms, parse_interval};
use crate::error::CliError;
use crate::{demo, place};

/// Shows the whole story on one screen: a stock guest is checkpointed, hurt twice, noticed, taken back, explained.
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
    let cache = place::guest_cache();
    let plan = demo::Plan {
        dir: args.dir,
        kernel: args.kernel.unwrap_or_else(|| cache.join("vmlinuz")),
        initrd: args.initrd.unwrap_or_else(|| cache.join("initramfs.cpio.gz")),
        disk: args.disk.unwrap_or_else(|| cache.join("disk.raw")),
        every_ms: interval_ms(args.every),
    };
    demo::tell(&plan).await
}
