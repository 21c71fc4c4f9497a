use serde::{Deserialize, Serialize};

/// The guest's clocks after a restore, which skips time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClockPolicy {
    /// The guest's time continues from the instant of the checkpoint.
    #[default]
    StandStill,
    /// The guest's wall clock jumps to the host's.
    JumpToNow,
}
