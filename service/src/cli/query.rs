use clap::Args;
use retrovisor_analytics::{NamedQuery, QUERIES};
use retrovisor_proto::v1::{Cell, QueryRequest, cell};

use super::global::{Global, print_json};
use crate::client;
use crate::error::CliError;
use crate::terminal::table;

/// Runs a read-only SQL query on the snapshot database. Works without a daemon, too.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  retrovisor query \"SELECT name, verdict, dirty_pages FROM v_checkpoint ORDER BY sequence DESC LIMIT 5\"
  retrovisor query --list                  the named queries
  retrovisor query --named new-tasks GOOD BAD   names of two checkpoints
  retrovisor query \"SELECT name FROM sqlite_master WHERE type IN ('table','view')\"")]
pub(crate) struct QueryArgs {
    /// One SELECT statement (not with --named), then the values of ?1, ?2…
    #[arg(required_unless_present_any = ["list", "named"], value_name = "SQL | VALUE")]
    words: Vec<String>,
    /// List the named queries
    #[arg(long, conflicts_with_all = ["words", "named"])]
    list: bool,
    /// Run a named query; its values follow
    #[arg(long, value_name = "NAME")]
    named: Option<String>,
    /// Maximum number of rows
    #[arg(long, default_value_t = 1000)]
    limit: u32,
}

pub(super) async fn run(args: QueryArgs, global: &Global) -> Result<(), CliError> {
    if args.list {
        let rows: Vec<_> =
            QUERIES.iter().map(|query| vec![query.name.to_owned(), query.question.to_owned()]).collect();
        table::print(&["name", "question"], &rows);
        outln!();
        outln!("Their values are:");
        for query in QUERIES {
            outln!("  {} {}", query.name, query.parameters.join(", "));
        }
        return Ok(());
    }
    let mut words = args.words.into_iter();
    let sql = match args.named {
        Some(name) => named(&name, words.len())?.sql.to_owned(),
        None => words.next().unwrap_or_default(),
    };
    let parameters = words.map(|word| Cell { value: Some(cell::Value::Text(word)) }).collect();
    let request = QueryRequest { sql, parameters, limit: args.limit };
    let answer = client::reader(&global.store()?).await?.queries().query(request).await?.into_inner();
    if global.json {
        return print_json(&answer);
    }
    table::print_facts(&answer.table.unwrap_or_default());
    if answer.truncated {
        errln!("(more rows than --limit {})", args.limit);
    }
    Ok(())
}

/// The named query, if it takes this number of values.
fn named(name: &str, values: usize) -> Result<&'static NamedQuery, CliError> {
    let help = "See: retrovisor query --list";
    let query = QUERIES
        .iter()
        .find(|query| query.name == name)
        .ok_or_else(|| CliError::not_found(format!("there is no query `{name}`"), help))?;
    if query.parameters.len() == values {
        return Ok(query);
    }
    Err(CliError::refused(format!("`{name}` takes these values: {}", query.parameters.join(", ")), help))
}
