use clap::Args;
use retrovisor_proto::v1::network_interface::Network;
use retrovisor_proto::v1::{Audit, DiskAudit, GetMachineRequest, Machine};

use super::global::{Global, print_json};
use super::list;
use crate::client;
use crate::error::CliError;
use crate::terminal::{paragraph, quantity, verdict};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  retrovisor show web\n  retrovisor show web --json")]
pub(crate) struct ShowArgs {
    /// The machine
    name: String,
}

pub(super) async fn run(args: ShowArgs, global: &Global) -> Result<(), CliError> {
    let request = GetMachineRequest { machine: args.name };
    let answer = client::reader(&global.store()?).await?.machines().get_machine(request).await?.into_inner();
    let machine = answer.machine.unwrap_or_default();
    if global.json {
        return print_json(&machine);
    }
    print(&machine);
    Ok(())
}

/// One machine, a property a line.
pub(super) fn print(machine: &Machine) {
    let line = |name: &str, value: &str| {
        if !value.is_empty() {
            paragraph::property(name, value);
        }
    };
    line("machine", &machine.name);
    let reason = paragraph::because(&machine.state_reason);
    line("state", &format!("{}{reason}", list::state(machine.state())));
    line("driver", &format!("{} {} on {}", machine.driver, machine.driver_version, machine.accelerator));
    line("hardware", &format!("{} vCPU, {}", machine.vcpus, quantity::bytes(machine.memory_bytes)));
    let reason = paragraph::because(&machine.dirty_finder_reason);
    line("dirty pages", &format!("{}{reason}", machine.dirty_finder));
    let every =
        if machine.every_ms == 0 { String::new() } else { format!(", one every {} ms", machine.every_ms) };
    line("checkpoints", &format!("{}{every}", machine.checkpoints));
    line("not taken", &machine.checkpoint_error);
    if !machine.current.is_empty() {
        line("current", &format!("{} ({})", machine.current, verdict::word(machine.verdict())));
    }
    if let Some(audit) = &machine.audit {
        line("audit", &audited(audit));
        for disk in &audit.disks {
            line("disk audit", &disk_audited(disk));
        }
    }
    for interface in &machine.interfaces {
        let network = match &interface.network {
            Some(Network::Hub(name)) => format!("hub {name}"),
            Some(Network::Tap(name)) => format!("tap {name}"),
            None => String::new(),
        };
        let status = if interface.link_up { "up" } else { "down" };
        line("network", &format!("{network}, {}, link {status}", interface.address));
    }
    if let Some(from) = &machine.branched_from {
        line("branched", &format!("from {} {} #{}", from.machine, from.checkpoint, from.sequence));
    }
    line("confined", &machine.confinement);
    line("console", &machine.console);
    line("console log", &machine.console_log);
}

/// How much of the memory is proven, and what was found.
fn audited(audit: &Audit) -> String {
    let percent = percent(audit.proven_pages, audit.total_pages);
    let found = found(audit.mismatched_pages, "frame", audit.last_mismatch_ms);
    if audit.frames_per_checkpoint == 0 && audit.proven_pages == 0 {
        return format!("off, {found}");
    }
    format!("{percent} % of memory proven since {}, {found}", quantity::instant(audit.since_ms))
}

/// How much of a disk is proven, and what was found.
fn disk_audited(disk: &DiskAudit) -> String {
    let percent = percent(disk.proven_blocks, disk.total_blocks);
    let found = found(disk.mismatched_blocks, "block", disk.last_mismatch_ms);
    let since = quantity::instant(disk.since_ms);
    format!("{percent} % of {} proven since {since}, {found}", disk.disk)
}

fn percent(proven: u64, total: u64) -> u64 {
    proven.saturating_mul(100) / total.max(1)
}

/// What did not match.
fn found(mismatched: u64, what: &str, last_ms: Option<i64>) -> String {
    match last_ms {
        Some(at_ms) => {
            format!("{} did not match, the last {}", quantity::count(mismatched, what), quantity::ago(at_ms))
        }
        None => "no mismatch".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_audit_is_one_line() {
        let audit =
            Audit { frames_per_checkpoint: 64, total_pages: 300, proven_pages: 249, ..Audit::default() };
        assert!(audited(&audit).starts_with("83 % of memory proven since 1970-01-01T00:00:00Z, "));
        assert!(audited(&audit).ends_with(", no mismatch"));
        let found = Audit { mismatched_pages: 2, last_mismatch_ms: Some(0), ..audit };
        assert!(audited(&found).contains("2 frames did not match"));
        assert_eq!(audited(&Audit { total_pages: 300, ..Audit::default() }), "off, no mismatch");
        let disk =
            DiskAudit { total_blocks: 200, proven_blocks: 50, mismatched_blocks: 1, ..DiskAudit::default() };
        let disk = DiskAudit { disk: "d0".into(), ..disk };
        let wrong = DiskAudit { last_mismatch_ms: Some(0), ..disk.clone() };
        assert_eq!(disk_audited(&disk), "25 % of d0 proven since 1970-01-01T00:00:00Z, no mismatch");
        assert!(disk_audited(&wrong).contains("1 block did not match"));
    }
}
