use std::collections::HashMap;

use clap::Args;
use retrovisor_proto::v1::{Checkpoint, GetMachineRequest, ListCheckpointsRequest};

use super::{CliError, Global, connect, print_json, style, table};

/// Shows a machine's timelines, newest first.
#[derive(Debug, Args)]
pub(crate) struct LogArgs {
    /// The machine
    name: String,
    /// Only the newest so many checkpoints; 0 for all
    #[arg(short = 'n', long, default_value_t = 40)]
    newest: u32,
}

pub(super) async fn run(args: LogArgs, global: &Global) -> Result<(), CliError> {
    let client = connect::reader(global).await?;
    let request = ListCheckpointsRequest { machine: args.name.clone(), newest: args.newest };
    let checkpoints = client.checkpoints().list_checkpoints(request).await?.into_inner().checkpoints;
    if global.json {
        return print_json(&checkpoints);
    }
    let machine = client.machines().get_machine(GetMachineRequest { machine: args.name }).await?.into_inner().machine;
    let present = machine.map(|machine| machine.present).unwrap_or_default();
    for line in tree(&checkpoints, &present) {
        println!("{line}");
    }
    Ok(())
}

/// The tree, newest first: a column a timeline, `@` where the machine stands, `×` for bad, `?` for suspect.
fn tree(checkpoints: &[Checkpoint], present: &str) -> Vec<String> {
    let mut columns: Vec<i64> = Vec::new();
    for checkpoint in checkpoints {
        if !columns.contains(&checkpoint.timeline) {
            columns.push(checkpoint.timeline);
        }
    }
    let timeline_of: HashMap<&str, i64> =
        checkpoints.iter().map(|checkpoint| (checkpoint.name.as_str(), checkpoint.timeline)).collect();
    // A timeline's line is drawn between its newest checkpoint and the one it came from.
    let span = |timeline: i64| {
        let own = checkpoints.iter().filter(|checkpoint| checkpoint.timeline == timeline);
        let newest = own.clone().map(|checkpoint| checkpoint.sequence).max().unwrap_or(0);
        let oldest = own.min_by_key(|checkpoint| checkpoint.sequence);
        let from = oldest.and_then(|oldest| checkpoints.iter().find(|c| c.name == oldest.parent)).map_or(0, |c| c.sequence);
        (from, newest)
    };
    let spans: Vec<(u64, u64)> = columns.iter().map(|timeline| span(*timeline)).collect();
    let mut lines = Vec::new();
    for checkpoint in checkpoints.iter().rev() {
        let mut graph = String::new();
        for (timeline, (from, newest)) in columns.iter().zip(&spans) {
            graph.push(if *timeline == checkpoint.timeline {
                mark(checkpoint, present)
            } else if checkpoint.sequence > *from && checkpoint.sequence < *newest {
                '│'
            } else {
                ' '
            });
            graph.push(' ');
        }
        let branched = timeline_of.get(checkpoint.parent.as_str()).is_some_and(|from| *from != checkpoint.timeline);
        lines.push(fit(&format!("{graph}{}", text(checkpoint, branched)), checkpoint));
    }
    lines
}

fn mark(checkpoint: &Checkpoint, present: &str) -> char {
    use retrovisor_proto::v1::Verdict;
    match checkpoint.verdict() {
        _ if checkpoint.name == present => '@',
        Verdict::Bad => '×',
        Verdict::Suspect => '?',
        Verdict::Good | Verdict::Unspecified => '●',
    }
}

fn text(checkpoint: &Checkpoint, branched: bool) -> String {
    let mut text = format!(
        "{:.6} #{:<4} {:>9} pause {:>8} {:>6} pages {:>10} {:<7}",
        checkpoint.name,
        checkpoint.sequence,
        style::ago(checkpoint.taken_at_ms),
        style::duration(checkpoint.pause_us),
        checkpoint.dirty_pages,
        style::bytes(checkpoint.stored_bytes),
        style::verdict(checkpoint.verdict()),
    );
    if !checkpoint.label.is_empty() {
        text += &format!(" `{}`", style::printable(&checkpoint.label));
    } else if checkpoint.kind != "automatic" {
        text += &format!(" {}", checkpoint.kind);
    }
    if branched {
        text += &format!(" ⟲ from {:.6}", checkpoint.parent);
    }
    text
}

fn fit(line: &str, checkpoint: &Checkpoint) -> String {
    let width = table::terminal_width();
    let cut: String = line.chars().take(width).collect();
    style::painted(checkpoint.verdict(), &cut)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(name: &str, sequence: u64, timeline: i64, parent: &str) -> Checkpoint {
        Checkpoint { name: name.into(), sequence, timeline, parent: parent.into(), ..Checkpoint::default() }
    }

    #[test]
    fn a_rollback_shows_as_a_second_column() {
        let all = [
            checkpoint("aaa", 1, 1, ""),
            checkpoint("bbb", 2, 1, "aaa"),
            checkpoint("ccc", 3, 2, "aaa"),
            checkpoint("ddd", 4, 2, "ccc"),
        ];
        let graph: Vec<String> =
            tree(&all, "ddd").iter().map(|line| line.chars().take(3).collect()).collect();
        assert_eq!(graph, ["  @", "  ●", "● │", "●  "]);
        assert!(tree(&all, "ddd")[1].contains("from aaa"));
    }
}
