//! Errors as gRPC statuses, with google.rpc details where they help a program to act.

use retrovisor_guest::MachineError;
use retrovisor_manager::ManagerError;
use retrovisor_snapshot::Error as StoreError;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

const DOMAIN: &str = "retrovisor";
/// Longest text in a status. It appears there up to three times, percent-encoded or in base64.
const TEXT_CHARS_MAX: usize = 600;

/// The status of an error.
pub(super) fn of(error: &ManagerError) -> Status {
    let (code, reason) = match error {
        ManagerError::Exists { .. } | ManagerError::Known { .. } => (Code::AlreadyExists, "MACHINE_EXISTS"),
        ManagerError::Gone { .. } | ManagerError::Machine(MachineError::Gone { .. }) => {
            (Code::FailedPrecondition, "MACHINE_GONE")
        }
        ManagerError::Refused { .. } => (Code::FailedPrecondition, "REFUSED"),
        ManagerError::State { .. } => (Code::FailedPrecondition, "MACHINE_STATE"),
        ManagerError::Managed { .. } => (Code::AlreadyExists, "PROCESS_MANAGED"),
        ManagerError::NotStopped { .. } => (Code::Aborted, "NOT_STOPPED"),
        ManagerError::ImageMismatch { .. } => (Code::DataLoss, "IMAGE_MISMATCH"),
        ManagerError::Unanswered { .. } => (Code::Internal, "MACHINE_LOST"),
        ManagerError::Invalid(_) => (Code::InvalidArgument, "INVALID"),
        ManagerError::Store(error) => of_store(error),
        ManagerError::Shape { .. }
        | ManagerError::Machine(
            MachineError::Config { .. } | MachineError::Unsupported { .. } | MachineError::Mismatch { .. },
        ) => (Code::FailedPrecondition, "MACHINE_UNFIT"),
        ManagerError::Machine(_) => (Code::Internal, "MACHINE_FAILED"),
        ManagerError::Fault(_) => (Code::FailedPrecondition, "FAULT_NOT_POSSIBLE"),
        ManagerError::Analytics(_) => (Code::Internal, "ANALYTICS_FAILED"),
        ManagerError::Io { .. } => (Code::Internal, "HOST_FAILED"),
    };
    let message = short(&error.to_string());
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, std::collections::HashMap::new());
    match error {
        ManagerError::Exists { machine }
        | ManagerError::Known { machine }
        | ManagerError::Gone { machine }
        | ManagerError::State { machine, .. }
        | ManagerError::Shape { machine, .. } => {
            details.set_resource_info("machine", format!("machines/{}", short(machine)), "", &message);
        }
        _ => {}
    }
    if let Some(help) = help(error) {
        details.add_help_link(short(&help), "");
    }
    if code == Code::FailedPrecondition {
        details.add_precondition_failure_violation(reason, DOMAIN, &message);
    }
    Status::with_error_details(code, message, details)
}

/// A text that may be shown, whatever it quotes: headers of gRPC are limited to some KiB, and clients drop an answer with
/// longer ones.
fn short(text: &str) -> String {
    match text.char_indices().nth(TEXT_CHARS_MAX) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

fn help(error: &ManagerError) -> Option<String> {
    match error {
        ManagerError::Refused { help, .. } | ManagerError::State { help, .. } => Some(help.clone()),
        ManagerError::NotStopped { machine, .. } => {
            Some(format!("End it without a checkpoint: retrovisor stop {machine} --force"))
        }
        ManagerError::Shape { machine, .. } => Some(format!(
            "Start it as it was recorded, choose another name, or remove the history first: retrovisor remove {machine}"
        )),
        ManagerError::Managed { .. } => Some("One process is one machine: use that name.".to_owned()),
        ManagerError::Gone { machine } => Some(format!(
            "Bring it back: retrovisor rollback {machine} --to latest. If another program started its QEMU: start it \
                 again with the same options, then retrovisor attach {machine} --qmp SOCKET"
        )),
        error if is_mismatch(error) => Some(
            "Only a machine of the same shape can be given this state. A new process gets the hardware of the checkpoint \
             (retrovisor stop NAME, then retrovisor rollback NAME --to CHECKPOINT); a state of a newer QEMU needs that QEMU."
                .to_owned(),
        ),
        ManagerError::Exists { machine } => Some(format!("Look at it: retrovisor show {machine}")),
        ManagerError::Known { machine } => {
            Some(format!("Choose another name, or look at that one: retrovisor show {machine}"))
        }
        _ => None,
    }
}

/// Whether a state was of a machine of another shape, also when that was noticed late and the machine was reverted.
fn is_mismatch(error: &ManagerError) -> bool {
    match error {
        ManagerError::Machine(MachineError::Mismatch { .. }) => true,
        ManagerError::Store(error) => {
            let cause = if let StoreError::Reverted { source, .. } = error { source } else { error };
            matches!(cause, StoreError::Machine(MachineError::Mismatch { .. }))
        }
        _ => false,
    }
}

fn of_store(error: &StoreError) -> (Code, &'static str) {
    match error {
        StoreError::NotFound { .. } => (Code::NotFound, "NOT_FOUND"),
        StoreError::Ambiguous { .. } => (Code::InvalidArgument, "AMBIGUOUS"),
        StoreError::Invalid { .. } => (Code::InvalidArgument, "INVALID"),
        StoreError::Exists { .. } => (Code::AlreadyExists, "EXISTS"),
        StoreError::QueryRefused(_) | StoreError::QueryFailed(_) => (Code::InvalidArgument, "QUERY"),
        StoreError::QueryTimeout { .. } => (Code::DeadlineExceeded, "QUERY_TIMEOUT"),
        StoreError::ReadOnly { .. } => (Code::FailedPrecondition, "READ_ONLY"),
        StoreError::InUse { .. } => (Code::FailedPrecondition, "STORE_IN_USE"),
        StoreError::Nothing { .. } => (Code::FailedPrecondition, "NOTHING_TO_UNDO"),
        StoreError::Pruned { .. } => (Code::FailedPrecondition, "PRUNED"),
        StoreError::Lost { .. } => (Code::FailedPrecondition, "CHECKPOINT_LOST"),
        StoreError::NotReadable { .. } => (Code::InvalidArgument, "NOT_READABLE"),
        StoreError::Stopped => (Code::Cancelled, "STOPPED"),
        StoreError::Reverted { .. } => (Code::Aborted, "REVERTED"),
        StoreError::Damaged(_) => (Code::DataLoss, "DAMAGED"),
        StoreError::Full { .. } => (Code::ResourceExhausted, "DISK_FULL"),
        StoreError::Machine(
            MachineError::Config { .. } | MachineError::Unsupported { .. } | MachineError::Mismatch { .. },
        ) => (Code::FailedPrecondition, "MACHINE_UNFIT"),
        _ => (Code::Internal, "STORE_FAILED"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_is_quoted_in_part() {
        let status = of(&ManagerError::Exists { machine: "é".repeat(100_000) });
        assert!(status.message().starts_with("a machine named é") && status.message().ends_with('…'));
        assert!(status.message().len() + status.details().len() < 8_000, "{}", status.details().len());
    }
}
