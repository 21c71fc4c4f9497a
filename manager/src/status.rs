use std::path::PathBuf;

use retrovisor_guest::RunState;

/// The status of a machine that has an actor.
#[derive(Clone, Debug)]
pub struct MachineStatus {
    /// Whether its vCPUs run.
    pub run_state: RunState,
    /// Interval between automatic checkpoints; 0 for none.
    pub every_ms: u32,
    /// The socket of its first serial port.
    pub console: Option<PathBuf>,
    /// The file that keeps what the guest writes there.
    pub console_log: Option<PathBuf>,
    /// How dirty pages are found.
    pub finder: String,
    /// How its process is confined, in words; empty when Retrovisor did not start it.
    pub confinement: String,
    /// Whether the links of its network interfaces are up, in order.
    pub links: Vec<bool>,
}
