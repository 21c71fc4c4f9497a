use serde::{Deserialize, Serialize};

use retrovisor_guest::MacAddress;

/// The status of a network interface of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetStatus {
    /// Its address.
    pub mac: MacAddress,
    /// Whether the guest sees its link up: the other end exists.
    pub up: bool,
}
