use std::io::{IsTerminal as _, Write as _};

use retrovisor_proto::v1::VerifyRequest;

use super::global::{Global, print_json};
use crate::client;
use crate::error::CliError;
use crate::terminal::style;

pub(super) async fn run(global: &Global) -> Result<(), CliError> {
    let mut stream =
        client::reader(&global.store).await?.store().verify(VerifyRequest {}).await?.into_inner();
    let live = std::io::stderr().is_terminal() && !global.json;
    let mut last = None;
    while let Some(progress) = stream.message().await? {
        if live && progress.total_pages > 0 {
            let percent = progress.checked_pages * 100 / progress.total_pages;
            eprint!("\r{} of {} contents checked, {percent} %", progress.checked_pages, progress.total_pages);
            // Progress is for the eye only: a terminal that went away changes nothing.
            let _ = std::io::stderr().flush();
        }
        last = Some(progress);
    }
    if live {
        eprintln!();
    }
    let report =
        last.filter(|last| last.finished).ok_or_else(|| CliError::failed("the check was cut short"))?;
    if global.json {
        print_json(&report)?;
    } else {
        println!(
            "{} checkpoints, {} contents, {} on disk.",
            report.checkpoints,
            report.checked_pages,
            style::bytes(report.stored_bytes)
        );
        for damage in &report.damaged {
            println!("{damage}");
        }
    }
    if report.damaged.is_empty() {
        if !global.json {
            println!("Everything matches its hash.");
        }
        Ok(())
    } else {
        Err(CliError::failed(format!(
            "{} places are damaged; what is not named above is intact",
            report.damaged.len()
        )))
    }
}
