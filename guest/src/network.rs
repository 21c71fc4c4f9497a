use serde::{Deserialize, Serialize};

use crate::MacAddress;

/// A network interface of a machine, as stored in the catalogue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// What it is connected to.
    pub network: Network,
    /// Its address, if one was requested; otherwise it has [`MacAddress::of_machine`], which differs between machines.
    pub mac: Option<MacAddress>,
}

/// What an interface is connected to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// A hub that Retrovisor serves.
    Hub(String),
    /// A tap device of the host.
    Tap(String),
}
