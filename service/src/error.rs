use retrovisor_manager::ManagerError;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// Why a verb failed, and its exit code.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct CliError {
    /// 1 failed, 2 wrong usage, 3 not found, 4 refused.
    pub(crate) exit_code: u8,
    message: String,
    /// What to do next; empty when there is nothing to add.
    pub(crate) help: String,
    /// The reason in the error's details, for programs; empty for errors of the command itself.
    reason: String,
}

impl CliError {
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self { exit_code: 1, message: message.into(), help: String::new(), reason: String::new() }
    }

    pub(crate) fn refused(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { exit_code: 4, message: message.into(), help: help.into(), reason: String::new() }
    }

    pub(crate) fn not_found(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { exit_code: 3, message: message.into(), help: help.into(), reason: String::new() }
    }
}

impl CliError {
    /// As one line of JSON: `error` (the message), `help`, `reason`, `exit_code`.
    pub(crate) fn json(&self) -> String {
        let Self { exit_code, message, help, reason } = self;
        serde_json::json!({ "error": message, "help": help, "reason": reason, "exit_code": exit_code })
            .to_string()
    }
}

impl From<ManagerError> for CliError {
    fn from(error: ManagerError) -> Self {
        Self::failed(error.to_string())
    }
}

impl From<Status> for CliError {
    fn from(status: Status) -> Self {
        let exit_code = match status.code() {
            Code::InvalidArgument => 2,
            Code::NotFound => 3,
            Code::FailedPrecondition | Code::AlreadyExists | Code::Aborted => 4,
            _ => 1,
        };
        if std::error::Error::source(&status)
            .is_some_and(<dyn std::error::Error>::is::<tonic::transport::Error>)
        {
            return Self {
                exit_code: 1,
                message: "the connection to the daemon broke before it answered".to_owned(),
                help: "Did it end? After its next start `retrovisor show NAME` and `log NAME` show what was done."
                    .to_owned(),
                reason: "DISCONNECTED".to_owned(),
            };
        }
        let help = status.get_details_help().map_or_else(String::new, |help| {
            help.links.iter().map(|link| link.description.as_str()).collect::<Vec<_>>().join("\n")
        });
        let reason = status.get_details_error_info().map_or_else(String::new, |info| info.reason);
        Self { exit_code, message: status.message().to_owned(), help, reason }
    }
}
