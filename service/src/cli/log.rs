use std::collections::HashMap;

use clap::Args;
use retrovisor_proto::v1::{Checkpoint, GetMachineRequest, ListCheckpointsRequest, Verdict};

use super::global::{Global, print_json};
use crate::client;
use crate::error::CliError;
use crate::terminal::{output, paragraph, quantity, verdict, width};

/// Shows a machine's timelines, newest first.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  retrovisor log web\n  retrovisor log web --json")]
pub(crate) struct LogArgs {
    /// The machine
    name: String,
    /// Show only this many of the newest checkpoints; 0 for all
    #[arg(short = 'n', long, default_value_t = 40)]
    newest: u32,
}

pub(super) async fn run(args: LogArgs, global: &Global) -> Result<(), CliError> {
    let client = client::reader(&global.store()?).await?;
    let request = ListCheckpointsRequest { machine: args.name.clone(), newest: args.newest };
    let checkpoints = client.checkpoints().list_checkpoints(request).await?.into_inner().checkpoints;
    if global.json {
        return print_json(&checkpoints);
    }
    let machine =
        client.machines().get_machine(GetMachineRequest { machine: args.name }).await?.into_inner().machine;
    let machine = machine.unwrap_or_default();
    paragraph::print(
        "Newest first: name, number, age, pause, dirty pages, bytes stored, verdict. @ is the current checkpoint, ⟲ the \
         beginning of a timeline. The verdict is unknown until enough checkpoints after it are clean. A doubtful checkpoint \
         may not be exactly what the guest was.",
    );
    for (checkpoint, line) in checkpoints.iter().rev().zip(tree(&checkpoints, &machine.current)) {
        output::styled_line(verdict::style(checkpoint.verdict()), &width::cut(&line, width::terminal()));
    }
    if let Some(from) = machine.branched_from {
        outln!("⟲ It began as a branch of {} at {:.6} #{}", from.machine, from.checkpoint, from.sequence);
    }
    Ok(())
}

/// A timeline in the graph: from the checkpoint that it began at to its newest one.
struct Branch {
    timeline: i64,
    from: u64,
    newest: u64,
    column: usize,
}

/// The tree, newest first: `@` for the current checkpoint, `×` bad, `?` suspect, `●` good, `○` unknown.
fn tree(checkpoints: &[Checkpoint], current: &str) -> Vec<String> {
    let branches = branches(checkpoints);
    let columns = branches.iter().map(|branch| branch.column + 1).max().unwrap_or(0);
    let timeline_of: HashMap<&str, i64> =
        checkpoints.iter().map(|checkpoint| (checkpoint.name.as_str(), checkpoint.timeline)).collect();
    let mut lines = Vec::new();
    for checkpoint in checkpoints.iter().rev() {
        let mut graph = vec![' '; 2 * columns];
        for branch in &branches {
            if branch.timeline == checkpoint.timeline {
                graph[2 * branch.column] = mark(checkpoint, current);
            } else if checkpoint.sequence > branch.from && checkpoint.sequence < branch.newest {
                graph[2 * branch.column] = '│';
            }
        }
        let begins =
            timeline_of.get(checkpoint.parent.as_str()).is_some_and(|from| *from != checkpoint.timeline);
        let graph: String = graph.into_iter().collect();
        lines.push(format!("{graph}{}", text(checkpoint, begins)));
    }
    lines
}

/// The timelines, each in the first column that is free over its whole length.
fn branches(checkpoints: &[Checkpoint]) -> Vec<Branch> {
    let sequence_of: HashMap<&str, u64> =
        checkpoints.iter().map(|checkpoint| (checkpoint.name.as_str(), checkpoint.sequence)).collect();
    let mut branches: Vec<Branch> = Vec::new();
    for checkpoint in checkpoints {
        match branches.iter_mut().find(|branch| branch.timeline == checkpoint.timeline) {
            Some(branch) => branch.newest = checkpoint.sequence,
            None => branches.push(Branch {
                timeline: checkpoint.timeline,
                from: sequence_of.get(checkpoint.parent.as_str()).copied().unwrap_or(0),
                newest: checkpoint.sequence,
                column: 0,
            }),
        }
    }
    for at in 1..branches.len() {
        let (placed, rest) = branches.split_at_mut(at);
        let this = &mut rest[0];
        let taken = |column: usize| {
            placed.iter().any(|other| {
                other.column == column && other.from.max(this.from) < other.newest.min(this.newest)
            })
        };
        this.column = (0..at).find(|column| !taken(*column)).unwrap_or(at);
    }
    branches
}

fn mark(checkpoint: &Checkpoint, current: &str) -> char {
    match checkpoint.verdict() {
        _ if checkpoint.name == current => '@',
        Verdict::Bad => '×',
        Verdict::Suspect => '?',
        Verdict::Good => '●',
        Verdict::Unspecified | Verdict::Unknown => '○',
    }
}

fn text(checkpoint: &Checkpoint, begins: bool) -> String {
    let text = format!(
        "{:.6} #{:<4} {:>10} {:>8} {:>6} {:>10} {:<7}",
        checkpoint.name,
        checkpoint.sequence,
        quantity::ago(checkpoint.taken_at_ms),
        quantity::duration(checkpoint.pause_us),
        checkpoint.dirty_pages,
        quantity::bytes(checkpoint.stored_bytes),
        verdict::word(checkpoint.verdict()),
    );
    let why = if !checkpoint.label.is_empty() {
        format!(" `{}`", checkpoint.label)
    } else if checkpoint.kind == "automatic" {
        String::new()
    } else {
        format!(" {}", checkpoint.kind)
    };
    let doubt = if checkpoint.doubtful { " doubtful" } else { "" };
    let origin = if begins { format!(" ⟲ {:.6}", checkpoint.parent) } else { String::new() };
    text + doubt + &why + &origin
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(name: &str, sequence: u64, timeline: i64, parent: &str) -> Checkpoint {
        Checkpoint { name: name.into(), sequence, timeline, parent: parent.into(), ..Checkpoint::default() }
    }

    #[test]
    fn timelines_that_do_not_meet_share_a_column() {
        let mut all = vec![checkpoint("a", 1, 1, "")];
        for turn in 0..20 {
            let name = |at: u64| format!("t{turn}-{at}");
            let parent = if turn == 0 { "a".to_owned() } else { format!("t{}-1", turn - 1) };
            all.push(checkpoint(&name(1), 2 + 2 * turn, 2 + turn.cast_signed(), &parent));
            all.push(checkpoint(&name(2), 3 + 2 * turn, 2 + turn.cast_signed(), &name(1)));
        }
        let columns = branches(&all).iter().map(|branch| branch.column).max().unwrap() + 1;
        assert!(columns <= 3, "{columns} columns");
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
        assert_eq!(graph, ["  @", "  ○", "○ │", "○  "]);
        assert!(tree(&all, "ddd")[1].contains("⟲ aaa"));
    }

    #[test]
    fn a_doubtful_checkpoint_is_marked() {
        let mut all = [checkpoint("aaa", 1, 1, ""), checkpoint("bbb", 2, 1, "aaa")];
        all[0].doubtful = true;
        let marked: Vec<bool> = tree(&all, "bbb").iter().map(|line| line.contains(" doubtful")).collect();
        assert_eq!(marked, [false, true]);
    }
}
