use clap::Args;
use retrovisor_proto::v1::DiffRequest;

use super::checkpoint;
use super::global::{Global, print_json};
use crate::client;
use crate::error::CliError;
use crate::terminal::table;

/// Shows what changed between two checkpoints: structures first, pages last.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  retrovisor diff web -1 latest\n  retrovisor diff web last-good @42")]
pub(crate) struct DiffArgs {
    /// The machine
    name: String,
    /// The earlier checkpoint
    #[arg(allow_hyphen_values = true)]
    from: String,
    /// The later checkpoint
    #[arg(default_value = "latest", allow_hyphen_values = true)]
    to: String,
}

pub(super) async fn run(args: DiffArgs, global: &Global) -> Result<(), CliError> {
    let request = DiffRequest { machine: args.name, from: args.from, to: args.to };
    let answer = client::reader(&global.store).await?.checkpoints().diff(request).await?.into_inner();
    if global.json {
        return print_json(&answer);
    }
    println!("from  {}", checkpoint::line(&answer.from.clone().unwrap_or_default()));
    println!("to    {}", checkpoint::line(&answer.to.clone().unwrap_or_default()));
    for facts in &answer.tables {
        println!();
        table::print_facts(facts);
    }
    println!("\n{} pages differ.", answer.pages);
    Ok(())
}
