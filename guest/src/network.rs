use serde::{Deserialize, Serialize};

use crate::MacAddress;

/// A network interface of a machine, as it is kept in the catalogue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// What it is plugged into.
    pub network: Network,
    /// Its address, where one was asked for; else it has [`MacAddress::of_machine`], so that machines with other names
    /// have other addresses.
    pub mac: Option<MacAddress>,
}

/// What an interface is plugged into.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// A hub that Retrovisor serves.
    Hub(String),
    /// A tap device of the host.
    Tap(String),
}
