use serde::{Deserialize, Serialize};

/// What the guest's clocks do over the time that a restore skips.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClockPolicy {
    /// The guest's time goes on from the instant of the checkpoint.
    #[default]
    StandStill,
    /// The guest's wall clock jumps to the host's.
    JumpToNow,
}
