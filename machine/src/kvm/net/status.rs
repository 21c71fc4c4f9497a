use serde::{Deserialize, Serialize};

use retrovisor_guest::MacAddress;

/// How a network interface of a machine stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetStatus {
    /// Its address.
    pub mac: MacAddress,
    /// Whether the guest is told that the link is up: what it is plugged into is there.
    pub up: bool,
}
