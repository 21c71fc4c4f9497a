use clap::Args;
use retrovisor_proto::v1::{Cell, DiffRequest, Table, cell::Value};

use super::checkpoint;
use super::checkpoint_name::CheckpointName;
use super::global::{Global, print_json};
use crate::client;
use crate::error::CliError;
use crate::terminal::{paragraph, table};

/// Shows what changed between two checkpoints: structures first, pages last.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  retrovisor diff web -1 latest\n  retrovisor diff web last-good @42")]
pub(crate) struct DiffArgs {
    /// The machine
    name: String,
    /// The earlier checkpoint
    #[arg(allow_hyphen_values = true)]
    from: CheckpointName,
    /// The later checkpoint
    #[arg(default_value = "latest", allow_hyphen_values = true)]
    to: CheckpointName,
}

pub(super) async fn run(args: DiffArgs, global: &Global) -> Result<(), CliError> {
    let request = DiffRequest { machine: args.name, from: args.from.0, to: args.to.0 };
    let answer = client::reader(&global.store()?).await?.checkpoints().diff(request).await?.into_inner();
    if global.json {
        return print_json(&answer);
    }
    paragraph::print(&format!("from  {}", checkpoint::line(&answer.from.clone().unwrap_or_default())));
    paragraph::print(&format!("to    {}", checkpoint::line(&answer.to.clone().unwrap_or_default())));
    for facts in answer.tables {
        outln!();
        table::print_facts(&without_repetition(facts));
    }
    outln!();
    outln!("{} pages differ.", answer.pages);
    Ok(())
}

/// Blanks the leading cells that are equal to those of the row above, so that the fields are easy to find.
fn without_repetition(mut table: Table) -> Table {
    let Some(named) = table.columns.iter().position(|column| column == "field") else { return table };
    let mut above: Vec<Cell> = Vec::new();
    for row in &mut table.rows {
        let leading: Vec<Cell> = row.cells.iter().take(named).cloned().collect();
        if leading == above {
            let blank = || Cell { value: Some(Value::Text(String::new())) };
            row.cells.iter_mut().take(named).for_each(|cell| *cell = blank());
        }
        above = leading;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use retrovisor_proto::v1::Row;

    #[test]
    fn a_structure_is_named_once() {
        let text = |text: &str| Cell { value: Some(Value::Text(text.to_owned())) };
        let row = |cells: [&str; 2]| Row { cells: cells.map(text).to_vec() };
        let rows = vec![row(["cred", "uid"]), row(["cred", "gid"]), row(["file", "f_pos"])];
        let columns = vec!["structure".to_owned(), "field".to_owned()];
        let table = without_repetition(Table { columns, rows, ..Table::default() });
        let first: Vec<Cell> = table.rows.iter().map(|row| row.cells[0].clone()).collect();
        assert_eq!(first, [text("cred"), text(""), text("file")]);
        assert_eq!(table.rows[1].cells[1], text("gid"));
    }
}
