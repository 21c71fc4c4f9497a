//! Errors as gRPC statuses, with google.rpc details where they help a program to act.

use retrovisor_guest::MachineError;
use retrovisor_snapshot::Error as StoreError;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::care::CareError;

const DOMAIN: &str = "retrovisor";

/// What the caller is told.
pub(super) fn of(error: &CareError) -> Status {
    let (code, reason) = match error {
        CareError::Exists { .. } | CareError::Known { .. } => (Code::AlreadyExists, "MACHINE_EXISTS"),
        CareError::Gone { .. } | CareError::Machine(MachineError::Gone { .. }) => {
            (Code::FailedPrecondition, "MACHINE_GONE")
        }
        CareError::Refused { .. } => (Code::FailedPrecondition, "REFUSED"),
        CareError::Invalid(_) => (Code::InvalidArgument, "INVALID"),
        CareError::Store(error) => of_store(error),
        CareError::Machine(
            MachineError::Config { .. } | MachineError::Unsupported { .. } | MachineError::Mismatch { .. },
        ) => (Code::FailedPrecondition, "MACHINE_UNFIT"),
        CareError::Machine(_) => (Code::Internal, "MACHINE_FAILED"),
        CareError::Fault(_) => (Code::FailedPrecondition, "FAULT_NOT_POSSIBLE"),
        CareError::Analytics(_) => (Code::Internal, "ANALYTICS_FAILED"),
        CareError::Io { .. } => (Code::Internal, "HOST_FAILED"),
    };
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, std::collections::HashMap::new());
    match error {
        CareError::Exists { machine } | CareError::Known { machine } | CareError::Gone { machine } => {
            details.set_resource_info("machine", format!("machines/{machine}"), "", error.to_string());
        }
        _ => {}
    }
    if let Some(help) = help(error) {
        details.add_help_link(help, "");
    }
    if code == Code::FailedPrecondition {
        details.add_precondition_failure_violation(reason, DOMAIN, error.to_string());
    }
    Status::with_error_details(code, error.to_string(), details)
}

fn help(error: &CareError) -> Option<String> {
    match error {
        CareError::Refused { help, .. } => Some(help.clone()),
        CareError::Gone { machine } => {
            Some(format!("Bring it back: retrovisor rollback {machine} --to latest"))
        }
        CareError::Exists { machine } => Some(format!("Look at it: retrovisor show {machine}")),
        CareError::Known { machine } => {
            Some(format!("Choose another name, or look at that one: retrovisor show {machine}"))
        }
        _ => None,
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
        _ => (Code::Internal, "STORE_FAILED"),
    }
}
