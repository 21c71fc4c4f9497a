use clap::Args;
use retrovisor_proto::v1::{
    Cell, ListQueriesRequest, QueryRequest, QueryResponse, RunNamedQueryRequest, cell,
};

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
    let client = client::reader(&global.store()?).await?;
    if args.list {
        let answer = client.queries().list_queries(ListQueriesRequest {}).await?.into_inner();
        if global.json {
            return print_json(&answer);
        }
        let rows: Vec<_> =
            answer.queries.iter().map(|query| vec![query.name.clone(), query.question.clone()]).collect();
        table::print(&["name", "question"], &rows);
        outln!();
        outln!("Their values are:");
        for query in &answer.queries {
            outln!("  {} {}", query.name, query.parameters.join(", "));
        }
        return Ok(());
    }
    let mut words = args.words.into_iter();
    let text = |word| Cell { value: Some(cell::Value::Text(word)) };
    let answer = if let Some(name) = args.named {
        let request = RunNamedQueryRequest { name, values: words.map(text).collect(), limit: args.limit };
        let answer = client.queries().run_named_query(request).await?.into_inner();
        QueryResponse { table: answer.table, truncated: answer.truncated }
    } else {
        let sql = words.next().unwrap_or_default();
        let request = QueryRequest { sql, parameters: words.map(text).collect(), limit: args.limit };
        client.queries().query(request).await?.into_inner()
    };
    if global.json {
        return print_json(&answer);
    }
    table::print_facts(&answer.table.unwrap_or_default());
    if answer.truncated {
        errln!("(more rows than --limit {})", args.limit);
    }
    Ok(())
}
