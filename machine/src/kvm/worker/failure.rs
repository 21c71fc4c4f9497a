use retrovisor_guest::MachineError;
use serde::{Deserialize, Serialize};

/// Bound on a text of a worker that is passed on, in bytes.
const TEXT_BYTES_MAX: usize = 2000;

/// An error of the worker's machine, as part of a message.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Failure {
    Gone { reason: String },
    Unsupported { what: String, help: String },
    Mismatch { what: String, expected: String, found: String },
    NeedsPaused,
    NeedsOther,
    Config { what: String, help: String },
    Driver { doing: String, message: String },
    Io { doing: String, errno: i32 },
}

impl From<MachineError> for Failure {
    fn from(error: MachineError) -> Self {
        match error {
            MachineError::Gone { reason, .. } => Self::Gone { reason },
            MachineError::Unsupported { what, help } => Self::Unsupported { what, help },
            MachineError::Mismatch { what, expected, found } => Self::Mismatch { what, expected, found },
            MachineError::RunState { needed: "paused", .. } => Self::NeedsPaused,
            MachineError::RunState { .. } => Self::NeedsOther,
            MachineError::Config { what, help } => Self::Config { what, help },
            MachineError::Driver { doing, message } => Self::Driver { doing, message },
            MachineError::Io { doing, source } => match source.raw_os_error() {
                Some(errno) => Self::Io { doing, errno },
                None => Self::Driver { doing, message: source.to_string() },
            },
            other @ (MachineError::Layout(_) | MachineError::Memory(_)) => {
                Self::Driver { doing: "the worker".into(), message: other.to_string() }
            }
        }
    }
}

impl Failure {
    /// The error for the caller.
    pub(super) fn of(self, machine: &str, doing: &'static str) -> MachineError {
        match self {
            Self::Gone { reason } => MachineError::Gone { machine: machine.into(), reason: plain(&reason) },
            Self::Unsupported { what, help } => {
                MachineError::Unsupported { what: plain(&what), help: plain(&help) }
            }
            Self::Mismatch { what, expected, found } => MachineError::Mismatch {
                what: plain(&what),
                expected: plain(&expected),
                found: plain(&found),
            },
            Self::NeedsPaused => MachineError::RunState { doing, needed: "paused" },
            Self::NeedsOther => MachineError::RunState { doing, needed: "restored" },
            Self::Config { what, help } => MachineError::Config { what: plain(&what), help: plain(&help) },
            Self::Driver { doing, message } => {
                MachineError::Driver { doing: plain(&doing), message: plain(&message) }
            }
            Self::Io { doing, errno } => {
                MachineError::Io { doing: plain(&doing), source: std::io::Error::from_raw_os_error(errno) }
            }
        }
    }
}

/// A worker's text without control characters, cut to a bounded length.
pub(super) fn plain(text: &str) -> String {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_keep_their_kind_and_lose_their_control_characters() {
        let error = MachineError::Unsupported { what: "a\u{1b}[31m".into(), help: "h".into() };
        match Failure::from(error).of("m", "x") {
            MachineError::Unsupported { what, .. } => assert_eq!(what, "a [31m"),
            other => panic!("{other}"),
        }
        let error = MachineError::Gone { machine: "other".into(), reason: "é".repeat(5000) };
        match Failure::from(error).of("m", "x") {
            MachineError::Gone { machine, reason } => assert_eq!((&machine[..], reason.len()), ("m", 2000)),
            other => panic!("{other}"),
        }
        let error = Failure::from(MachineError::RunState { doing: "a", needed: "paused" });
        assert_eq!(error.of("m", "capturing").to_string(), "capturing needs a paused machine");
    }
}
